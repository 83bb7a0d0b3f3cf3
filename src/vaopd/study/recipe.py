"""The recipe of a study: tables of arms over one base recipe; and the plan of its runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from vaopd.config import (
    OwnMethodOptions,
    RunConfig,
    Section,
    explain,
    parse_config,
    parse_overrides,
    read_recipe,
)
from vaopd.config.methods import BUILT_IN, methods_with
from vaopd.errors import ConfigError
from vaopd.recipes.shipped import find_recipe

BASE_ARM = "base"
"""The untrained student: read from the first validation of another arm's run."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Overrides = tuple[str, ...]


class AxisConfig(Section):
    """The place of a table on an axis of the regime map."""

    name: str
    """Name of the quantity that varies; tables of one name share a plot."""

    value: float
    """Value of this table on the axis."""


class TableConfig(Section):
    """Arms that are compared with one baseline."""

    title: str
    """Heading in the report."""

    baseline: str
    """The arm that all others are compared with."""

    arms: Annotated[dict[str, Overrides], Field(min_length=1)]
    """Name and settings of each arm; ``base`` is the untrained student and has no settings."""

    overrides: Overrides = ()
    """Settings of all arms of the table."""

    figures: tuple[Literal["intervals", "curves", "sparsity"], ...] = ("intervals",)
    """Plots below the table."""

    axis: AxisConfig | None = None
    """Makes the table one point of a regime map."""

    seeds: Seeds | None = None
    """Seeds of this table; by default the study's. ``--seeds`` can only leave some out."""


class QuickConfig(Section):
    """Changes by ``--quick``."""

    seeds: Seeds
    overrides: Overrides = ()
    tables: tuple[str, ...]


class StudyConfig(Section):
    """A study recipe: a base recipe, tables of arms, seeds."""

    recipe: str
    """Base recipe: a path relative to this file, or the name of one that ships."""

    tables: Annotated[dict[str, TableConfig], Field(min_length=1)]
    seeds: Seeds
    overrides: Overrides = ()
    """Settings of all runs."""

    quick: QuickConfig | None = None


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
class StudyTable:
    """A planned table."""

    name: str
    settings: TableConfig
    arms: dict[str, Arm]


@dataclass(frozen=True)
class Plan:
    """All runs and tables of a study."""

    tables: list[StudyTable]
    seeds: list[int]
    text: str
    """The study recipe as it was read."""

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """Every run once, by name, in the order of the tables."""
        return {
            run.name: run
            for table in self.tables
            for arm in table.arms.values()
            for run in arm.runs.values()
        }


def load_plan(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    tables: Sequence[str] | None = None,
    is_quick: bool = False,
) -> Plan:
    """Return the plan of a study recipe, or of an ordinary recipe with ``arms`` as its methods.

    Values win in this order, the last one first: base recipe, the study's overrides, those of
    ``quick``, ``overrides`` given here, the table's, the arm's, and the seed.

    Raises:
        ConfigError: A file is missing or breaks its schema, an option does not fit the recipe, or
            an arm's values break the schema of runs; names the arm.
    """
    path = find_recipe(recipe)
    values = read_recipe(path)
    if "tables" not in values:
        study = _plain_study(path, arms, seeds)
        if tables or is_quick:
            raise ConfigError(
                f"{path} is an ordinary recipe, which has no tables and no quick version; leave "
                "out --tables and --quick, or give a study recipe such as study"
            )
    else:
        study = _parse_study(values, path)
        if arms:
            raise ConfigError(
                f"{path} is a study recipe, which names its arms itself; leave out --arms or "
                "choose among its tables by --tables"
            )
    shared = [*study.overrides]
    chosen, used_seeds = list(study.tables), list(study.seeds)
    if is_quick:
        if study.quick is None:
            raise ConfigError(f"{path} has no quick version; add a quick section or drop --quick")
        shared += study.quick.overrides
        chosen, used_seeds = study.quick.tables, list(study.quick.seeds)
    chosen, used_seeds = list(tables or chosen), list(seeds or used_seeds)
    base = find_recipe(study.recipe, beside=path.parent)
    planned = []
    for name in chosen:
        settings = _named(study, name, path)
        own = [seed for seed in settings.seeds or used_seeds if seed in used_seeds]
        if not own:
            raise ConfigError(
                f"table {name} has the seeds {_listed(settings.seeds)}, none of which is among "
                f"{_listed(used_seeds)}; give one of them to --seeds"
            )
        planned.append(_table(name, settings, base, [*shared, *overrides], own))
    _check_read([*shared, *overrides], planned)
    return Plan(planned, used_seeds, path.read_text(encoding="utf-8"))


def _check_read(overrides: Sequence[str], tables: Sequence[StudyTable]) -> None:
    """Check that some arm reads each key of a method; an arm keeps the keys its method reads."""
    runs = [run for table in tables for arm in table.arms.values() for run in arm.runs.values()]
    read = {key for run in runs for key in run.config.method.model_dump()}
    for override in overrides:
        section, _, key = override.partition("=")[0].partition(".")
        if section == "method" and key and key not in read:
            raise ConfigError(f"{override} is not read by the method of any arm; leave it out")


def _listed(seeds: Sequence[int] | None) -> str:
    return ", ".join(str(seed) for seed in seeds or ())


def _plain_study(
    path: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None
) -> StudyConfig:
    if not arms or not seeds:
        raise ConfigError(
            f"{path} is an ordinary recipe, so --arms and --seeds are needed; add for example "
            "--arms opd,va_opd --seeds 0,1,2"
        )
    table = TableConfig(
        title=path.stem,
        baseline=arms[0],
        arms={arm: () if arm == BASE_ARM else (f"method.name={arm}",) for arm in arms},
        figures=("intervals", "curves"),
    )
    return StudyConfig(recipe=str(path.absolute()), tables={"study": table}, seeds=tuple(seeds))


def _parse_study(values: dict[str, Any], path: Path) -> StudyConfig:
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(explain(item, StudyConfig) for item in error.errors())
        raise ConfigError(f"study recipe {path}: {problems}") from None
    for name, table in study.tables.items():
        if table.baseline not in table.arms:
            raise ConfigError(
                f"study recipe {path}: table {name} has no arm {table.baseline!r} for a baseline; "
                f"choose among {', '.join(table.arms)}"
            )
        if table.arms.get(BASE_ARM):
            raise ConfigError(
                f"study recipe {path}: table {name} gives values to the arm base, which is the "
                "untrained student; rename that arm or empty it"
            )
    return study


def _named(study: StudyConfig, name: str, path: Path) -> TableConfig:
    if name not in study.tables:
        raise ConfigError(f"{path} has no table {name!r}; choose among {', '.join(study.tables)}")
    return study.tables[name]


def _table(
    name: str, settings: TableConfig, base: Path, shared: list[str], seeds: list[int]
) -> StudyTable:
    common = [*shared, *settings.overrides]
    trained = {
        arm: Arm({seed: _run(base, common, list(own), seed) for seed in seeds})
        for arm, own in settings.arms.items()
        if arm != BASE_ARM
    }
    if not trained:
        raise ConfigError(
            f"table {name} has only the arm base, which is read from the run of another arm; add "
            "one, such as opd"
        )
    # Before the first step the students of all arms are equal and get the same problems.
    first = next(iter(trained.values()))
    arms = {
        arm: trained[arm] if arm != BASE_ARM else Arm(first.runs, is_untrained=True)
        for arm in settings.arms
    }
    return StudyTable(name, settings, arms)


def _run(base: Path, common: list[str], own: list[str], seed: int) -> PlannedRun:
    values = parse_overrides(common, read_recipe(base))
    shared = values.get("method") or {}
    if isinstance(shared, dict):
        chosen = parse_overrides(own, {"method": {**shared}})["method"]
        name = chosen.get("name") if isinstance(chosen, dict) else None
        values["method"] = _read_by(shared, name or "va_opd")
    try:
        config = parse_config(parse_overrides([*own, f"training.seed={seed}"], values))
    except ConfigError as error:
        given = " ".join([*common, *own]) or "no overrides"
        raise ConfigError(f"with {given}: {error}") from None
    if config.data.validation is None:
        raise ConfigError(
            f"{base} has no data.validation, so there is nothing to compare; add "
            "data.validation=SOURCE"
        )
    return PlannedRun(config)


def _read_by(options: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the options of ``method`` without those that only other built-in methods read.

    The arms of a study share one recipe, whose options are for the arms that read them.
    """
    section = BUILT_IN.get(method)
    if section is None:
        return options
    return {
        key: value
        for key, value in options.items()
        if key in section.model_fields or not methods_with(key)
    }
