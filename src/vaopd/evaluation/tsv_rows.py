"""Rows of TSV and CSV files, whose images stay in the file until they are used."""

import ast
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vaopd.errors import ProblemError
from vaopd.evaluation.rows import SHORTEST_BASE64, PlacedRow, RowOrError, TableImage, image_of


class TsvTable:
    """A TSV of VLMEvalKit or any CSV: a header row, and ``image`` with base64 texts or paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delimiter = "," if path.suffix == ".csv" else "\t"
        self.offsets: list[int] = []
        self.rows_by_index: dict[str, int] = {}
        self.counts: list[int] = []
        """Images of each row."""
        self.header: list[str] = []

    def rows(self) -> Iterator[RowOrError]:
        """Yield the rows without images; only the offset of each image in the file is kept."""
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        self.offsets.clear()
        self.counts.clear()
        with self.path.open("rb") as file:
            reader, position = self._reader(file)
            self.header = next(reader, [])
            if not {"image", "images", "image_path"} & set(self.header):
                raise ProblemError(
                    f"{self.path} has no column image or images; name the column of the images so"
                )
            while True:
                start = position()
                cells = next(reader, None)
                if cells is None:
                    return
                self.offsets.append(start)
                self.counts.append(0)
                place = f"{self.path.name} row {len(self.offsets)}"
                try:
                    yield self._row(cells, len(self.offsets) - 1, place)
                except ProblemError as error:
                    yield f"{place} {error}"

    def _row(self, cells: list[str], number: int, place: str) -> PlacedRow:
        if len(cells) != len(self.header):
            raise ProblemError(
                f"has {len(cells)} cells and the header {len(self.header)}; download the file again"
            )
        named: dict[str, Any] = dict(zip(self.header, cells, strict=True))
        self.rows_by_index[named.get("index", str(number))] = number
        paths = named.get("images") or named.get("image_path") or ""
        if paths or _is_path(named.get("image", "")):
            listed = _listed(paths or named["image"])
            named["images"] = [image_of(one) for one in listed]
            named["images"] = [
                self.path.parent / one if isinstance(one, Path) else one for one in named["images"]
            ]
            return PlacedRow(place, {k: v for k, v in named.items() if v != "" and k != "image"})
        self.counts[number] = self._count(named.get("image", ""), number)
        named["image"] = [
            TableImage(self, number, "image", place, position)
            for position in range(self.counts[number])
        ]
        return PlacedRow(place, {k: v for k, v in named.items() if v != ""})

    def _count(self, cell: str, number: int) -> int:
        """Return the number of images in a cell; 0 if it is empty."""
        pointed = self._pointed(cell)
        if pointed is not None:
            return self.counts[pointed] if pointed < number else 1
        try:
            return len(_listed(cell))
        except ValueError as error:
            raise ProblemError(
                f"has an image cell that begins like a list and does not read as one ({error}); "
                "download the file again"
            ) from None

    def _pointed(self, cell: str) -> int | None:
        """Return the row that holds the image if the cell is only an index; else ``None``."""
        return self.rows_by_index.get(cell) if len(cell) < SHORTEST_BASE64 else None

    def image(self, row: int, column: str) -> Any:
        """Return the base64 texts of one row, or of the row that it points to."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[row])
            reader, _ = self._reader(file)
            cell = dict(zip(self.header, next(reader), strict=True))[column]
        pointed = self._pointed(cell)
        return _listed(cell) if pointed in (None, row) else self.image(pointed, column)

    def _reader(self, file: Any) -> tuple[Any, Any]:
        # A row may have several lines; csv reads exactly the lines of one row at a time.
        position = file.tell()

        def lines() -> Iterator[str]:
            nonlocal position
            for line in iter(file.readline, b""):
                position += len(line)
                yield line.decode()

        return csv.reader(lines(), delimiter=self.delimiter), lambda: position


def _listed(cell: str) -> list[str]:
    """Return the base64 texts of a cell; several are written as a Python or a JSON list.

    Raises:
        ValueError: The list does not parse, or a member is not a text.
    """
    if not cell.startswith("["):
        return [cell] if cell else []
    try:
        listed = json.loads(cell)
    except ValueError:
        try:
            listed = ast.literal_eval(cell)
        except (SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(str(error).split(" (")[0]) from None
    if not all(isinstance(one, str) for one in listed):
        raise ValueError("not all of it is text")
    return listed


def _is_path(cell: str) -> bool:
    """Whether a cell names a file: base64 has no dot, and an index has no letters."""
    return "." in cell[:300] and not cell.startswith("data:")
