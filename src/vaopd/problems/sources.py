"""Problems from wherever they lie: hub, parquet, jsonl, folder, package, or drawn on demand.

Two layouts of rows are read, told apart by their columns and by nothing else:

- geometry3k: ``images`` (list), ``problem``, ``answer``; optional ``id``, ``kind`` (or
  ``category``), ``references``;
- ViRL39K: ``question``, ``answer``, ``image`` (list of paths); optional ``qid``, ``category``.

An image is an encoded image (``bytes``, or ``{"bytes": .., "path": ..}`` as the hub stores it) or
a path relative to the folder of the file. Images stay encoded until they are used.
"""

import json
import random
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.boxed import outer_boxes
from vaopd.problems.problem import Problem

ASSETS = Path(__file__).parents[1] / "assets"
PACKAGED = ("geometry3k_sample",)
VIRL39K_NAME = "TIGER-Lab/ViRL39K"
VIRL39K_PARQUET = "39Krelease.parquet"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BATCH_ROWS = 64
SPLITS = frozenset({"train", "validation", "val", "dev", "test"})


@dataclass(frozen=True)
class Layout:
    """What the columns of one layout are called."""

    question: str
    images: str
    id: str

    @property
    def required(self) -> frozenset[str]:
        """The columns that tell this layout from others."""
        return frozenset({self.question, self.images, "answer"})

    @property
    def readable(self) -> frozenset[str]:
        """All columns that are looked at; others are left in the file."""
        return self.required | {self.id, "kind", "category", "references"}


GEOMETRY3K = Layout(question="problem", images="images", id="id")
VIRL39K = Layout(question="question", images="image", id="qid")


@dataclass(frozen=True)
class Row:
    """One row of a file, with what an error about it has to say."""

    place: str
    """File and row number from 1, as in ``train.parquet row 3``."""

    cells: Mapping[str, Any]

    folder: Path
    """Where relative image paths start."""


def load_problems(source: str, *, limit: int | None = None) -> Sequence[Problem]:
    """Return the problems of a source, in its order.

    ==============================  ==========================================================
    ``owner/name[@split]``          Hugging Face hub; the split is ``train`` unless named
    ``FILE.parquet``                one parquet file
    ``FILE.jsonl``                  one JSON object a line
    ``FOLDER[@split]``              ``data.jsonl``, ``SPLIT.jsonl``, ``39Krelease.parquet`` with
                                    ``images/``, or parquet files, also under ``data/``
    ``package:geometry3k_sample``   ten real problems that ship with vaopd
    ``drawn:SPLIT[?count=..&..]``   drawn on demand, see ``vaopd.problems.drawn``
    ==============================  ==========================================================

    ``?sample=200&seed=42`` behind any source that is not drawn keeps so many problems without
    replacement, in their order, chosen by ``random.Random(seed)``: the official release takes its
    200 validation problems from the 300 of Geometry3K so.

    Args:
        source: Where the problems are.
        limit: Read only so many problems from the front.

    Raises:
        ConfigError: The source names nothing that could be read, or the limit is below 1.
        ProblemError: The source cannot be reached, a row is bad, or an id comes twice.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected at least 1; leave it out to read everything")
    if source.startswith("drawn:"):
        return _drawn(source.removeprefix("drawn:"), limit)
    source, sample = _sample_suffix(source)
    problems = _stored(source, limit)
    return problems if sample is None else _sample(problems, source, *sample)


def _stored(source: str, limit: int | None) -> list[Problem]:
    if source.startswith("package:"):
        return _packaged(source.removeprefix("package:"), limit)
    if Path(source).exists():
        location, split = source, "train"
    else:
        location, split = _split_suffix(source)
    path = Path(location)
    if location != source and (path.is_file() or (location == VIRL39K_NAME and split != "train")):
        raise ProblemError(f"{location} has no splits; leave @{split} out, or name another source")
    if path.exists():
        return _collect(local_rows(path, split), path.resolve().stem, split, limit)
    if path.suffix in (".parquet", ".jsonl") or not _HUB_NAME.fullmatch(location):
        raise ProblemError(
            f"{source} does not exist; name a .parquet or .jsonl file, a folder of them, "
            "owner/name on the hub, package:geometry3k_sample or drawn:train"
        )
    rows = _virl39k_rows() if location == VIRL39K_NAME else _hub_rows(location, split)
    return _collect(rows, location, split, limit)


def _sample_suffix(source: str) -> tuple[str, tuple[int, int] | None]:
    """Return the source without its ``?sample=N&seed=S``, and the two numbers."""
    location, mark, query = source.rpartition("?")
    if not mark or Path(source).exists():
        return source, None
    options = dict(parse_qsl(query, keep_blank_values=True))
    try:
        size, seed = int(options.pop("sample")), int(options.pop("seed", "42"))
    except (KeyError, ValueError):
        size = seed = 0
    if size < 1 or options:
        raise ConfigError(
            f"the options of {source} do not read as sample=N&seed=S; write for example "
            f"{location}?sample=200&seed=42"
        )
    return location, (size, seed)


def _sample(problems: list[Problem], source: str, size: int, seed: int) -> list[Problem]:
    if size > len(problems):
        raise ConfigError(
            f"sample={size} is more than the {len(problems)} problems of {source}; lower it"
        )
    chosen = sorted(random.Random(seed).sample(range(len(problems)), size))
    return [problems[index] for index in chosen]


def _split_suffix(source: str) -> tuple[str, str]:
    matched = re.fullmatch(r"(.+)@(\w+)", source)
    return (matched[1], matched[2]) if matched else (source, "train")


def _drawn(rest: str, limit: int | None) -> Sequence[Problem]:
    # Imported here: it loads fonts and a table of shapes that no other source needs.
    from vaopd.problems import drawn

    split, _, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        pairs = None
    if pairs is None or len(dict(pairs)) < len(pairs):
        raise ConfigError(
            f"drawn:{rest} has options that do not read as name=value, each once; "
            "write drawn:train?count=64&seed=0"
        )
    problems = drawn.parse_source(split, dict(pairs))
    return problems if limit is None else problems[:limit]


def _packaged(name: str, limit: int | None) -> list[Problem]:
    if name not in PACKAGED:
        raise ConfigError(f"package:{name} does not ship with vaopd; use package:{PACKAGED[0]}")
    return _collect(jsonl_rows(ASSETS / name / "data.jsonl"), name, "train", limit)


def _collect(rows: Iterator[Row], source: str, split: str, limit: int | None) -> list[Problem]:
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for index, row in enumerate(islice(rows, limit)):
        problem = problem_of_row(row, f"{source}:{split}:{index}", source, split)
        if problem.id in places:
            raise ProblemError(
                f"{row.place} has the id {problem.id} of {places[problem.id]}; "
                "give every problem an id of its own, or drop the id column"
            )
        places[problem.id] = row.place
        problems.append(problem)
    if not problems:
        raise ProblemError(f"{source} ({split}) has no rows; check that it was written completely")
    return problems


def problem_of_row(row: Row, fallback_id: str, source: str, split: str) -> Problem:
    """Return the problem of one row in either layout.

    Raises:
        ProblemError: The row fits no layout or its cells do not make a problem; names the row.
    """
    cells = row.cells
    try:
        layout = _layout(cells)
        kind = "kind" if cells.get("kind") is not None else "category"
        return Problem(
            id=_text(cells, layout.id) or fallback_id,
            prompt=_text(cells, layout.question),
            images=_images(cells[layout.images], layout.images, row.folder),
            answer=_bare_answer(_text(cells, "answer")),
            source=source,
            split=split,
            references=_references(cells.get("references")),
            kind=_text(cells, kind),
        )
    except ProblemError as error:
        raise ProblemError(f"{row.place}: {error}") from None


def _layout(columns: Collection[str]) -> Layout:
    fitting = [layout for layout in (GEOMETRY3K, VIRL39K) if layout.required <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    raise ProblemError(
        f"the columns are {', '.join(sorted(columns)) or 'none'}; rename them to either "
        "images, problem, answer (geometry3k) or question, answer, image (ViRL39K)"
    )


def _text(cells: Mapping[str, Any], column: str) -> str:
    """Return a cell as text, empty where it is absent; numbers occur as ids and as answers."""
    value = cells.get(column)
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ProblemError(f"{column} is of type {type(value).__name__}; write it as text")


def _references(cell: Any) -> tuple[str, ...]:
    if cell is None:
        return ()
    if isinstance(cell, list) and all(isinstance(text, str) for text in cell):
        return tuple(cell)
    raise ProblemError("references is no list of texts; write [] where there are none")


def _bare_answer(answer: str) -> str | None:
    r"""Return the answer without a ``\boxed{..}`` around the whole; ``None`` for none.

    An answer with text beside its box, or without a balanced one, stays as it is.
    """
    answer = answer.strip()
    for box in outer_boxes(answer)[:1]:
        if box.start == 0 and box.end == len(answer):
            return _bare_answer(answer[box.content_start : box.content_end])
    return answer or None


def _images(cells: Any, column: str, folder: Path) -> tuple[bytes | Path, ...]:
    if not isinstance(cells, list):
        raise ProblemError(f"{column} is of type {type(cells).__name__}; write a list of images")
    return tuple(_image(cell, column, folder) for cell in cells)


def _image(cell: Any, column: str, folder: Path) -> bytes | Path:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise ProblemError(
            f"{column} holds {cell!r:.40}; "
            "expected encoded image bytes, or a path relative to the folder of the file"
        )
    path = folder / cell
    # Looked for now: in the middle of a long run it would be too late.
    if not path.is_file():
        raise ProblemError(
            f"the image {cell} is not in {folder}; unpack the images there or correct the path"
        )
    return path


def local_rows(path: Path, split: str) -> Iterator[Row]:
    """Yield the rows of a parquet or JSONL file, or of a folder's files of one split.

    Raises:
        ProblemError: There is no such file, or it does not read.
    """
    files = _files(path, split) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file)
        elif file.suffix == ".jsonl":
            yield from jsonl_rows(file)
        else:
            raise ProblemError(
                f"{file} is neither a .parquet nor a .jsonl file; convert it to one of them"
            )


def _files(folder: Path, split: str) -> list[Path]:
    """Return the data files of a split of a folder, in the order of their names.

    Parquet files named after splits (``train-00000-of-00002.parquet``, as the hub writes them)
    are chosen by split; a folder whose parquet files carry no split names is one split.
    """
    # A file that holds one split only must never stand in for another.
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
    """Return the split that a file is named after, wherever in its name, else its first word."""
    words = re.split(r"[-_.]", file.name)
    return next((word for word in words if word in SPLITS), words[0])


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file.

    Raises:
        ProblemError: A line is no JSON object; names the line.
    """
    for row in jsonl_rows_or_errors(path):
        if isinstance(row, ProblemError):
            raise row
        yield row


def jsonl_rows_or_errors(path: Path) -> Iterator[Row | ProblemError]:
    """Yield the rows of a JSONL file, and an error for each line that is no JSON object."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path.name} row {number}"
            try:
                cells = json.loads(line)
            # Bytes that are no UTF-8 are a ValueError too.
            except ValueError as error:
                yield ProblemError(f"{place} is not JSON ({error}); write one object on each line")
                continue
            if not isinstance(cells, dict):
                found = type(cells).__name__
                yield ProblemError(f"{place} is a JSON {found}; write one object on each line")
                continue
            yield Row(place, cells, path.parent)


def _parquet_rows(path: Path) -> Iterator[Row]:
    # Imported here: half a second that no other source needs.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            try:
                columns = [name for name in names if name in _layout(names).readable]
            except ProblemError as error:
                raise ProblemError(f"{path.name}: {error}") from None
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name} row {number}", cells, path.parent)
    except pyarrow.ArrowException as error:
        raise ProblemError(
            f"{path} cannot be read as parquet: {error}; download or write it again"
        ) from error


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    # Imported here: one and a half seconds that local files do not need.
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    # Unreachable, unknown and gated names are OSErrors, an unknown split is a ValueError.
    except (OSError, ValueError) as error:
        raise unreachable(f"{name}@{split}", error) from error
    assert isinstance(data, datasets.Dataset)
    for column in {"images", "image"}.intersection(data.column_names):
        # Undecoded: encoded bytes are small, exact, and take no time.
        data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    for number, cells in enumerate(data, start=1):
        yield Row(f"{name}@{split} row {number}", dict(cells), Path())


def _virl39k_rows() -> Iterator[Row]:
    """Yield the rows of ViRL39K, whose images lie in a zip beside the parquet on the hub."""
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
        # Unpacked aside and renamed, so that an interrupted run leaves no half-filled folder.
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
