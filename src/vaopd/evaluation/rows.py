"""Rows of a benchmark from the hub or from files; images are read only when they are used.

Hub data sets, parquet, JSONL, JSON (a list, or an object of rows) and VLMEvalKit's TSV with base64
images are read; a cell that holds an image becomes a ``StoredImage``.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vaopd.errors import ProblemError
from vaopd.problems.hub import unreachable
from vaopd.problems.rows import jsonl_rows_or_errors

SUFFIXES = (".jsonl", ".json", ".parquet", ".tsv", ".csv")
_BATCH_ROWS = 256
SHORTEST_BASE64 = 65
"""Shorter image cells in a TSV of VLMEvalKit hold the index of the row with the image."""


@dataclass(frozen=True)
class PlacedRow:
    """One row with its place, which begins every error about it."""

    place: str
    cells: Mapping[str, Any]


RowOrError = PlacedRow | str
"""A row, or one sentence with the error of a bad row."""


@runtime_checkable
class Table(Protocol):
    """Rows of one file or data set."""

    def rows(self) -> Iterator[RowOrError]:
        """Yield the rows in order."""
        ...


@runtime_checkable
class ImageTable(Table, Protocol):
    """A table whose image cells are read when they are used."""

    def image(self, row: int, column: str) -> Any:
        """Return one image cell as it is stored; rows count from 0."""
        ...


@dataclass(frozen=True, eq=False)
class TableImage:
    """An image cell of a table, read when it is used."""

    table: ImageTable
    row: int
    column: str
    place: str
    position: int = 0
    """Number of the image, from 0, in a cell that holds a list."""

    def load(self) -> bytes | Path:
        """Return the encoded image.

        Raises:
            ProblemError: The cell is empty or does not hold an image.
        """
        cell = self.table.image(self.row, self.column)
        if isinstance(cell, list):
            cell = cell[self.position] if self.position < len(cell) else None
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            cell = decode_base64(cell) if len(cell) >= SHORTEST_BASE64 else Path(cell)
        if not isinstance(cell, bytes | Path):
            raise ProblemError(
                f"{self.place}: {self.column} holds no image; download the file with its images"
            )
        return cell


def open_table(path: Path) -> Table:
    """Return the table of a file by its suffix.

    Raises:
        ProblemError: The suffix is not in ``SUFFIXES``.
    """
    if path.suffix in (".jsonl", ".json"):
        return JsonTable(path)
    if path.suffix == ".parquet":
        return ParquetTable(path)
    if path.suffix in (".tsv", ".csv"):
        # Imported here, because that module imports this one.
        from vaopd.evaluation.tsv_rows import TsvTable

        return TsvTable(path)
    raise ProblemError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}; convert it to one")


@dataclass(frozen=True)
class JsonTable:
    """JSONL, a JSON list, or a JSON object whose values are rows; images are paths or base64."""

    path: Path

    def rows(self) -> Iterator[RowOrError]:
        """Yield the rows; relative image paths become absolute."""
        for place, cells in self._objects():
            if isinstance(cells, str):
                yield cells
                continue
            try:
                yield PlacedRow(place, self._with_images(cells))
            except ProblemError as error:
                yield f"{place}: {error}"

    def _objects(self) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """Yield the place of each row with its cells, or with its error."""
        if self.path.suffix == ".jsonl":
            for row in jsonl_rows_or_errors(self.path):
                yield ("", str(row)) if isinstance(row, ProblemError) else (row.place, row.cells)
            return
        try:
            content = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ProblemError(f"{self.path} is not JSON ({error}); download it again") from None
        listed = list(content.values()) if isinstance(content, dict) else content
        for number, cells in enumerate(listed, start=1):
            place = f"{self.path.name} row {number}"
            if not isinstance(cells, dict):
                cells = f"{place} is a JSON {type(cells).__name__}, expected an object"
            yield place, cells

    def _with_images(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        named = {key: value for key, value in cells.items() if is_image_column(key)}
        return {**cells, **{key: self._resolve(value) for key, value in named.items()}}

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._resolve(one) for one in value]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path") or value.get("url")
        if not isinstance(value, str) or not value:
            return None
        found = image_of(value)
        return self.path.parent / found if isinstance(found, Path) else found


@dataclass(frozen=True)
class ParquetTable:
    """A parquet file as the hub writes it: image columns are structs of bytes and path."""

    path: Path

    def rows(self) -> Iterator[RowOrError]:
        """Yield the rows without reading the image columns."""
        # Imported here: it takes half a second, and JSON does not need it.
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                schema = file.schema_arrow
                images = [field.name for field in schema if _holds_bytes(field.type)]
                columns = [name for name in schema.names if name not in images]
                number = 0
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                    for cells in batch.to_pylist():
                        place = f"{self.path.name} row {number + 1}"
                        stored = {c: TableImage(self, number, c, place) for c in images}
                        yield PlacedRow(place, {**cells, **stored})
                        number += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ProblemError(
                f"{self.path} cannot be read as parquet: {reason}; download it again"
            ) from error

    def image(self, row: int, column: str) -> Any:
        """Return one image cell; its row group stays in memory for the next cells."""
        start, cells = _row_group(self.path, column, self._group_of(row))
        return cells[row - start]

    def _group_of(self, row: int) -> int:
        first = 0
        for group, count in enumerate(_group_sizes(self.path)):
            first += count
            if row < first:
                return group
        raise ProblemError(f"{self.path} has no row {row + 1}; it changed while it was read")


@lru_cache(maxsize=4)
def _group_sizes(path: Path) -> tuple[int, ...]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        metadata = file.metadata
        return tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))


@lru_cache(maxsize=8)
def _row_group(path: Path, column: str, group: int) -> tuple[int, list[Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        cells = file.read_row_group(group, columns=[column])[column].to_pylist()
    return sum(_group_sizes(path)[:group]), cells


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


@dataclass(frozen=True, eq=False)
class HubTable:
    """A split of a data set on the hub, mapped from disk by ``datasets``."""

    name: str
    data: Any

    def rows(self) -> Iterator[RowOrError]:
        """Yield the rows without the image columns."""
        import datasets

        images = [
            name
            for name, feature in self.data.features.items()
            if isinstance(feature, datasets.Image)
            or isinstance(getattr(feature, "feature", None), datasets.Image)
        ]
        for number, cells in enumerate(self.data.remove_columns(images)):
            place = f"{self.name} row {number + 1}"
            stored = {c: TableImage(self, number, c, place) for c in images}
            yield PlacedRow(place, {**cells, **stored})

    def image(self, row: int, column: str) -> Any:
        """Return one image cell, encoded."""
        import datasets

        kind = datasets.Image(decode=False)
        one = self.data.select([row]).select_columns([column])
        is_list = not isinstance(self.data.features[column], datasets.Image)
        return one.cast_column(column, datasets.List(kind) if is_list else kind)[0][column]


def hub_tables(
    hub_id: str, configs: tuple[str, ...], split: str, revision: str | None
) -> list[Table]:
    """Return one table for each configuration of a hub data set.

    Raises:
        ProblemError: The hub cannot be reached or has no such data set, configuration or split.
    """
    # Imported here: it takes one and a half seconds, and local files do not need it.
    import datasets

    tables: list[Table] = []
    for config in configs or (None,):
        name = f"{hub_id}{f'/{config}' if config else ''}@{split}"
        try:
            data = datasets.load_dataset(hub_id, config, split=split, revision=revision)
        # Unreachable, unknown and gated names are OSErrors, an unknown split is a ValueError.
        except (OSError, ValueError) as error:
            raise unreachable(name, error) from error
        tables.append(HubTable(name, data))
    return tables


def is_image_column(name: str) -> bool:
    """Whether a column of a JSON row holds image paths: ``image``, ``images``, ``image_3``, ..."""
    head, _, tail = name.partition("_")
    return name in ("images", "decoded_image") or (
        head == "image" and (not tail or tail == "path" or tail.isdigit())
    )


def image_of(value: Any) -> "bytes | Path | None":
    """Return the image of one cell: bytes, a path, base64, a data URL, or a mapping of one.

    Raises:
        ProblemError: The cell begins like base64, but does not decode.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes | Path):
        return value
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(("http://", "https://")):
        raise ProblemError(f"the image {value:.60} is an address; download it and name the file")
    is_encoded = value.startswith("data:") or len(value) > 1000
    return decode_base64(value) if is_encoded else Path(value)


def decode_base64(text: str) -> bytes:
    """Return the bytes of a base64 image, with or without a ``data:`` prefix.

    Raises:
        ProblemError: The text is not base64.
    """
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise ProblemError(f"an image cell is not base64 ({error}); download the file") from None
