from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vaopd.pictures import LONGEST_SIDE, save_picture


def test_the_same_picture_is_stored_once(tmp_path: Path):
    image = Image.new("RGB", (50, 40), "red")
    assert save_picture(image, tmp_path) == save_picture(image.copy(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_drawing_keeps_its_pixels_as_png(tmp_path: Path):
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).line((0, 0, 299, 199), fill="black")
    name = save_picture(image, tmp_path)
    assert name.endswith(".png")
    with Image.open(tmp_path / name) as stored:
        assert stored.tobytes() == image.tobytes()


def test_a_large_photograph_becomes_a_small_webp_of_the_same_shape(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    name = save_picture(Image.fromarray(pixels).resize((1600, 900)), tmp_path)
    assert name.endswith(".webp")
    with Image.open(tmp_path / name) as stored:
        assert stored.size == (LONGEST_SIDE, 432)
