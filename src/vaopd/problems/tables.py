"""Rows of ``datasets`` tables: of the hub, of folders, of large parquet files, or from Python.

Such a table is mapped from disk, so its images are read from there when they are used.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaopd.config.columns import OWN_NAMES
from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.columns import check_columns, readable_columns
from vaopd.problems.problem import MappedImage
from vaopd.problems.rows import BATCH_ROWS, BY_PARTS, NO_COLUMNS, Row, not_parquet

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
    *,
    folder: Path | None = None,
    roots: tuple[Path, ...] = (),
) -> Iterator[Row]:
    """Yield the rows of a table; images that it holds become ``MappedImage``.

    Args:
        table: The table.
        name: Its name, for errors.
        columns: Names of columns that a recipe maps, by our fields.
        folder: Folder of relative image paths; None = the table is of the hub, whose images are in
            its caches.
        roots: See ``Row``.

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
    if folder is None:
        folder, roots = Path(), _caches()
    kinds = {field.name: field.type for field in table.data.schema}
    own = {name for field in ("image", "teacher_images")
           for name in (columns.get(field, field), *OWN_NAMES[field])}  # fmt: skip
    images = {one for one in own.intersection(table.column_names) if _holds_bytes(kinds[one])}
    number = 0
    for batch in stored.iter(batch_size=BATCH_ROWS):
        cells = {one: _cells(batch.column(one), one in images) for one in batch.column_names}
        for row in zip(*cells.values(), strict=True):
            named = dict(zip(cells, row, strict=True))
            named |= {one: _mapped(named[one], stored, number, one) for one in images}
            number += 1
            yield Row(f"{name} row {number}", named, folder, roots, is_flat=True)


def _holds_bytes(kind: Any) -> bool:
    """Return whether a type of Arrow is that of encoded images, or of lists of them."""
    from pyarrow import types

    if types.is_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _cells(column: Any, is_image: bool) -> list[Any]:
    """Return the cells of a column of Arrow, those of images with lengths instead of bytes."""
    return [
        cell
        for chunk in column.chunks
        for cell in (_lengths(chunk) if is_image else chunk).to_pylist()
    ]


def _lengths(array: Any) -> Any:
    """Return an array with the number of bytes of each image, whose bytes are not read from disk.

    A list without a value becomes an empty one.
    """
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if pyarrow.types.is_list(kind):
        return pyarrow.ListArray.from_arrays(array.offsets, _lengths(array.values))
    if pyarrow.types.is_struct(kind):
        fields = [_lengths(field) for field in array.flatten()]
        return pyarrow.StructArray.from_arrays(fields, [field.name for field in kind])
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return pyarrow.compute.binary_length(array)  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    return array


def _mapped(cell: Any, table: Any, row: int, column: str) -> Any:
    """Return an image cell, or the list of its images, with references instead of lengths."""
    several = cell if isinstance(cell, list) else [cell]
    found = [
        MappedImage(table, row, column, position) if _length(one) else one
        for position, one in enumerate(several)
    ]
    return found if isinstance(cell, list) else found[0]


def _length(cell: Any) -> int:
    length = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return length if isinstance(length, int) else 0


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
    """Return a parquet file as a table, which is kept as a file of Arrow in the cache of datasets.

    Parquet is compressed, so that no single row can be read from it.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: The file is damaged, or its columns fit no layout.
    """
    import datasets
    import datasets.config
    import pyarrow
    import pyarrow.parquet

    try:
        names = readable_columns(pyarrow.parquet.read_schema(file).names, columns, file.name)
        state = file.stat()
        known = (str(file.resolve()), state.st_size, state.st_mtime_ns, names)
        name = hashlib.sha256(repr(known).encode()).hexdigest()
        cached = Path(datasets.config.HF_DATASETS_CACHE) / "vaopd" / f"{name}.arrow"
        if not cached.is_file():
            _write_arrow(file, names, cached)
        return datasets.Dataset.from_file(str(cached))
    except (pyarrow.ArrowException, OSError) as error:
        raise not_parquet(file, error) from error
    except ProblemError as error:
        raise ProblemError(f"{file.name}: {error}") from None


def _write_arrow(file: Path, columns: list[str], output: Path) -> None:
    """Write columns of a parquet file as a file of Arrow, of which few rows are in memory."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, **BY_PARTS) as source:
        schema = pyarrow.schema([source.schema_arrow.field(name) for name in columns])
        with new_arrow(output, schema) as sink:
            for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                sink.write_batch(batch.select(columns).replace_schema_metadata(None))


@contextmanager
def new_arrow(output: Path, schema: Any) -> Iterator[Any]:
    """Yield a writer of a file of Arrow, which gets its name when it is complete."""
    import pyarrow
    import pyarrow.ipc

    output.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same file.
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with pyarrow.ipc.new_stream(str(partial), schema) as sink:
            yield sink
        partial.replace(output)
        pyarrow.default_memory_pool().release_unused()
    finally:
        partial.unlink(missing_ok=True)
