"""Reads and checks the problems of a run before it begins, the same in all processes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from vaopd.config import OnBadRow, RunConfig
from vaopd.display import with_bar
from vaopd.distributed.world import World
from vaopd.errors import ConfigError
from vaopd.problems.bad_rows import BadRow, bad_rows_error, listed
from vaopd.problems.checks import (
    damaged_images,
    without_answer,
    without_image,
    without_reference,
)
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.manifest import MANIFEST, digest, manifest, num_text_only
from vaopd.problems.problem import Problem
from vaopd.problems.reading import reading_rules
from vaopd.problems.sources import Source, read_source, stream_line
from vaopd.records import read_json

NOTHING: Mapping[str, Source] = MappingProxyType({})
Bad = dict[str, list[BadRow]]
"""Maps the key of a part, ``train`` or ``validation``, to its bad rows."""


@dataclass(frozen=True)
class Part:
    """The training or the held-out problems."""

    key: str
    """``train`` or ``validation``."""

    source: str
    problems: Sequence[Problem]
    skipped: tuple[BadRow, ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether the problems are read from files and may be bad; others are generated."""
        return not isinstance(self.problems, DrawnProblems)

    def without(self, bad: Sequence[BadRow], on_bad_row: OnBadRow) -> "Part":
        """Return the part without these rows.

        Raises:
            ProblemError: ``on_bad_row`` makes bad rows an error, or no row is left.
        """
        if not bad:
            return self
        ids = {row.id for row in bad}
        kept = [one for one in self.problems if one.id not in ids]
        skipped = (*self.skipped, *bad)
        name, total = f"data.{self.key}={self.source}", len(kept) + len(skipped)
        if on_bad_row == "error":
            remedy = "data.on_bad_row=skip goes on without"
            raise bad_rows_error(name, bad, total, f"{remedy} {'it' if len(bad) == 1 else 'them'}")
        if not kept:
            raise bad_rows_error(name, skipped, total, "")
        return replace(self, problems=kept, skipped=skipped)


@dataclass(frozen=True)
class RunData:
    """All problems of a run."""

    parts: tuple[Part, ...]
    """The training problems and, if there are any, the held-out problems."""

    on_bad_row: OnBadRow
    allow_overlap: bool = False

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The record of the problems that the run folder keeps.

        Raises:
            ConfigError: Some training problems are also held out, and that is not allowed.
        """
        found = manifest(self.train, self.held_out, allow_overlap=self.allow_overlap)
        skipped = {part.key: [asdict(row) for row in part.skipped] for part in self.parts}
        return {**found, "skipped": skipped}

    @property
    def train(self) -> Sequence[Problem]:
        """The training problems."""
        return self.parts[0].problems

    @property
    def held_out(self) -> Sequence[Problem] | None:
        """The held-out problems, or ``None``."""
        return self.parts[1].problems if len(self.parts) > 1 else None

    @property
    def stored(self) -> list[Part]:
        """The parts that are read from files and not generated."""
        return [part for part in self.parts if part.is_stored]

    def digests(self) -> list[str]:
        """Return a hash of the ids and texts of each part."""
        return [digest(part.problems) for part in self.parts]

    def without(self, bad: Bad) -> "RunData":
        """Return the data without these rows.

        Raises:
            ProblemError: The recipe makes bad rows an error, or a part has no row left.
        """
        parts = (part.without(bad.get(part.key, ()), self.on_bad_row) for part in self.parts)
        return replace(self, parts=tuple(parts))

    def num_skipped(self) -> dict[str, int]:
        """Return how many rows of each part were left out."""
        return {part.key: len(part.skipped) for part in self.parts}

    def num_text_only(self) -> dict[str, int]:
        """Return how many problems of each part have no image."""
        return {part.key: num_text_only(part.problems) for part in self.parts}

    def lines(self) -> list[str]:
        """Return the log lines about streams, rows left out and problems without an image."""
        streams = [line for part in self.parts if (line := stream_line(part.source))]
        return [*streams, *self.skipped_lines()] + [
            f"data.{part.key}: {count} of {len(part.problems)} problems have no image "
            "(data.allow_text_only=true); they have no visual advantage and uniform weights"
            for part, count in zip(self.parts, self.num_text_only().values(), strict=True)
            if count
        ]

    def skipped_lines(self) -> list[str]:
        """Return the log lines about rows that were left out."""
        return [
            f"data.{part.key}: {len(part.skipped)} of {len(part.problems) + len(part.skipped)} "
            f"rows are left out (data.on_bad_row=skip):\n{listed(part.skipped)}"
            for part in self.parts
            if part.skipped
        ]


def read_data(
    config: RunConfig,
    world: World,
    console: Console,
    resumed: Path | None = None,
    given: Mapping[str, Source] = NOTHING,
) -> RunData:
    """Return the problems of a run without the bad ones that can be found without a model.

    This is a collective. Every process reads the rows; the main process checks the problems.

    Args:
        config: Recipe of the run.
        world: Processes of the run.
        console: Where the main process shows progress.
        resumed: Folder of the run that is resumed; the problems that it left out at its start are
            left out again.
        given: Problems by ``train`` and ``validation``, instead of the sources of the recipe.

    Raises:
        ProblemError: A source cannot be read, or rows are bad.
        TrainingError: Some processes read different rows.
    """
    data = world.agree(lambda: _read(config, given))
    world.same("problems", "\n".join([*data.skipped_lines(), *data.digests()]))
    if resumed is None:
        bad = world.on_main(lambda: _checked(data, config, console))
    else:
        bad = world.on_main(lambda: _left_out(resumed, data))
    return world.agree(lambda: data.without(bad))


def _read(config: RunConfig, given: Mapping[str, Source]) -> RunData:
    sources = {"train": config.data.train, "validation": config.data.validation}
    policy = config.data.on_bad_row
    parts = []
    for key, source in sources.items():
        if source:
            objects = given.get(key, source)
            problems, bad = read_source(objects, rules=reading_rules(config.data))
            parts.append(Part(key, source, problems).without(bad, policy))
    train = parts[0]
    if num_text_only(train.problems) == len(train.problems):
        raise ConfigError(
            f"no problem of data.train={train.source} has an image, and nothing can be learned "
            "about images without one; mix text-only problems with others"
        )
    return RunData(tuple(parts), policy, config.data.allow_overlap)


def _checked(data: RunData, config: RunConfig, console: Console) -> Bad:
    """Return the bad rows that can be found without a model.

    Raises:
        ProblemError: There are bad rows and the recipe does not skip them, or no row is left.
    """
    bad = {part.key: _distinct(_found(part, config, console)) for part in data.stored}
    data.without(bad)
    return bad


def _found(part: Part, config: RunConfig, console: Console) -> list[BadRow]:
    found: list[BadRow] = []
    if part.key == "validation":
        missing = without_answer(part.problems)
        found += without_image(part.problems) if config.validation.pixelated else []
        # If no problem has an answer, the validation itself reports it.
        found += missing if len(missing) < len(part.problems) else []
    elif not config.method.needs.sampling:
        found += without_reference(part.problems)
    elif config.method.needs.rewards:
        found += without_answer(part.problems, "to reward responses by")
    # Held-out images are few, and the manifest reads them in any case.
    if config.data.check_images or part.key == "validation":
        title = f"checking images of data.{part.key}"
        found += with_bar(
            console, title, len(part.problems), lambda bar: damaged_images(part.problems, bar)
        )
    return found


def _distinct(bad: Sequence[BadRow]) -> list[BadRow]:
    """Return the first reason for each problem."""
    return list({row.id: row for row in reversed(bad)}.values())[::-1]


def _left_out(folder: Path, data: RunData) -> Bad:
    path = folder / MANIFEST
    skipped = read_json(path).get("skipped", {}) if path.is_file() else {}
    known = {part.key: {one.id for one in part.problems} for part in data.stored}
    return {
        key: [BadRow(**row) for row in rows if row["id"] in known.get(key, ())]
        for key, rows in skipped.items()
    }
