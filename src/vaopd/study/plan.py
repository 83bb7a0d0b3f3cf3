"""The plan of a study: every run of its tables, and of the grids that its arms choose from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vaopd.config import OwnMethodOptions, RunConfig
from vaopd.study.schema import Overrides, TableConfig

Choices = Mapping[tuple[str, str], Overrides]
"""The chosen settings of tuned arms, by table and arm."""

BASE_ARM = "base"
"""The untrained student: read from the first validation of another arm's run."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study; tables that need the same one share it."""

    config: RunConfig

    @cached_property
    def name(self) -> str:
        """Folder of the run: method, seed and the hash of what the recipe sets.

        Values that equal their default are left out, so a key that a later version adds does not
        make finished runs look like others.
        """
        values = self.config.model_dump(mode="json", exclude_defaults=True)
        text, method = json.dumps(values, sort_keys=True), self.config.method
        if isinstance(method, OwnMethodOptions):
            text += method.code
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        label = method.label if isinstance(method, OwnMethodOptions) else method.name
        return f"{label}-seed{self.config.training.seed}-{digest}"


@dataclass(frozen=True)
class Arm:
    """One row of a table: the same recipe with every seed."""

    runs: dict[int, PlannedRun]
    """By seed; for the base arm, the runs whose first validation is read."""

    is_untrained: bool = False


@dataclass(frozen=True)
class Candidate:
    """One point of an arm's grid."""

    settings: Overrides
    runs: dict[int, PlannedRun]
    """By tuning seed."""

    chosen: Arm
    """The arm of the table, if this point is chosen."""


@dataclass(frozen=True)
class TunedArm:
    """An arm whose settings are chosen among candidates."""

    table: str
    arm: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class StudyTable:
    """A planned table."""

    name: str
    settings: TableConfig
    arms: dict[str, Arm]
    """In the order of the recipe."""


@dataclass(frozen=True)
class Plan:
    """All runs and tables of a study."""

    tables: list[StudyTable]
    tuning: list[TunedArm]
    """Arms with a grid. Until their settings are chosen, the first values stand in the tables."""

    seeds: list[int]
    text: str
    """The study recipe as it was read."""

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """Every run of the tables once, by name, all arms of the first seed before the next."""
        arms = [arm.runs for table in self.tables for arm in table.arms.values()]
        return _by_name(arms)

    @property
    def tuning_runs(self) -> dict[str, PlannedRun]:
        """Every run of the grids once, by name, in the same order."""
        return _by_name([one.runs for arm in self.tuning for one in arm.candidates])

    def with_choices(self, choices: Choices) -> "Plan":
        """Return the plan whose tables have the chosen settings."""
        tables = []
        for table in self.tables:
            arms = dict(table.arms)
            for tuned in self.tuning:
                if tuned.table == table.name:
                    settings = choices[tuned.table, tuned.arm]
                    arms[tuned.arm] = next(
                        one.chosen for one in tuned.candidates if one.settings == settings
                    )
            tables.append(replace(table, arms=with_untrained(arms)))
        return replace(self, tables=tables)


def with_untrained(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Return the arms, with the runs of the first trained one for the untrained student.

    Before the first step the students of all arms are equal and get the same problems.
    """
    first = next(arm for name, arm in arms.items() if name != BASE_ARM)
    return {
        name: arm if name != BASE_ARM else Arm(first.runs, is_untrained=True)
        for name, arm in arms.items()
    }


def _by_name(runs: Sequence[Mapping[int, PlannedRun]]) -> dict[str, PlannedRun]:
    seeds = dict.fromkeys(seed for by_seed in runs for seed in by_seed)
    ordered = [by_seed[seed] for seed in seeds for by_seed in runs if seed in by_seed]
    return {run.name: run for run in ordered}
