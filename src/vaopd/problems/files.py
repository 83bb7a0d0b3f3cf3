"""Rows of local files and folders."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from vaopd.errors import ProblemError
from vaopd.problems.columns import check_columns
from vaopd.problems.rows import (
    NO_COLUMNS,
    VIRL39K_PARQUET,
    Row,
    csv_rows,
    json_rows,
    jsonl_rows_or_errors,
    not_parquet,
    numbered_lines,
    parquet_rows,
)
from vaopd.problems.tables import is_saved, parquet_table, saved_table, table_rows

SPLITS = frozenset({"train", "validation", "val", "dev", "test"})
FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""Suffixes of the files that are read."""

METADATA = "metadata"
"""Stem of the file that describes a folder of images, as ``datasets`` names it."""

MAX_PARQUET_BYTES = 256 * 2**20
"""Bytes of the parquet files of a source above which their images are not held in memory."""

FIRST_ROWS = 100
"""Rows of JSON in which each column that a recipe maps must come."""


def local_rows(
    path: Path, split: str, columns: Mapping[str, str] = NO_COLUMNS
) -> Iterator[Row | ProblemError]:
    """Yield the rows of a file, or of a folder's files of one split.

    A line that is not a JSON object, or has another number of cells than the header of a CSV,
    gives an error instead of a row.

    Args:
        path: File or folder.
        split: Of the folder.
        columns: Names of columns that a recipe maps, by our fields.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: The file is missing or not readable.
    """
    roots = ((path if path.is_dir() else path.parent).resolve(),)
    if is_saved(path):
        table, name = saved_table(path, split), f"{path.name}@{split}"
        yield from table_rows(table, name, columns, folder=path, roots=roots)
        return
    files = files_of(path, split)
    is_large = sum(one.stat().st_size for one in files if one.is_file()) > MAX_PARQUET_BYTES
    for file in files:
        if is_large and file.suffix == ".parquet":
            table = parquet_table(file, columns)
            yield from table_rows(table, file.name, columns, folder=file.parent, roots=roots)
        elif file.stem == METADATA:
            for row in _rows_of(file, roots, columns):
                yield replace(row, is_flat=True) if isinstance(row, Row) else row
        else:
            yield from _rows_of(file, roots, columns)


def _rows_of(
    file: Path, roots: tuple[Path, ...], columns: Mapping[str, str]
) -> Iterator[Row | ProblemError]:
    if file.suffix == ".parquet":
        return parquet_rows(file, roots, columns)
    if file.suffix == ".csv":
        return csv_rows(file, roots, columns)
    if file.suffix == ".jsonl":
        return _with_columns(jsonl_rows_or_errors(file, roots), columns, file.name)
    if file.suffix == ".json":
        return _with_columns(json_rows(file, roots), columns, file.name)
    raise ProblemError(
        f"{file} is not a .parquet, .jsonl, .json or .csv file; convert it to one of them"
    )


def _with_columns(
    rows: Iterator[Row | ProblemError], columns: Mapping[str, str], place: str
) -> Iterator[Row | ProblemError]:
    """Yield rows whose columns may differ, after a check of the first ones."""
    if columns:
        first = list(islice(rows, FIRST_ROWS))
        names = {name for row in first if isinstance(row, Row) for name in row.cells}
        check_columns(names, columns, place)
        rows = chain(first, rows)
    yield from rows


def files_of(path: Path, split: str) -> list[Path]:
    """Return the data files of a split of a folder, in the order of their names, or the file.

    Parquet files named after splits (``train-00000-of-00002.parquet``, as the hub writes them)
    are chosen by split; a folder whose parquet files carry no split names is one split.

    Raises:
        ProblemError: The folder holds no file of the split.
    """
    if not path.is_dir():
        return [path]
    folder = path
    images = [folder / split, *([folder] if split == "train" else ())]
    for file in (
        inner / f"{METADATA}{suffix}" for inner in images for suffix in (".jsonl", ".csv")
    ):
        if file.is_file():
            return [file]
    # A file of one split must never be used for another.
    whole = ("data.jsonl", VIRL39K_PARQUET) if split == "train" else ()
    for name in (f"{split}.jsonl", *whole):
        if (folder / name).is_file():
            return [folder / name]
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not files:
        names = [f"{name}{suffix}" for suffix in (".json", ".csv")
                 for name in (split, *(("data",) if split == "train" else ()))]  # fmt: skip
        for name in names:
            if (folder / name).is_file():
                return [folder / name]
        raise ProblemError(
            f"{folder} holds no data.jsonl, {split}.jsonl or *.parquet (nor a .json or .csv of "
            "these names); name the folder that the data files lie in"
        )
    splits = {file: _split_of(file) for file in files}
    named = SPLITS.intersection(splits.values())
    chosen = [file for file in files if splits[file] == split]
    if not chosen and (named or split != "train"):
        raise ProblemError(
            f"{folder} has no files of the split {split}; append one of "
            f"{', '.join('@' + name for name in sorted(set(splits.values())))}"
        )
    return chosen or files


def _split_of(file: Path) -> str:
    """Return the split in a file's name, at any place, else the first word of the name."""
    words = re.split(r"[-_.]", file.name)
    return next((word for word in words if word in SPLITS), words[0])


def count_rows(path: Path, split: str, columns: Mapping[str, str] = NO_COLUMNS) -> int:
    """Return the number of rows of a file, or of one split of a folder, without reading cells.

    Raises:
        ProblemError: The file is missing or not readable.
    """
    if is_saved(path):
        return len(saved_table(path, split))
    return sum(_count(file, columns) for file in files_of(path, split))


def _count(file: Path, columns: Mapping[str, str]) -> int:
    if file.suffix == ".jsonl":
        return sum(1 for _ in numbered_lines(file))
    if file.suffix != ".parquet":
        return sum(1 for _ in _rows_of(file, (), columns))
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise not_parquet(file, error) from error
