"""One problem: question, images and reference answer, which are checked at construction."""

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from vaopd.errors import ProblemError

IMAGE_PLACEHOLDER = "<image>"

UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)
"""Exceptions of Pillow's decoders for damaged bytes; its UnidentifiedImageError is an OSError."""


@dataclass(frozen=True)
class Problem:
    """A question about one or several images, with its reference answer if it is known."""

    id: str
    """Unique within a data set."""

    prompt: str
    """The question, with one literal ``<image>`` where each image belongs."""

    images: tuple[bytes | Path, ...]
    """Encoded images, or paths of image files, in the order of the placeholders."""

    answer: str | None
    """Reference answer without a box; ``None`` if it is not known."""

    source: str
    """Name of the data set."""

    split: str

    references: tuple[str, ...] = ()
    """Reference responses for supervised fine-tuning, in any number of phrasings."""

    kind: str = ""
    """Sub-category for accuracy by kind."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ProblemError(
                f"problem {self.id} has no image, and visual advantage needs one; "
                "leave text-only problems out of the data"
            )
        num_placeholders = self.prompt.count(IMAGE_PLACEHOLDER)
        if num_placeholders != len(self.images):
            raise ProblemError(
                f"problem {self.id} has {num_placeholders} {IMAGE_PLACEHOLDER} in its prompt and "
                f"{len(self.images)} images; write one {IMAGE_PLACEHOLDER} for each image"
            )

    def load_images(self) -> list[Image.Image]:
        """Return the images, fully decoded and turned upright, in their stored mode.

        Raises:
            ProblemError: An image is missing, is in no known format, or is cut short.
        """
        return [self._decode(number, image) for number, image in enumerate(self.images, start=1)]

    def content_hash(self) -> str:
        """Return the SHA-256 of prompt and image bytes, in hex.

        Id, split and answer are left out, so the same content has the same hash in two data sets.

        Raises:
            ProblemError: An image file cannot be read.
        """
        digest = hashlib.sha256()
        parts = [self._encoded(number, image) for number, image in enumerate(self.images, start=1)]
        for part in (self.prompt.encode(), *parts):
            # The length is included, so that two parts do not have the hash of their concatenation.
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return width and height of the images as they are stored; only headers are read.

        If ``load_images`` turns a photograph upright, width and height may be exchanged.

        Raises:
            ProblemError: An image is missing or in no known format.
        """
        return [self._size(number, image) for number, image in enumerate(self.images, start=1)]

    def _size(self, number: int, image: bytes | Path) -> tuple[int, int]:
        try:
            # Pillow opens the path and reads only the header.
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return opened.size
        except UNREADABLE as error:
            raise self._undecodable(number, image, error) from error

    def _encoded(self, number: int, image: bytes | Path) -> bytes:
        if isinstance(image, bytes):
            return image
        try:
            return image.read_bytes()
        except OSError as error:
            raise ProblemError(
                f"image {number} of problem {self.id} cannot be read: {error}; "
                "put the file there or correct its path"
            ) from error

    def _decode(self, number: int, image: bytes | Path) -> Image.Image:
        encoded = self._encoded(number, image)
        try:
            decoded = Image.open(io.BytesIO(encoded))
            # open() reads the header only: a file cut short fails here and not in a late step.
            decoded.load()
            # Photographs may be stored rotated; the question is about the upright image.
            return ImageOps.exif_transpose(decoded)
        except UNREADABLE as error:
            raise self._undecodable(number, image, error) from error

    def _undecodable(self, number: int, image: bytes | Path, error: Exception) -> ProblemError:
        place = "" if isinstance(image, bytes) else f" ({image})"
        # The default text of bytes in memory is an address, which does not help.
        reason = str(error).split(" <_io.")[0]
        return ProblemError(
            f"image {number} of problem {self.id}{place} cannot be decoded: {reason}; "
            "replace it by a complete PNG or JPEG"
        )
