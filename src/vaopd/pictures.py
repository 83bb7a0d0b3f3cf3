"""Images of a run folder: reduced copies of what the models saw, named by their content."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

LONGEST_SIDE = 768
"""Longest side of a stored image in pixels; the models saw up to ``data.max_pixels``."""

SMALL_BYTES = 40_000
"""A PNG up to this size is stored as PNG, so drawings stay sharp; photographs become WebP."""

WEBP_QUALITY = 85


def save_picture(image: Image.Image, folder: Path) -> str:
    """Write a picture, unless the folder has it already, and return its file name."""
    encoded, suffix = encode_picture(image)
    name = f"{hashlib.sha256(encoded).hexdigest()[:16]}{suffix}"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{name}.partial")
        partial.write_bytes(encoded)
        partial.replace(path)
    return name


def encode_picture(image: Image.Image, longest_side: int = LONGEST_SIDE) -> tuple[bytes, str]:
    """Return the image as PNG or WebP, depending on its size, and the suffix of its file."""
    image = image.convert("RGB")
    # Shrinking averages over pixels; nearest would drop thin lines and show moire in the cells.
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    drawing = _encoded(image, "PNG")
    if len(drawing) <= SMALL_BYTES:
        return drawing, ".png"
    photo = _encoded(image, "WEBP", quality=WEBP_QUALITY, method=4)
    return (photo, ".webp") if len(photo) < len(drawing) else (drawing, ".png")


def data_url(image: Image.Image) -> str:
    """Return the image, without loss, as a data address that servers accept."""
    encoded = _encoded(image, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
