"""Rows of problems in files and on the hub, before their cells are converted.

Three layouts of rows are read; their columns decide which one it is:

- geometry3k: ``images`` (list), ``problem``, ``answer``; optional ``id``, ``kind`` (or
  ``category``), ``references``;
- ViRL39K: ``question``, ``answer``, ``image`` (list of paths); optional ``qid``, ``category``;
- conversations: ``messages``, ``conversations`` or ``prompt``, see `conversations`.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaopd.errors import ProblemError
from vaopd.problems.bad_rows import shown

VIRL39K_NAME = "TIGER-Lab/ViRL39K"
VIRL39K_PARQUET = "39Krelease.parquet"
SPLITS = frozenset({"train", "validation", "val", "dev", "test"})
MAX_LINE_BYTES = 16 * 2**20
"""Most bytes of a line of JSONL, which holds texts and paths, and no images."""

NAMED_COLUMNS = 20
"""Number of columns that an error names."""

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Layout:
    """Names of the columns of one layout."""

    question: str
    images: str
    id: str

    @property
    def required(self) -> frozenset[str]:
        """The columns that identify this layout."""
        return frozenset({self.question, self.images, "answer"})

    @property
    def readable(self) -> frozenset[str]:
        """All columns that are read; others are ignored."""
        return self.required | {self.id, "kind", "category", "references"}


GEOMETRY3K = Layout(question="problem", images="images", id="id")
VIRL39K = Layout(question="question", images="image", id="qid")


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

    @property
    def inside(self) -> tuple[Path, ...]:
        """The folders out of which an image path must not lead, without symbolic links."""
        return self.roots or (self.folder.resolve(),)


def layout_of(columns: Collection[str]) -> Layout:
    """Return the layout that has these columns.

    Raises:
        ProblemError: The columns fit no layout, or both.
    """
    fitting = [layout for layout in (GEOMETRY3K, VIRL39K) if layout.required <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    names = [shown(name) for name in sorted(columns)]
    more = f" and {len(names) - NAMED_COLUMNS} more" if len(names) > NAMED_COLUMNS else ""
    raise ProblemError(
        f"the columns are {', '.join(names[:NAMED_COLUMNS]) or 'none'}{more}; rename them to "
        "images, problem, answer (geometry3k), to question, answer, image (ViRL39K), or to "
        "messages and images; see docs/own_data.md"
    )


def is_conversation(columns: Collection[str]) -> bool:
    """Return whether a row is a conversation, and has the columns of no other layout."""
    has_turns = bool({"messages", "conversations", "prompt"} & set(columns))
    return has_turns and not any(one.required <= set(columns) for one in (GEOMETRY3K, VIRL39K))


def local_rows(path: Path, split: str) -> Iterator[Row | ProblemError]:
    """Yield the rows of a parquet or JSONL file, or of a folder's files of one split.

    A line that is not a JSON object gives an error instead of a row.

    Raises:
        ProblemError: The file is missing or not readable.
    """
    roots = ((path if path.is_dir() else path.parent).resolve(),)
    for file in files_of(path, split):
        if file.suffix == ".parquet":
            yield from _parquet_rows(file, roots)
        elif file.suffix == ".jsonl":
            yield from jsonl_rows_or_errors(file, roots)
        else:
            raise ProblemError(
                f"{file} is neither a .parquet nor a .jsonl file; convert it to one of them"
            )


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
    # A file of one split must never be used for another.
    whole = ("data.jsonl", VIRL39K_PARQUET) if split == "train" else ()
    for name in (f"{split}.jsonl", *whole):
        if (folder / name).is_file():
            return [folder / name]
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not files:
        raise ProblemError(
            f"{folder} holds no data.jsonl, {split}.jsonl or *.parquet; "
            "name the folder that the data files lie in"
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


def count_rows(path: Path, split: str) -> int:
    """Return the number of rows of a file, or of one split of a folder, without reading cells.

    Raises:
        ProblemError: The file is missing or not readable.
    """
    return sum(_count(file) for file in files_of(path, split))


def _count(file: Path) -> int:
    if file.suffix != ".parquet":
        return sum(1 for _ in numbered_lines(file))
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: Path, error: Exception) -> ProblemError:
    reason = " ".join(str(error).split())[:300]
    return ProblemError(f"{file} cannot be read as parquet: {reason}; download or write it again")


def _parquet_rows(path: Path, roots: tuple[Path, ...] = ()) -> Iterator[Row]:
    # Imported here, because it takes half a second and other sources do not need it.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            try:
                columns = [name for name in names if name in layout_of(names).readable]
            except ProblemError as error:
                raise ProblemError(f"{path.name}: {error}") from None
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name} row {number}", cells, path.parent, roots)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _not_parquet(path, error) from error


def hub_rows(name: str, split: str) -> Iterator[Row]:
    """Yield the rows of a data set on the hub.

    Raises:
        ProblemError: The hub cannot be reached or has no such data set or split.
    """
    # Imported here, because it takes one and a half seconds and local files do not need it.
    import datasets
    import datasets.config
    import huggingface_hub

    try:
        data = datasets.load_dataset(name, split=split)
    # Unreachable, unknown and gated names are OSErrors, an unknown split is a ValueError.
    except (OSError, ValueError) as error:
        raise unreachable(f"{name}@{split}", error) from error
    assert isinstance(data, datasets.Dataset)
    for column in {"images", "image"}.intersection(data.column_names):
        # Not decoded: encoded bytes are small and exact, and decoding takes time.
        data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    # Data sets of image files name files of these two folders.
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    roots = tuple(Path(cache).resolve() for cache in caches)
    for number, cells in enumerate(data, start=1):
        yield Row(f"{name}@{split} row {number}", dict(cells), Path(), roots)


def virl39k_rows() -> Iterator[Row]:
    """Yield the rows of ViRL39K, whose images are in a zip file next to the parquet on the hub.

    Raises:
        ProblemError: The hub cannot be reached.
    """
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                VIRL39K_NAME, repo_type="dataset", allow_patterns=[VIRL39K_PARQUET, "images.zip"]
            )
        )
    except (OSError, ValueError) as error:
        raise unreachable(VIRL39K_NAME, error) from error
    if not (folder / "images").is_dir():
        # Unpacked to another name and renamed, so an interrupted run leaves no incomplete folder.
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            with zipfile.ZipFile(folder / "images.zip") as archive:
                archive.extractall(aside)
            (Path(aside) / "images").rename(folder / "images")
    yield from _parquet_rows(folder / VIRL39K_PARQUET)


def unreachable(name: str, error: Exception) -> ProblemError:
    """Return the error of a hub data set that cannot be loaded."""
    reason = str(error).strip().split("\n")[0]
    return ProblemError(
        f"{name} cannot be loaded from the hub ({reason}); where there is no connection, download "
        "it elsewhere and name the folder or parquet file"
    )
