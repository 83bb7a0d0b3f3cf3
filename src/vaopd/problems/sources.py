"""Problems of all sources: hub, files, folders, package, or drawn on demand.

``rows`` describes the layouts of rows. An image is an encoded image (``bytes``, or
``{"bytes": .., "path": ..}`` as the hub stores it) or a path relative to the folder of the file.
Images stay encoded until they are used.
"""

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vaopd.config.columns import checked_fields
from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.bad_rows import BadRow, bad_rows_error, shown
from vaopd.problems.files import FILE_SUFFIXES, local_rows
from vaopd.problems.hub import HubName, hub_rows, virl39k_rows
from vaopd.problems.images import ImageRules
from vaopd.problems.problem import Problem
from vaopd.problems.reading import ReadingRules, given_problems, placed_problems
from vaopd.problems.rows import NO_COLUMNS, VIRL39K_NAME, Row
from vaopd.problems.streaming import Stream, kept_file

ASSETS = Path(__file__).parents[1] / "assets"
PACKAGED = ("geometry3k_sample",)

Source = Any
"""A text, a ``datasets.Dataset``, or a list of ``Problem``; see ``load_problems``."""

GIVEN = "python:"
"""Begins the record of a source that was given in Python."""

HUB = "hub:"
HUB_OPTIONS = ("config", "split", "revision")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Location:
    """The place of a source's rows, for sources that are not drawn."""

    name: str
    """Name of the data set; made ids of problems begin with it."""

    split: str
    path: Path | None
    """File or folder; None = on the hub."""

    sample: tuple[int, int] | None
    """Number of rows to take, and the seed that chooses them; None = all."""

    config: str | None = None
    """Name of one of the configurations of a data set on the hub."""

    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""

    stream: Stream | None = None
    """Rows of a data set on the hub that is not downloaded whole."""

    @property
    def hub(self) -> HubName:
        """Name of a data set on the hub."""
        return HubName(self.name, self.split, self.config, self.revision, self.stream)

    @property
    def title(self) -> str:
        """Name of the data set with its configuration."""
        return f"{self.name}/{self.config}" if self.config else self.name

    def rows(self, columns: Mapping[str, str] = NO_COLUMNS) -> Iterator[Row | ProblemError]:
        """Yield the rows, and an error for each row that cannot be read.

        Args:
            columns: Names of columns that a recipe maps, by our fields.
        """
        if self.path is not None:
            return local_rows(self.path, self.split, columns)
        if self.name == VIRL39K_NAME:
            return virl39k_rows(columns)
        return hub_rows(self.hub, columns)

    def chosen(self, count: int) -> Sequence[int]:
        """Return the numbers, from 0, of the rows that are taken.

        Raises:
            ConfigError: The sample is larger than the number of rows.
        """
        if self.sample is None:
            return range(count)
        size, seed = self.sample
        if size > count:
            raise ConfigError(
                f"sample={size} is more than the {count} problems of {self.path or self.name}; "
                "lower it"
            )
        return sorted(random.Random(seed).sample(range(count), size))


def load_problems(
    source: Source,
    *,
    limit: int | None = None,
    images: ImageRules | None = None,
    columns: Mapping[str, str] | None = None,
    system_prompt: str = "",
    prompt_suffix: str = "",
) -> Sequence[Problem]:
    """Return the problems of a source, in its order.

    ==============================  ==========================================================
    ``owner/name[@split]``          Hugging Face hub; the split is ``train`` unless named
    ``hub:NAME[?config=..&..]``     the same, with ``config``, ``split`` and ``revision``;
                                    ``streaming=true&count=N[&seed=S]`` reads only N rows
    ``FILE.parquet``                one parquet file
    ``FILE.jsonl``                  one JSON object a line
    ``FILE.json``                   one array of JSON objects
    ``FILE.csv``                    a header, and one row a problem
    ``FOLDER[@split]``              ``data.jsonl``, ``SPLIT.jsonl``, ``39Krelease.parquet`` with
                                    ``images/``, or parquet files, also under ``data/``; else
                                    ``.json`` or ``.csv`` of the names of the ``.jsonl`` files;
                                    or what ``save_to_disk`` wrote, or images with
                                    ``metadata.jsonl`` or ``metadata.csv``
    ``package:geometry3k_sample``   ten real problems that ship with vaopd
    ``drawn:SPLIT[?count=..&..]``   drawn on demand, see ``vaopd.problems.drawn``
    ==============================  ==========================================================

    A ``datasets.Dataset`` is read as a data set on the hub is, and a list of ``Problem`` is taken
    as it is.

    ``?sample=200&seed=42`` after any source that is not drawn keeps that number of problems without
    replacement, in their order, chosen by ``random.Random(seed)``: the official release takes its
    200 validation problems from the 300 of Geometry3K in this way.

    Args:
        source: Where the problems are.
        limit: Read only this number of problems from the beginning.
        images: Which images are read; by default those in the folder of the data.
        columns: Names of their columns by our fields, as ``data.columns`` of a recipe.
        system_prompt: System turn of every problem.
        prompt_suffix: Text after every question, on a line of its own.

    Raises:
        ConfigError: The source names nothing that could be read, the limit is below 1, or a mapped
            column does not exist.
        ProblemError: The source cannot be reached, a row is bad, or an id comes twice; up to ten
            bad rows are listed.
    """
    rules = ReadingRules(
        images or ImageRules(), checked_fields(columns or {}), system_prompt, prompt_suffix
    )
    return all_problems(source, limit=limit, rules=rules)


def all_problems(
    source: Source, *, limit: int | None = None, rules: ReadingRules | None = None
) -> Sequence[Problem]:
    """Return the problems of a source, none of whose rows may be bad; see ``load_problems``."""
    problems, bad = read_source(source, limit=limit, rules=rules)
    if bad:
        name = source if isinstance(source, str) else "the data set"
        raise bad_rows_error(name, bad, len(problems) + len(bad), "")
    return problems


def read_source(
    source: Source, *, limit: int | None = None, rules: ReadingRules | None = None
) -> tuple[Sequence[Problem], list[BadRow]]:
    """Return the problems of a source and its bad rows, both in its order; see ``load_problems``.

    A bad row is counted too, so that the made ids of other problems and the rows of a sample do
    not depend on it.

    Raises:
        ConfigError: The source names nothing that could be read, or the limit is below 1.
        ProblemError: The source cannot be reached or has no rows.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected at least 1; leave it out to read everything")
    rules = rules or ReadingRules()
    if not isinstance(source, str):
        return given_problems(source, limit, rules)
    if source.startswith("drawn:"):
        return _drawn(source.removeprefix("drawn:"), limit, rules), []
    location = locate(source)
    rows = islice(location.rows(rules.columns), limit)
    found = [one for _, one in placed_problems(rows, location.title, location.split, rules)]
    if not found:
        raise ProblemError(
            f"{location.name} ({location.split}) has no rows; check that it was written completely"
        )
    found = [found[index] for index in location.chosen(len(found))]
    problems = [one for one in found if isinstance(one, Problem)]
    return problems, [one for one in found if isinstance(one, BadRow)]


def locate(source: str) -> Location:
    """Return the place of a source that is not drawn, without reading it.

    Raises:
        ConfigError: The package is unknown, or the options do not read.
        ProblemError: The source names nothing that could be read.
    """
    if source.startswith(GIVEN):
        raise ConfigError(
            f"{source} stands for problems that were given in Python; give them again: "
            "vaopd.train(config, output, data={..}, resume=True)"
        )
    source, sample, of_hub, stream = _options(source)
    if source.startswith(HUB) or of_hub or stream:
        found = replace(_on_hub(source, sample, of_hub), stream=stream)
        if stream and found.name == VIRL39K_NAME:
            raise ProblemError(f"{found.name} has its images in one file; leave streaming out")
        return found
    if source.startswith("package:"):
        name = source.removeprefix("package:")
        if name not in PACKAGED:
            raise ConfigError(f"package:{name} does not ship with vaopd; use package:{PACKAGED[0]}")
        return Location(name, "train", ASSETS / name / "data.jsonl", sample)
    location, split = (source, "train") if os.path.exists(source) else _split_suffix(source)
    path = Path(location)
    # os.path answers for a name that is too long or holds a zero byte; methods of Path raise.
    if location != source and (
        os.path.isfile(path) or (location == VIRL39K_NAME and split != "train")
    ):
        raise ProblemError(f"{location} has no splits; leave @{split} out, or name another source")
    if os.path.exists(path):
        return Location(path.resolve().stem, split, path, sample)
    if path.suffix in FILE_SUFFIXES or not _HUB_NAME.fullmatch(location):
        raise ProblemError(
            f"{shown(source)} does not exist; name a .parquet, .jsonl, .json or .csv file, a "
            "folder of them, owner/name on the hub, package:geometry3k_sample or drawn:train"
        )
    return Location(location, split, None, sample)


def _on_hub(source: str, sample: tuple[int, int] | None, options: dict[str, str]) -> Location:
    """Return the place of a data set that is on the hub, also if a folder here has its name."""
    name, split = _split_suffix(source.removeprefix(HUB))
    is_here = not source.startswith(HUB) and os.path.exists(name)
    if is_here or not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"{shown(name)} is not a name on the hub, which alone has {' and '.join(HUB_OPTIONS)}; "
            "write hub:owner/name?config=NAME&split=train, or leave them out"
        )
    split = options.get("split", split)
    if name == VIRL39K_NAME and (split != "train" or options):
        raise ProblemError(f"{name} has no splits or configurations; leave them out")
    return Location(name, split, None, sample, options.get("config"), options.get("revision"))


def stream_line(source: str) -> str:
    """Return a line about the rows of a source that is streamed; '' if it is not."""
    if source.startswith((GIVEN, "drawn:")):
        return ""
    location = locate(source)
    if location.stream is None:
        return ""
    file = kept_file(location.hub.full, location.stream)
    return f"{location.hub}: {location.stream}, are read once and kept in {file}"


def _options(
    source: str,
) -> tuple[str, tuple[int, int] | None, dict[str, str], Stream | None]:
    """Return the source without its options: sample with seed, those of the hub, the stream."""
    location, mark, query = source.rpartition("?")
    if not mark or os.path.exists(source):
        return source, None, {}, None
    options = dict(parse_qsl(query, keep_blank_values=True))
    of_hub = {name: options.pop(name) for name in HUB_OPTIONS if options.get(name)}
    stream = _stream(location, options) if "streaming" in options else None
    try:
        sample = None
        if options or not (of_hub or stream):
            sample = int(options.pop("sample")), int(options.pop("seed", "42"))
    except (KeyError, ValueError):
        sample = (0, 0)
    if options or (sample is not None and sample[0] < 1):
        raise ConfigError(
            f"the options of {source} do not read as sample=N&seed=S; write for example "
            f"{location}?sample=200&seed=42 (a name on the hub has {', '.join(HUB_OPTIONS)} too, "
            "or streaming=true&count=N&seed=S in place of a sample)"
        )
    return location, sample, of_hub, stream


def _stream(location: str, options: dict[str, str]) -> Stream:
    """Take the options of a stream out of the others and return it."""
    if "sample" in options:
        raise ConfigError(
            f"{location} has streaming and sample; leave sample out, count takes that many rows"
        )
    is_on, count, seed = (options.pop(name, None) for name in ("streaming", "count", "seed"))
    try:
        stream = Stream(int(count or 0), None if seed is None else int(seed))
    except ValueError:
        stream = Stream(0)
    if is_on != "true" or stream.count < 1:
        raise ConfigError(
            f"{location} is to be streamed, but a stream has no length and a run needs one; write "
            f"{location}?streaming=true&count=5000, and &seed=42 to shuffle it"
        )
    return stream


def _split_suffix(source: str) -> tuple[str, str]:
    matched = re.fullmatch(r"(.+)@(\w+)", source)
    return (matched[1], matched[2]) if matched else (source, "train")


def _drawn(rest: str, limit: int | None, rules: ReadingRules) -> Sequence[Problem]:
    # Imported here: it loads fonts and a table of shapes, which other sources do not need.
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
    problems = replace(
        drawn.parse_source(split, dict(pairs)),
        system_prompt=rules.system_prompt,
        prompt_suffix=rules.prompt_suffix,
    )
    return problems if limit is None else problems[:limit]
