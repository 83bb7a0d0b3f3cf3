import io
from pathlib import Path

import pytest
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems.problem import Problem


def png(shade: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    encoded = io.BytesIO()
    Image.new("L", size, shade).save(encoded, "PNG")
    return encoded.getvalue()


def problem(*images: bytes | Path, prompt: str | None = None) -> Problem:
    prompt = "<image>" * len(images) + "Find x." if prompt is None else prompt
    return Problem(id="p1", prompt=prompt, images=images, answer="5", source="made", split="train")


def test_images_come_decoded_in_the_order_of_the_placeholders(tmp_path: Path):
    (tmp_path / "second.png").write_bytes(png(200))
    images = problem(png(100), tmp_path / "second.png").load_images()
    assert [image.getpixel((0, 0)) for image in images] == [100, 200]


def test_a_photograph_is_turned_upright():
    encoded = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (8, 6)).save(encoded, "JPEG", exif=exif)
    assert problem(encoded.getvalue()).load_images()[0].size == (6, 8)


@pytest.mark.parametrize(
    ("prompt", "count"), [("Find x.", 0), ("<image><image>Find x.", 2), ("<Image>Find x.", 0)]
)
def test_a_placeholder_count_that_differs_from_the_images_is_refused(prompt: str, count: int):
    with pytest.raises(ProblemError, match=f"p1 has {count} <image> in its prompt and 1 images; "):
        problem(png(), prompt=prompt)


def test_a_problem_without_an_image_has_no_place_for_one():
    with pytest.raises(ProblemError, match=r"p1 has no image, and 1 <image> in its prompt; give"):
        problem(prompt="<image>What is it?")
    one = problem(prompt="What is 2 + 2?")
    assert one.is_text_only
    assert one.load_images() == one.image_sizes() == []


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(ProblemError, match=r"image 2 of problem p1 cannot be read: .*gone\.png"):
        problem(png(), tmp_path / "gone.png").load_images()


def test_bytes_that_are_no_image_are_named():
    with pytest.raises(ProblemError, match="image 1 of problem p1 cannot be decoded: cannot ident"):
        problem(b"no image").load_images()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_an_image_cut_short_is_named(tmp_path: Path, format: str):
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(encoded, format)
    path = tmp_path / "cut"
    path.write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])
    with pytest.raises(ProblemError, match=r"image 1 of problem p1 \(.*cut\) cannot be decoded"):
        problem(path).load_images()


def test_a_damaged_png_checksum_is_an_error():
    damaged = bytearray(png())
    damaged[damaged.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises(ProblemError, match="cannot be decoded"):
        problem(bytes(damaged)).load_images()


def test_the_content_hash_sees_question_and_pixels_but_not_how_they_are_stored(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(png())
    base = problem(png()).content_hash()
    assert len(base) == 64
    assert problem(path).content_hash() == base
    assert problem(png(1)).content_hash() != base
    assert problem(png(), prompt="<image>Find y.").content_hash() != base


def test_the_content_hash_sees_where_one_image_ends():
    whole = problem(b"ab", b"c").content_hash()
    assert problem(b"a", b"bc").content_hash() != whole


def test_hashing_a_missing_image_names_it(tmp_path: Path):
    with pytest.raises(ProblemError, match="image 1 of problem p1 cannot be read"):
        problem(tmp_path / "gone.png").content_hash()
