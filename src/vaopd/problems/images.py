"""Images of rows: which paths and addresses are read, and how large they may be."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaopd.config import MAX_STORED_PIXELS, DataConfig
from vaopd.errors import ProblemError
from vaopd.problems.bad_rows import shown
from vaopd.problems.fetching import fetch_image
from vaopd.problems.problem import MappedImage, StoredImage

MAX_IMAGES = 1000
"""Most images of a problem; no model takes as many in one prompt."""


@dataclass(frozen=True)
class ImageRules:
    """What the image cells of a source may name."""

    allow_outside: bool = False
    """Whether paths may lead out of the folder of the data."""

    fetch: Callable[[str], Path] | None = None
    """Downloads an address and returns the path of the file; None = addresses are refused."""

    allow_text_only: bool = False
    """Whether a problem may have no image."""

    max_stored_pixels: int = MAX_STORED_PIXELS
    """Most pixels of all images of a problem together, checked before they are decoded."""

    def read(
        self, cells: Any, column: str, folder: Path, roots: tuple[Path, ...]
    ) -> tuple[StoredImage, ...]:
        """Return the images of one cell, in order: encoded, or where they are stored.

        Args:
            cells: A list of encoded images, paths or addresses.
            column: Its name, for errors.
            folder: Folder of relative paths.
            roots: Folders that hold the images of the source, without symbolic links.

        Raises:
            ProblemError: A cell is not an image, or names one that may not be read.
        """
        if not isinstance(cells, list):
            raise ProblemError(
                f"{column} is of type {type(cells).__name__}; write a list of images"
            )
        if len(cells) > MAX_IMAGES:
            raise ProblemError(
                f"{column} holds {len(cells)} images; write at most {MAX_IMAGES} for a problem"
            )
        return tuple(self._image(cell, column, folder, roots) for cell in cells)

    def _image(self, cell: Any, column: str, folder: Path, roots: tuple[Path, ...]) -> StoredImage:
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes | MappedImage):
            return cell
        if not isinstance(cell, str) or not cell:
            raise ProblemError(
                f"{column} holds {cell!r:.40}; "
                "expected encoded image bytes, or a path relative to the folder of the file"
            )
        if cell.lower().startswith(("http://", "https://")):
            return self._fetched(cell)
        return self._inside(cell, folder, roots)

    def _fetched(self, address: str) -> Path:
        if self.fetch is None:
            raise ProblemError(
                f"the image {shown(address)} is an address; set data.allow_urls=true to download "
                "images from public servers, or download it and name the file"
            )
        return self.fetch(address)

    def _inside(self, cell: str, folder: Path, roots: tuple[Path, ...]) -> Path:
        path = folder / cell
        # Checked here, so that a long run does not fail later. os.path.isfile, because the method
        # of Path raises an error for a name that is too long.
        if not os.path.isfile(path):
            raise ProblemError(
                f"the image {shown(cell)} is not in {folder}; unpack the images there or correct "
                "the path"
            )
        real = path.resolve()
        if self.allow_outside or any(real.is_relative_to(root) for root in roots):
            return path
        leads = "" if real == path else f" leads to {real}, which"
        raise ProblemError(
            f"the image {shown(cell)}{leads} is outside of {roots[0]}; move the images there, or "
            "set data.allow_outside=true to read images from any folder"
        )


def image_rules(data: DataConfig) -> ImageRules:
    """Return the rules that a recipe sets."""
    return ImageRules(
        allow_outside=data.allow_outside,
        fetch=fetch_image if data.allow_urls else None,
        allow_text_only=data.allow_text_only,
        max_stored_pixels=data.max_stored_pixels,
    )
