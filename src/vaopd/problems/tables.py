"""Rows of ``datasets`` tables: of the hub, of folders, of large parquet files, or from Python.

Such a table is mapped from disk, so its images are read from there when they are used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaopd.config.columns import OWN_NAMES
from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.columns import check_columns, readable_columns
from vaopd.problems.problem import MappedImage
from vaopd.problems.rows import BATCH_ROWS, NO_COLUMNS, Row, not_parquet

if TYPE_CHECKING:
    import datasets

MANY = "dataset_dict.json"
"""File of a folder of ``save_to_disk`` with several splits."""

ONE = ("state.json", "dataset_info.json")
"""Files of a folder of ``save_to_disk`` with one split."""


def table_rows(
    table: "datasets.Dataset",
    name: str,
    columns: Mapping[str, str] = NO_COLUMNS,
    roots: tuple[Path, ...] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a table; images that it holds become ``MappedImage``.

    Args:
        table: The table.
        name: Its name, for errors.
        columns: Names of columns that a recipe maps, by our fields.
        roots: Folders that hold image files which the table names; the caches of the hub if None.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: The columns fit no layout.
    """
    # Imported here, because it takes one and a half seconds and other files do not need it.
    import datasets

    if not isinstance(table, datasets.Dataset):
        raise ConfigError(
            f"{name} is a {type(table).__name__}; give one split of it as a datasets.Dataset"
        )
    check_columns(table.column_names, columns, name)
    try:
        table = table.select_columns(readable_columns(table.column_names, columns, name))
    except ProblemError as error:
        raise ProblemError(f"{name}: {error}") from None
    # As it is stored: decoding images takes time and changes them.
    stored: Any = table.with_format("arrow")
    roots = _caches() if roots is None else roots
    images = {columns.get("image", "image"), *OWN_NAMES["image"]}.intersection(table.column_names)
    number = 0
    for batch in stored.iter(batch_size=BATCH_ROWS):
        for cells in batch.to_pylist():
            mapped = {one: _mapped(cells[one], stored, number, one) for one in images}
            number += 1
            yield Row(f"{name} row {number}", {**cells, **mapped}, Path(), roots)


def _mapped(cell: Any, table: Any, row: int, column: str) -> Any:
    """Return an image cell, or the list of its images, with references instead of bytes."""
    several = cell if isinstance(cell, list) else [cell]
    found = [
        MappedImage(table, row, column, position) if _holds_bytes(one) else one
        for position, one in enumerate(several)
    ]
    return found if isinstance(cell, list) else found[0]


def _holds_bytes(cell: Any) -> bool:
    return isinstance(cell, bytes) or (isinstance(cell, Mapping) and bool(cell.get("bytes")))


def _caches() -> tuple[Path, ...]:
    """Return the folders of images that data sets of the hub name."""
    import datasets.config
    import huggingface_hub

    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return tuple(Path(cache).resolve() for cache in caches)


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk`` of ``datasets``."""
    return (folder / MANY).is_file() or all((folder / name).is_file() for name in ONE)


def saved_table(folder: Path, split: str) -> "datasets.Dataset":
    """Return one split of a folder that ``save_to_disk`` wrote.

    Raises:
        ProblemError: The folder is damaged, or has no such split.
    """
    import datasets
    import pyarrow

    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProblemError(f"{folder} cannot be read ({reason}); save it to disk again") from error
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or "train"): found}
    if split not in found:
        names = ", ".join(f"@{name}" for name in found)
        raise ProblemError(f"{folder} has no split {split}; append one of {names}")
    return found[split]


def parquet_table(file: Path, columns: Mapping[str, str]) -> "datasets.Dataset":
    """Return a parquet file as a table, which ``datasets`` keeps as a file in its cache.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: The file is damaged, or its columns fit no layout.
    """
    import datasets
    import datasets.exceptions
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
        wanted = readable_columns(names, columns, file.name)
        # Few rows at a time, because a file may have all its rows in one group.
        table = datasets.Dataset.from_parquet(str(file), columns=wanted, batch_size=BATCH_ROWS)
    except (pyarrow.ArrowException, OSError, datasets.exceptions.DatasetsError) as error:
        raise not_parquet(file, error) from error
    except ProblemError as error:
        raise ProblemError(f"{file.name}: {error}") from None
    assert isinstance(table, datasets.Dataset)
    return table
