import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaopd.errors import ConfigError
from vaopd.views import (
    VIEWS,
    black_patches,
    degrade,
    fit_pixel_budget,
    patch_shuffle,
    pixelate,
)

KEPT_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F")
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def ramp(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def run_lengths(row: np.ndarray) -> list[int]:
    return [len(list(run)) for _, run in itertools.groupby(row.tolist())]


def test_43_by_27_pixels_become_4_by_2_cells_with_pillows_own_borders():
    pixels = np.asarray(pixelate(ramp(43, 27)))
    assert run_lengths(pixels[0]) == [11, 11, 10, 11]
    assert len(np.unique(np.asarray(pixelate(ramp(27, 43).rotate(90, expand=True))), axis=0)) == 2


def test_the_number_of_cells_is_floored_not_rounded():
    # 38 x 0.1 = 3.8 cells: floor gives 3, rounding would give 4.
    assert len(run_lengths(np.asarray(pixelate(ramp(38, 10)))[0])) == 3


def test_a_thin_line_turns_faint_in_the_two_cells_it_touches():
    pixels = np.full((27, 43), 255, np.uint8)
    pixels[:, 12] = 0
    cells = np.asarray(pixelate(Image.fromarray(pixels)))[0]
    # Column 12 lies near the border of cells 0 and 1, each 10.75 wide; the line's 255 units of
    # ink are shared out, 9 + 16 = 25 of them per pixel of a cell, near 255 / 10.75.
    assert [cells[0], cells[11], cells[22], cells[32]] == [246, 239, 255, 255]


def test_pixelating_twice_is_not_pixelating_once():
    once = pixelate(textured(43, 27))
    twice = pixelate(once)
    assert np.abs(np.asarray(once, int) - np.asarray(twice, int)).max() > 0


def test_a_constant_image_pixelates_to_itself():
    image = Image.new("RGB", (43, 27), (12, 200, 77))
    assert pixelate(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "blank"])
@pytest.mark.parametrize("ratio", [1, 1.0])
def test_ratio_one_returns_the_image(name: str, ratio: float):
    image = textured(43, 27)
    assert degrade(image, name, ratio).tobytes() == image.tobytes()


@settings(deadline=None)
@given(mode=st.sampled_from(KEPT_MODES), size=SIZES, ratio=st.floats(0.01, 1))
def test_pixelation_keeps_mode_and_size(mode: str, size: tuple[int, int], ratio: float):
    result = pixelate(Image.new(mode, size), ratio)
    assert (result.mode, result.size) == (mode, size)


@settings(deadline=None)
@given(name=st.sampled_from(VIEWS), mode=st.sampled_from([*KEPT_MODES, "1", "P"]), size=SIZES)
def test_every_view_keeps_the_size(name: str, mode: str, size: tuple[int, int]):
    assert degrade(Image.new(mode, size), name, 0.1).size == size


@pytest.mark.parametrize(("stored", "shown"), [("P", "RGB"), ("1", "L"), ("PA", "RGBA")])
def test_modes_without_colours_to_average_are_converted_first(stored: str, shown: str):
    image = ramp(40, 20).convert("RGBA" if stored == "PA" else "L").convert(stored)
    result = pixelate(image)
    assert result.mode == shown
    assert result.tobytes() == pixelate(image.convert(shown)).tobytes()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_the_same_at_every_call_and_changes_the_image(name: str):
    image = textured(40, 30)
    first = degrade(image, name, 0.1)
    assert first.tobytes() == degrade(image.copy(), name, 0.1).tobytes()
    assert first.tobytes() != image.tobytes()


def test_two_images_get_different_noise():
    # Same brightness everywhere but for one pixel, so equal noise would show as equal pixels.
    black = Image.new("L", (40, 30))
    nearly = black.copy()
    nearly.putpixel((0, 0), 1)
    first, second = (np.asarray(degrade(image, "noise", 0.1)) for image in (black, nearly))
    assert (first != second).mean() > 0.9


def test_the_blank_view_is_the_mean_colour():
    image = Image.new("RGB", (4, 2), (0, 10, 255))
    image.paste((100, 10, 55), (0, 0, 2, 2))
    assert degrade(image, "blank").getcolors() == [(8, (50, 10, 155))]


def test_shuffling_moves_patches_and_loses_none():
    image = textured(40, 30)
    shuffled = patch_shuffle(image, 0.1)

    def patches(picture: Image.Image) -> list[bytes]:
        boxes = [(x, y, x + 4, y + 3) for y in range(0, 30, 3) for x in range(0, 40, 4)]
        return [picture.crop(box).tobytes() for box in boxes]

    assert patches(shuffled) != patches(image)
    assert sorted(patches(shuffled)) == sorted(patches(image))


def test_a_smaller_ratio_leaves_less_of_the_image():
    image = textured(60, 60)
    names = ("pixelate", "downscale", "blur")
    for name in names:
        coarse, fine = (np.asarray(degrade(image, name, ratio)).std() for ratio in (0.1, 0.5))
        assert coarse < fine


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan, math.inf, True, "0.1", None])
@pytest.mark.parametrize("name", VIEWS)
def test_a_ratio_outside_zero_to_one_is_refused(name: str, ratio: object):
    with pytest.raises(ConfigError, match=r"view\.ratio is .*expected a number above 0"):
        degrade(Image.new("RGB", (4, 4)), name, ratio)


def test_an_unknown_view_is_refused_with_the_choices():
    with pytest.raises(
        ConfigError, match="'smear', which is not a view; choose from pixelate, blur"
    ):
        degrade(Image.new("RGB", (4, 4)), "smear", 0.1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # sqrt(262144 / 60000) = 2.0902..: 300 -> 627.07, 200 -> 418.05.
        ((300, 200), (627, 418)),
        # sqrt(4194304 / 16000000) = 0.512.
        ((4000, 4000), (2048, 2048)),
        ((600, 500), (600, 500)),
    ],
)
def test_the_area_is_brought_inside_the_budget(size: tuple[int, int], expected: tuple[int, int]):
    assert fit_pixel_budget(Image.new("L", size), 262_144, 4_194_304).size == expected


def test_an_image_inside_the_budget_keeps_its_pixels():
    image = textured(40, 30)
    assert fit_pixel_budget(image, 1, 10_000).tobytes() == image.tobytes()


def test_a_very_thin_image_keeps_a_side_of_one_pixel():
    assert fit_pixel_budget(Image.new("RGB", (10_000, 1)), 1, 100).size == (1000, 1)


def test_transparent_pixels_show_their_stored_colour():
    image = Image.new("RGBA", (10, 10), (200, 100, 50, 0))
    assert fit_pixel_budget(image, 1, 1000).getpixel((0, 0)) == (200, 100, 50)


def test_a_palette_with_transparency_becomes_rgb_without_a_warning():
    image = Image.new("P", (4, 4))
    image.putpalette([9, 8, 7])
    image.info["transparency"] = bytes([0])
    assert fit_pixel_budget(image, 1, 1000).getpixel((0, 0)) == (9, 8, 7)


def test_sixteen_bit_drawings_keep_their_shades():
    image = Image.fromarray(np.full((4, 4), 30_000, np.uint16))
    # 30000 // 256 = 117; clipping would give 255.
    assert fit_pixel_budget(image, 1, 1000).getpixel((0, 0)) == (117, 117, 117)


@pytest.mark.parametrize("budget", [(0, 10), (11, 10), (-1, 5)])
def test_an_impossible_budget_is_refused(budget: tuple[int, int]):
    with pytest.raises(ConfigError, match="expected 0 < min_pixels <= max_pixels"):
        fit_pixel_budget(Image.new("RGB", (4, 4)), *budget)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(0, 99))
def test_each_patch_is_black_or_as_it_was(width: int, height: int, pixels: int, seed: int):
    values = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    found = np.asarray(black_patches(Image.fromarray(values), 0.5, pixels, seed))
    assert found.shape == values.shape
    for top in range(0, height, pixels):
        for left in range(0, width, pixels):
            patch = (slice(top, top + pixels), slice(left, left + pixels))
            assert not found[patch].any() or (found[patch] == values[patch]).all()


def test_the_share_of_black_patches_is_the_fraction_and_the_seed_chooses_them():
    white = Image.new("L", (560, 560), 255)
    first, again, other = (np.asarray(black_patches(white, 0.6, 14, s)) for s in (1, 1, 2))
    # 1,600 patches: the standard deviation of their share is 0.012.
    assert (first == 0).mean() == pytest.approx(0.6, abs=0.05)
    assert (first == again).all()
    assert (first != other).mean() == pytest.approx(0.48, abs=0.06)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_no_patch_or_every_patch_is_black(fraction: float):
    grey = Image.new("RGB", (30, 20), "grey")
    found = np.asarray(black_patches(grey, fraction, 7, 0))
    assert (found == (0 if fraction else 128)).all()
