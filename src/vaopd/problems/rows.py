"""Rows of problems in files, before their cells are converted."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vaopd.errors import ProblemError
from vaopd.problems.bad_rows import shown
from vaopd.problems.columns import check_header, readable_columns

VIRL39K_NAME = "TIGER-Lab/ViRL39K"
VIRL39K_PARQUET = "39Krelease.parquet"
MAX_LINE_BYTES = 16 * 2**20
"""Most bytes of a line of JSONL, which holds texts and paths, and no images."""

MAX_JSON_BYTES = 2**30
"""Most bytes of a JSON file, which is read whole."""

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
BY_PARTS: dict[str, Any] = {"pre_buffer": False, "buffer_size": 2**20}
"""Options of pyarrow to read a column by parts; otherwise a whole row group is in memory, and some
files have all their rows in one."""

BATCH_ROWS = 64
"""Rows that are in memory together, with their images."""


@dataclass(frozen=True)
class Row:
    """One row of a file, with its place for errors."""

    place: str
    """File and row number from 1, as in ``train.parquet row 3``."""

    cells: Mapping[str, Any]

    folder: Path
    """Folder of relative image paths."""

    roots: tuple[Path, ...] = ()
    """Folders that hold the images of the source, without symbolic links; () = ``folder``."""

    is_flat: bool = False
    """Whether an image needs no list and a question no placeholder, as in CSV and in tables."""

    @property
    def inside(self) -> tuple[Path, ...]:
        """The folders out of which an image path must not lead, without symbolic links."""
        return self.roots or (self.folder.resolve(),)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file.

    Raises:
        ProblemError: A line is not a JSON object; the error names the line.
    """
    for row in jsonl_rows_or_errors(path):
        if isinstance(row, ProblemError):
            raise row
        yield row


def jsonl_rows_or_errors(path: Path, roots: tuple[Path, ...] = ()) -> Iterator[Row | ProblemError]:
    """Yield the rows of a JSONL file, and an error for each line that is not a JSON object.

    Args:
        path: The file.
        roots: See ``Row``.

    Raises:
        ProblemError: A line is longer than any row.
    """
    for number, line in numbered_lines(path):
        place = f"{path.name} row {number}"
        try:
            cells = json.loads(line)
        # Bytes that are not UTF-8 raise a ValueError too.
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            yield ProblemError(f"{place} is not JSON ({reason}); write one object on each line")
            continue
        if not isinstance(cells, dict):
            found = type(cells).__name__
            yield ProblemError(f"{place} is a JSON {found}; write one object on each line")
            continue
        yield Row(place, cells, path.parent, roots)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1, one in memory at a time.

    Raises:
        ProblemError: A line is longer than any row.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ProblemError(
                    f"{path.name} row {number} has more than {MAX_LINE_BYTES // 2**20} MiB; write "
                    "one JSON object on each line, with its images as paths"
                )
            if line.strip():
                yield number, line


def not_parquet(file: Path, error: Exception) -> ProblemError:
    """Return the error about a parquet file that is damaged."""
    reason = " ".join(str(error).split())[:300]
    return ProblemError(f"{file} cannot be read as parquet: {reason}; download or write it again")


def parquet_rows(
    path: Path, roots: tuple[Path, ...] = (), columns: Mapping[str, str] = NO_COLUMNS
) -> Iterator[Row]:
    """Yield the rows of a parquet file, without the columns that no problem needs.

    Raises:
        ConfigError: A column that a recipe maps does not exist.
        ProblemError: The file is damaged, or its columns fit no layout.
    """
    # Imported here, because it takes half a second and other sources do not need it.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, **BY_PARTS) as file:
            try:
                names = readable_columns(file.schema_arrow.names, columns, path.name)
            except ProblemError as error:
                raise ProblemError(f"{path.name}: {error}") from None
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name} row {number}", cells, path.parent, roots)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise not_parquet(path, error) from error


def json_rows(path: Path, roots: tuple[Path, ...] = ()) -> Iterator[Row | ProblemError]:
    """Yield the rows of a JSON file that is one array of objects, and errors for other elements.

    Raises:
        ProblemError: The file is not one JSON array, or is larger than any file of texts.
    """
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ProblemError(
            f"{path.name} has {size} bytes, over the {MAX_JSON_BYTES} that are read at once; write "
            "it as .jsonl, with one object on each line"
        )
    try:
        content = json.loads(path.read_bytes())
    # Bytes that are not UTF-8 raise a ValueError too.
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ProblemError(
            f"{path.name} is not JSON ({reason}); write one array of objects, or rename it to "
            ".jsonl if it has one object on each line"
        ) from None
    if not isinstance(content, list):
        raise ProblemError(
            f"{path.name} is a JSON {type(content).__name__}; write one array of objects"
        )
    for number, cells in enumerate(content, start=1):
        place = f"{path.name} row {number}"
        if isinstance(cells, dict):
            yield Row(place, cells, path.parent, roots)
        else:
            found = type(cells).__name__
            yield ProblemError(f"{place} is a JSON {found}; write an array of objects")


def csv_rows(
    path: Path, roots: tuple[Path, ...] = (), columns: Mapping[str, str] = NO_COLUMNS
) -> Iterator[Row | ProblemError]:
    """Yield the rows of a CSV file with a header, and an error for each with too many or few cells.

    Empty cells are absent. A place names the line on which the row begins.

    Raises:
        ConfigError: A column that a recipe maps does not exist.
        ProblemError: The file is not UTF-8, its header names a column twice, or a quote is not
            closed, after which no row is certain.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    # Excel begins its files with a byte order mark.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_short_lines(path, file), strict=True)
        header = _csv_header(path, reader)
        check_header([name for name in header if name], columns, path.name)
        while True:
            place = f"{path.name} line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise _not_csv(place, error) from None
            if cells is None:
                return
            if len(cells) == len(header):
                named = {name: cell for name, cell in zip(header, cells, strict=True) if name}
                found = {name: cell or None for name, cell in named.items()}
                yield Row(place, found, path.parent, roots, is_flat=True)
            elif cells:
                yield ProblemError(
                    f"{place} has {len(cells)} cells and the header {len(header)}; put quotes "
                    "around a cell that holds a comma"
                )


def _short_lines(path: Path, file: Any) -> Iterator[str]:
    """Yield the lines of a text file, one in memory at a time."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise ProblemError(
                f"{path.name} has a line of more than {MAX_LINE_BYTES // 2**20} MiB; write images "
                "as paths"
            )
        yield line


def _csv_header(path: Path, reader: Any) -> list[str]:
    place = f"{path.name} line 1"
    try:
        header = [name.strip() for name in next(reader, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise _not_csv(place, error) from None
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise ProblemError(f"{place} names the column {shown(twice[0])} twice; rename one of them")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise ProblemError(
            f"{place} is {shown(header[0])}, without a comma; save the file with commas between "
            "its cells"
        )
    return header


def _not_csv(place: str, error: Exception) -> ProblemError:
    if isinstance(error, UnicodeDecodeError):
        return ProblemError(f"{place} or a later one is not UTF-8 ({error}); save it as UTF-8")
    if "end of data" in str(error) or "field limit" in str(error):
        return ProblemError(
            f"{place} begins a cell with a quote that is not closed; close it, and write a quote "
            "inside a quoted cell twice"
        )
    return ProblemError(f"{place} is not CSV ({error}); write a quote inside a quoted cell twice")
