"""Degraded views of an image: what the teacher sees when the visual evidence is taken away.

Every view keeps the size of the image, so the vision processor makes the same number of image
tokens of it and the log-probs of the two views align token by token. Every view is a function of
the image and the ratio alone: the same call gives the same pixels in every process.
"""

import hashlib
import math

import numpy as np
from PIL import Image, ImageFilter

from vaopd.errors import ConfigError

VIEWS = ("pixelate", "blur", "downscale", "blank", "noise", "shuffle")


def degrade(image: Image.Image, name: str, ratio: object = 0.1) -> Image.Image:
    """Return the named view of an image, in the size of the image.

    The ratio says how much survives, in (0, 1]. At 1 all views but ``blank`` return the image.

    ========== =====================================================================
    pixelate   cells per pixel of a side: 0.1 leaves one flat cell for 10 x 10 pixels
    downscale  the same small image, but brought back smoothly
    blur       Gaussian with the reach of such a cell: sigma is (1/ratio - 1) / 2 pixels
    noise      share of the image in a blend with uniform noise
    shuffle    side of a patch as a share of the image's side: 0.1 shuffles 10 x 10 patches
    blank      ignored: the mean colour everywhere
    ========== =====================================================================

    Args:
        image: Any PIL image. ``pixelate`` keeps its mode, the others return L or RGB.
        name: One of ``VIEWS``.
        ratio: How much survives.

    Raises:
        ConfigError: The name is unknown or the ratio is not a number in (0, 1].
    """
    match name:
        case "pixelate":
            return pixelate(image, ratio)
        case "blur":
            return blur(image, ratio)
        case "downscale":
            return downscale_up(image, ratio)
        case "blank":
            _checked_ratio(ratio)
            return blank(image)
        case "noise":
            return noise(image, ratio)
        case "shuffle":
            return patch_shuffle(image, ratio)
    raise ConfigError(f"view.name is {name!r}, which is not a view; choose from {', '.join(VIEWS)}")


def pixelate(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return the image in flat cells: layout and colour stay, digits and small marks disappear.

    Bilinear down to ``max(1, int(side * ratio))`` cells a side, nearest back up, as in Sec. 2 of
    the method. Pillow's bilinear averages over the whole cell when it shrinks, so a thin line
    becomes faint instead of being kept or lost by its position; a port needs ``antialias=True``.

    Args:
        image: Any PIL image. Palette images become RGB (PA: RGBA) and one-bit images L,
            because Pillow does not interpolate palette indices; every other mode is kept.
        ratio: Cells per pixel of a side, in (0, 1]. Typed loosely because a recipe's value
            is not checked before.

    Raises:
        ConfigError: The ratio is not a finite number in (0, 1].
    """
    return _resample_down_up(image, ratio, Image.Resampling.NEAREST)


def downscale_up(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return the reduced image of pixelation, enlarged smoothly and so without block edges."""
    return _resample_down_up(_plain(image), ratio, Image.Resampling.BILINEAR)


def reduced(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return the reduced image of pixelation, with one pixel for each cell.

    Raises:
        ConfigError: The ratio is not a finite number in (0, 1].
    """
    kept = _checked_ratio(ratio)
    image = _interpolable(image)
    # int() and not round(): the released code floors, and 45 % of sides would differ.
    small = (max(1, int(image.width * kept)), max(1, int(image.height * kept)))
    return image.resize(small, Image.Resampling.BILINEAR)


def blur(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return the image under a Gaussian as wide as a pixelation cell of the same ratio."""
    sigma_pixels = (1 / _checked_ratio(ratio) - 1) / 2
    return _plain(image).filter(ImageFilter.GaussianBlur(sigma_pixels))


def blank(image: Image.Image) -> Image.Image:
    """Return the mean colour of the image everywhere: nothing but the average survives."""
    pixels = np.asarray(_plain(image))
    mean = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(mean, pixels.shape).copy())


def noise(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return ``ratio * image + (1 - ratio) * noise``, the noise uniform over all colours.

    The noise is seeded by the image's own pixels: fixed for an image, different between images.
    """
    kept = _checked_ratio(ratio)
    pixels = np.asarray(_plain(image))
    static = _generator_of(pixels).integers(0, 256, pixels.shape)
    return Image.fromarray(np.rint(kept * pixels + (1 - kept) * static).astype(np.uint8))


def patch_shuffle(image: Image.Image, ratio: object = 0.1) -> Image.Image:
    """Return the image with its patches in random order: local detail stays, layout disappears.

    A grid of ``round(1 / ratio)`` patches a side (fewer in an image with fewer pixels); the
    up to that many pixels left over at the right and bottom edge stay. Seeded as ``noise`` is.
    """
    patches_a_side = round(1 / _checked_ratio(ratio))
    pixels = np.asarray(_plain(image))
    height, width = pixels.shape[:2]
    rows, columns = min(patches_a_side, height), min(patches_a_side, width)
    high, wide = height // rows, width // columns
    order = _generator_of(pixels).permutation(rows * columns)
    shuffled = pixels.copy()
    for target, source in enumerate(order.tolist()):
        top, left = target // columns * high, target % columns * wide
        from_top, from_left = source // columns * high, source % columns * wide
        patch = pixels[from_top : from_top + high, from_left : from_left + wide]
        shuffled[top : top + high, left : left + wide] = patch
    return Image.fromarray(shuffled)


def black_patches(image: Image.Image, fraction: float, pixels: int, seed: int) -> Image.Image:
    """Return the image with some of its square patches black, each by chance.

    The masking of PAPO (Wang et al. 2025, arXiv:2507.06448), whose released code draws each patch
    of 14 x 14 pixels independently; patches at the right and bottom edge may be smaller.

    Args:
        image: Any PIL image; returned as L or RGB.
        fraction: Probability that a patch is black, in [0, 1].
        pixels: Side of a patch.
        seed: Decides which patches are black.
    """
    values = np.asarray(_plain(image)).copy()
    rows, columns = (-(-side // pixels) for side in values.shape[:2])
    is_black = np.random.default_rng(seed).random((rows, columns)) < fraction
    whole = is_black.repeat(pixels, axis=0).repeat(pixels, axis=1)
    values[whole[: values.shape[0], : values.shape[1]]] = 0
    return Image.fromarray(values)


def fit_pixel_budget(image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
    """Return the image as RGB with an area inside the budget, its aspect kept.

    The rescale of Sec. 2.2 of the method, which comes before any view: down to ``max_pixels``,
    then up to ``min_pixels``, both by the square root of the area ratio with sides truncated, so
    the area may fall short of ``min_pixels`` by a row and a column. Pillow's default resampling.
    An image inside the budget keeps its pixels. Alpha is dropped: a transparent pixel shows the
    colour stored under it.

    Raises:
        ConfigError: The budget is not 0 < min_pixels <= max_pixels.
    """
    for size in fitted_sizes(image.size, min_pixels, max_pixels):
        image = image.resize(size)
    return _as_rgb(image)


def fitted_sizes(size: tuple[int, int], min_pixels: int, max_pixels: int) -> list[tuple[int, int]]:
    """Return the widths and heights to which ``fit_pixel_budget`` scales an image, in order.

    Raises:
        ConfigError: The budget is not 0 < min_pixels <= max_pixels.
    """
    if not 0 < min_pixels <= max_pixels:
        raise ConfigError(
            f"the pixel budget is {min_pixels} to {max_pixels}, "
            "expected 0 < min_pixels <= max_pixels"
        )
    sizes = []
    if size[0] * size[1] > max_pixels:
        sizes.append(size := _scaled(size, max_pixels))
    if size[0] * size[1] < min_pixels:
        sizes.append(_scaled(size, min_pixels))
    return sizes


def _checked_ratio(ratio: object) -> float:
    # A bool is an int to Python: true in a recipe would otherwise mean "no degradation".
    if isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio <= 1:
        return float(ratio)
    raise ConfigError(
        f"view.ratio is {ratio!r}, expected a number above 0 and at most 1; "
        "0.1 keeps a tenth of each side"
    )


def _resample_down_up(image: Image.Image, ratio: object, upward: Image.Resampling) -> Image.Image:
    return reduced(image, ratio).resize(image.size, upward)


def _scaled(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    width, height = size
    factor = math.sqrt(pixels / (width * height))
    # max(): a very long, thin image would otherwise lose its short side.
    return max(1, int(width * factor)), max(1, int(height * factor))


def _interpolable(image: Image.Image) -> Image.Image:
    match image.mode:
        case "P":
            return _as_rgb(image)
        case "PA":
            return image.convert("RGBA")
        case "1":
            return image.convert("L")
    return image


def _plain(image: Image.Image) -> Image.Image:
    """Return the image in a mode whose pixels are plain 8-bit colours."""
    return image.convert("L") if image.mode in ("1", "L") else _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, which turns a 16-bit drawing white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Pillow warns about a straight conversion; the colours are the same this way.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _generator_of(pixels: np.ndarray) -> np.random.Generator:
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
