"""One problem: question, images and reference answer, which are checked at construction."""

import hashlib
import io
import struct
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vaopd.config import MAX_STORED_PIXELS
from vaopd.errors import ProblemError

IMAGE_PLACEHOLDER = "<image>"

MAX_ENCODED_BYTES = 256 * 2**20
"""Most bytes of an image file: nobody decodes so large a picture, but a file may be anything."""

MAX_NAME_CHARACTERS = 1000
"""Most characters of an id or a kind, which stand in lines of logs and in tables."""

CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that change how a line is shown or cannot be written."""

DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Signs that change the order in which the rest of a line is shown."""

CHUNK_BYTES = 1 << 20

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)
"""Formats that are read. Pillow knows others, of which some start programs, such as EPS."""

UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, struct.error),
)
"""Exceptions of Pillow's decoders for damaged bytes; its UnidentifiedImageError is an OSError."""


@dataclass(frozen=True, eq=False)
class MappedImage:
    """An encoded image in a table of ``datasets``, which is read from disk when it is used."""

    table: Any = field(repr=False)
    """A ``datasets.Dataset`` in the format of Arrow, which does not decode images."""

    row: int
    column: str
    position: int
    """Number of the image, from 0, in a cell that holds a list."""

    def load(self) -> bytes:
        """Return the encoded image."""
        cell = self.table[self.row][self.column][0].as_py()
        one = cell[self.position] if isinstance(cell, list) else cell
        return one["bytes"] if isinstance(one, Mapping) else one


StoredImage = bytes | Path | MappedImage
"""An encoded image, or where it is stored."""


@dataclass(frozen=True)
class Problem:
    """A question, as a rule about images, with its reference answer if it is known."""

    id: str
    """Unique within a data set."""

    prompt: str
    """The question, with one literal ``<image>`` where each image belongs."""

    images: tuple[StoredImage, ...]
    """Encoded images, or where they are stored, in the order of the placeholders; () = the problem
    is text alone, which a recipe must allow."""

    answer: str | None
    """Reference answer without a box; ``None`` if it is not known."""

    source: str
    """Name of the data set."""

    split: str

    references: tuple[str, ...] = ()
    """Reference responses for supervised fine-tuning, in any number of phrasings."""

    kind: str = ""
    """Sub-category for accuracy by kind."""

    max_stored_pixels: int = MAX_STORED_PIXELS
    """Most pixels of all images together; more is refused before it is decoded."""

    system_prompt: str = ""
    """System turn before the question; '' = none."""

    teacher_images: tuple[StoredImage, ...] = ()
    """Images that the teacher sees in place of ``images``, one for each; () = the same."""

    def __post_init__(self) -> None:
        check_name(self.id, "id")
        check_name(self.kind, f"kind of problem {self.id}")
        for text in (self.system_prompt, self.prompt, self.answer or "", *self.references):
            _check_whole(text, self.id)
        num_placeholders = self.prompt.count(IMAGE_PLACEHOLDER)
        if num_placeholders and not self.images:
            raise ProblemError(
                f"problem {self.id} has no image, and {num_placeholders} {IMAGE_PLACEHOLDER} in "
                "its prompt; give it its images, or leave it out of the data"
            )
        if num_placeholders != len(self.images):
            raise ProblemError(
                f"problem {self.id} has {num_placeholders} {IMAGE_PLACEHOLDER} in its prompt and "
                f"{len(self.images)} images; write one {IMAGE_PLACEHOLDER} for each image"
            )
        if self.teacher_images and len(self.teacher_images) != num_placeholders:
            raise ProblemError(
                f"problem {self.id} has {len(self.teacher_images)} teacher_images and "
                f"{num_placeholders} images; give one for each image, in their order, or none"
            )

    @property
    def is_text_only(self) -> bool:
        """Whether the question is text alone; it then has no visual advantage."""
        return not self.images

    def for_teacher(self) -> "Problem":
        """Return the problem as the teacher sees it: with its own images, if there are any."""
        if not self.teacher_images:
            return self
        return replace(self, images=self.teacher_images, teacher_images=())

    def stored_images(self) -> Iterator[bytes | Path]:
        """Yield the encoded images, or the paths of image files; one image is in memory."""
        for image in self.images:
            yield image.load() if isinstance(image, MappedImage) else image

    def load_images(self) -> list[Image.Image]:
        """Return the images, fully decoded and turned upright, in their stored mode.

        Raises:
            ProblemError: An image is missing, too large, in no known format, or cut short, or has
                several frames.
        """
        self.image_sizes()
        stored = enumerate(self.stored_images(), start=1)
        return [self._decode(number, image) for number, image in stored]

    def content_hash(self) -> str:
        """Return the SHA-256 of prompt and image bytes, in hex.

        Id, split, answer and system prompt are left out, so the same content has the same hash in
        two data sets.

        Raises:
            ProblemError: An image file cannot be read.
        """
        digest = hashlib.sha256()
        # The length is included, so that two parts do not have the hash of their concatenation.
        prompt = self.prompt.encode()
        digest.update(len(prompt).to_bytes(8, "big") + prompt)
        for number, image in enumerate(self.stored_images(), start=1):
            with self._reading(number, image):
                size = _num_bytes(image)
                digest.update(size.to_bytes(8, "big"))
                with io.BytesIO(image) if isinstance(image, bytes) else image.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
        return digest.hexdigest()

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return width and height of the images as they are stored; only headers are read.

        If ``load_images`` turns a photograph upright, width and height may be exchanged.

        Raises:
            ProblemError: An image is missing or in no known format, or all of them together have
                more than ``max_stored_pixels``.
        """
        sizes, total = [], 0
        for number, image in enumerate(self.stored_images(), start=1):
            with self._reading(number, image), _opened(image) as opened:
                sizes.append(opened.size)
            total += opened.width * opened.height
            if total > self.max_stored_pixels:
                raise ProblemError(
                    f"problem {self.id} has {total} pixels in its first {number} images (image "
                    f"{number} is {opened.width} x {opened.height}), over data.max_stored_pixels="
                    f"{self.max_stored_pixels}; scale the images down or raise the limit"
                )
        return sizes

    def _decode(self, number: int, image: bytes | Path) -> Image.Image:
        with self._reading(number, image), _opened(image) as opened:
            # Photographs of phones hold a small preview as a second frame.
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                raise ProblemError(
                    f"image {number} of problem {self.id} has several frames or pages; save the "
                    "one that the question is about as a PNG or JPEG"
                )
            if opened.mode in ("I", "F"):
                raise ProblemError(
                    f"image {number} of problem {self.id} stores 32 bits of grey, whose range is "
                    "not known; save it with 8 or 16 bits"
                )
            # Opening reads the header only: a file cut short fails here and not in a late step.
            opened.load()
            # Photographs may be stored rotated; the question is about the upright image.
            return ImageOps.exif_transpose(opened)

    @contextmanager
    def _reading(self, number: int, image: bytes | Path) -> Iterator[None]:
        """Turn errors of reading an image into a ``ProblemError`` that names it."""
        name = f"image {number} of problem {self.id}"
        try:
            if (size := _num_bytes(image)) > MAX_ENCODED_BYTES:
                raise ProblemError(
                    f"{name} has {size} bytes, over the {MAX_ENCODED_BYTES} that an image may "
                    "have; save the picture alone as a PNG or JPEG"
                )
            yield
        except ProblemError:
            raise
        except Image.DecompressionBombError as error:
            raise ProblemError(f"{name} is not decoded ({error}); scale it down") from None
        except UNREADABLE as error:
            place = "" if isinstance(image, bytes) else f" ({image})"
            if isinstance(error, OSError) and error.errno is not None:
                raise ProblemError(
                    f"{name} cannot be read: {error}; put the file there or correct its path"
                ) from error
            # The default text of bytes in memory is an address, which does not help.
            reason = str(error).split(" <_io.")[0]
            raise ProblemError(
                f"{name}{place} cannot be decoded: {reason}; replace it by a complete PNG or JPEG"
            ) from error


def _num_bytes(image: bytes | Path) -> int:
    return len(image) if isinstance(image, bytes) else image.stat().st_size


def _opened(image: bytes | Path) -> Image.Image:
    """Return an image of which only the header is read."""
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    return Image.open(file, formats=FORMATS)


def check_name(name: str, what: str) -> None:
    """Check that an id or a kind can stand in a line of a log.

    Raises:
        ProblemError: It is too long, or holds a character that controls how a line is shown.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise ProblemError(
            f"the {what} has {len(name)} characters; write at most {MAX_NAME_CHARACTERS}"
        )
    for character in name:
        if unicodedata.category(character) in CONTROLS or character in DIRECTIONS:
            raise ProblemError(
                f"the {what} is {name!a}, which holds the control character "
                f"{character!a}; write it without"
            )


def _check_whole(text: str, id: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ProblemError(
            f"problem {id} has a text with half a character ({text[error.start]!a} at "
            f"position {error.start}); write the text as UTF-8"
        ) from None
