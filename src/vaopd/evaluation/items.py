"""Items of a benchmark, read from the hub or from a local folder or file."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from vaopd.config import OnBadRow
from vaopd.errors import ConfigError, ProblemError
from vaopd.evaluation.benchmark import Benchmark, Item
from vaopd.evaluation.rows import SUFFIXES, PlacedRow, RowOrError, hub_tables, open_table
from vaopd.problems.bad_rows import BadRow
from vaopd.problems.files import local_rows
from vaopd.problems.images import ImageRules
from vaopd.problems.reading import ReadingRules, placed_problems
from vaopd.problems.sources import read_source

RULES = ReadingRules(ImageRules(allow_outside=True))
"""Benchmarks are read where their files name the images, as by every other evaluation."""


@dataclass(frozen=True)
class ItemSet:
    """The items of one benchmark and where they came from."""

    benchmark: Benchmark
    items: tuple[Item, ...]
    source: str
    skips_bad_rows: bool = False
    skipped: tuple[str, ...] = ()
    """One sentence for each bad row that was left out."""

    left_out: int = 0
    """Number of rows that are not items of the set: another split or version, or no image."""

    @property
    def digest(self) -> str:
        """A hash of ids, prompts and references; equal questions have equal digests."""
        rows = [[item.id, item.prompt, dict(item.reference)] for item in self.items]
        text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_items(
    benchmark: Benchmark,
    data: Path | None = None,
    *,
    on_bad_row: OnBadRow = "error",
    limit: int | None = None,
    need_images: bool = True,
) -> ItemSet:
    """Return the items of a benchmark.

    Args:
        benchmark: What to read.
        data: Folder with a folder or file for the benchmark, or a file; the hub if not given.
        on_bad_row: Stop at the first bad row, or leave bad rows out and list them.
        limit: Read only this number of items from the beginning.
        need_images: Whether an item without an image, or with a missing file, is bad.

    Raises:
        ConfigError: ``data`` does not hold the benchmark.
        ProblemError: A source cannot be read, a row is bad, or there are no items.
    """
    source, rows = _rows(benchmark, data)
    items: list[Item] = []
    skipped: list[str] = []
    left_out = 0
    places: dict[str, str] = {}
    for row in _checked(rows, skipped, on_bad_row):
        try:
            item = _item(benchmark, row, need_images)
            if item is None:
                left_out += 1
                continue
            if item.id in places:
                raise ProblemError(f"the id {item.id} was already that of {places[item.id]}")
        except ProblemError as error:
            sentence = f"{benchmark.name}: {row.place}: {error}"
            if on_bad_row == "error":
                raise ProblemError(f"{sentence} (--on-bad-row skip goes on without it)") from None
            skipped.append(sentence)
            continue
        places[item.id] = row.place
        items.append(item)
        if limit is not None and len(items) == limit:
            break
    if not items:
        reason = f"; the first of {len(skipped)} bad rows: {skipped[0]}" if skipped else ""
        raise ProblemError(
            f"{benchmark.name}: {source} has no items of the split{reason or '; check the source'}"
        )
    return ItemSet(benchmark, tuple(items), source, on_bad_row == "skip", tuple(skipped), left_out)


def _item(benchmark: Benchmark, row: PlacedRow, need_images: bool) -> Item | None:
    item = benchmark.item(row.cells)
    if item is None:
        return None
    if need_images:
        if not item.images:
            raise ProblemError("the row has no image; use a copy of the set that holds the images")
        for image in item.images:
            if isinstance(image, Path) and not image.is_file():
                raise ProblemError(f"the image {image} does not exist; put it there")
    # Some layouts have no ids, but their order is fixed.
    return replace(item, id=item.id or row.place.rpartition(" ")[2], place=row.place)


def _checked(
    rows: Iterator[RowOrError], skipped: list[str], on_bad_row: OnBadRow
) -> Iterator[PlacedRow]:
    """Yield the good rows; a row given as a text is bad, and the text is its error."""
    for row in rows:
        if isinstance(row, PlacedRow):
            yield row
        elif on_bad_row == "error":
            raise ProblemError(f"{row} (--on-bad-row skip goes on without it)")
        else:
            skipped.append(row)


def _rows(benchmark: Benchmark, data: Path | None) -> tuple[str, Iterator[RowOrError]]:
    if benchmark.problems is not None:
        return _problem_rows(benchmark, benchmark.problems, data)
    if data is not None:
        path = locate(benchmark, data)
        return str(path), iter(open_table(path).rows())
    assert benchmark.hub_id is not None
    tables = hub_tables(benchmark.hub_id, benchmark.configs, benchmark.split, benchmark.revision)
    revision = f"@{benchmark.revision}" if benchmark.revision else ""
    return f"{benchmark.hub_id}{revision}", (row for table in tables for row in table.rows())


def _problem_rows(
    benchmark: Benchmark, source: str, data: Path | None
) -> tuple[str, Iterator[RowOrError]]:
    # Drawn problems and a user's own file need no data folder.
    own = source.startswith("drawn:") or Path(source).is_file()
    path = Path(source) if own else locate(benchmark, data) if data is not None else None
    if own and path is not None and path.is_file():
        return str(path), iter(open_table(path).rows())
    if path is not None and path.is_file():
        return str(path), _local_problems(path)
    problems, bad = read_source(source, rules=RULES)
    rows = (PlacedRow(f"{source} row {n}", {"problem": p}) for n, p in enumerate(problems, 1))
    return source, chain((row.reason for row in bad), rows)


def _local_problems(path: Path) -> Iterator[RowOrError]:
    rows = local_rows(path, "test")
    for place, found in placed_problems(rows, path.stem, "test", RULES, prefix=path.stem):
        yield found.reason if isinstance(found, BadRow) else PlacedRow(place, {"problem": found})


def locate(benchmark: Benchmark, data: Path) -> Path:
    """Return the file of a benchmark in a folder of benchmarks, or the file itself.

    The search goes through ``DATA/NAME/`` and then ``DATA``: first the known file names, then
    ``NAME`` with any supported suffix, then the only file with such a suffix in ``DATA/NAME/``.

    Raises:
        ConfigError: There is no such file, or several files fit.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise ConfigError(f"--data {data} does not exist; name a folder or file of benchmark data")
    own = data / benchmark.name
    names = [*benchmark.files, *(benchmark.name + suffix for suffix in SUFFIXES)]
    for folder in (own, data):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    inside = own if own.is_dir() else data if data.name == benchmark.name else None
    found = sorted(_data_files(inside, benchmark.split)) if inside else []
    if len(found) == 1:
        return found[0]
    several = f"several files ({', '.join(path.name for path in found)})" if found else "no file"
    raise ConfigError(
        f"--data {data} holds {several} for {benchmark.name}; "
        f"name one {own / (names[0] if names else benchmark.name)}"
    )


def _data_files(folder: Path, split: str) -> Iterator[Path]:
    files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    named = [path for path in files if split and re.match(rf"{split}\b", path.name)]
    # The metadata file of a problem folder is not its data file.
    top = [path for path in files if path.parent in (folder, folder / "data")]
    yield from islice(named or top, 5)
