"""The first rows of a data set on the hub that is not downloaded whole.

A run needs its problems again, in every epoch and when it is resumed, and a stream cannot go back.
So the rows are read once and kept as a file of Arrow.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.rows import BATCH_ROWS
from vaopd.problems.tables import new_arrow

if TYPE_CHECKING:
    import datasets

BUFFER_ROWS = 1000
"""Rows among which a stream is shuffled; they are in memory with their images."""


@dataclass(frozen=True)
class Stream:
    """Which rows of a stream are taken."""

    count: int
    seed: int | None = None
    """Of the shuffle of its files, and of its rows in a buffer; None = they keep their order."""

    def __str__(self) -> str:
        order = "in their order"
        if self.seed is not None:
            order = f"shuffled with seed {self.seed} in a buffer of {BUFFER_ROWS} rows"
        return f"the first {self.count} rows of the stream, {order}"


def kept_file(name: str, stream: Stream) -> Path:
    """Return the file in the cache of ``datasets`` that keeps the rows of a stream."""
    import datasets.config

    known = hashlib.sha256(f"{name}\x00{stream}".encode()).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "vaopd" / f"stream-{known}.arrow"


def streamed_table(
    name: str, stream: Stream, load: Callable[[], "datasets.IterableDataset"]
) -> "datasets.Dataset":
    """Return the rows of a stream as a table that is mapped from disk; read them if none are kept.

    Args:
        name: Of the data set with its configuration, split and revision.
        stream: Which rows are taken.
        load: Opens the stream.

    Raises:
        ConfigError: The stream has fewer rows.
        ProblemError: Its rows do not have the same columns.
    """
    import datasets
    import pyarrow

    kept = kept_file(name, stream)
    if not kept.is_file():
        try:
            _write(name, stream, load(), kept)
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())[:300]
            raise ProblemError(
                f"the rows of {name} cannot be streamed ({reason}); leave streaming=true out"
            ) from error
    return datasets.Dataset.from_file(str(kept))


def _write(name: str, stream: Stream, rows: "datasets.IterableDataset", kept: Path) -> None:
    if stream.seed is not None:
        rows = rows.shuffle(seed=stream.seed, buffer_size=BUFFER_ROWS)
    tables = _tables(rows.take(stream.count))
    first, total = next(tables, None), 0
    if first is None:
        raise _too_few(name, stream, total)
    schema = first.schema.remove_metadata()
    with new_arrow(kept, schema) as sink:
        for table in chain([first], tables):
            sink.write_table(table.replace_schema_metadata(None).cast(schema))
            total += len(table)
        if total < stream.count:
            raise _too_few(name, stream, total)


def _tables(rows: "datasets.IterableDataset") -> Iterator[Any]:
    """Yield tables of Arrow with the images in them, as they are stored."""
    from datasets.table import embed_table_storage

    stored: Any = rows.with_format("arrow")
    for table in stored.iter(batch_size=BATCH_ROWS):
        # The features, which say what is an image, are in the metadata.
        yield embed_table_storage(table) if table.schema.metadata else table


def _too_few(name: str, stream: Stream, total: int) -> ConfigError:
    return ConfigError(f"count={stream.count} is more than the {total} rows of {name}; lower it")
