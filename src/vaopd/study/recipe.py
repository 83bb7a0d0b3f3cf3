"""Reads the recipe of a study: its base recipe, tables, arms and grids become a plan of runs."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vaopd.config import (
    explain,
    parse_config,
    parse_overrides,
    read_recipe,
)
from vaopd.config.methods import BUILT_IN, methods_with
from vaopd.errors import ConfigError
from vaopd.recipes.shipped import find_recipe
from vaopd.study.plan import (
    BASE_ARM,
    Arm,
    Candidate,
    Plan,
    PlannedRun,
    StudyTable,
    TunedArm,
    with_untrained,
)
from vaopd.study.schema import ArmConfig, Overrides, StudyConfig, TableConfig, TuningConfig


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
    ``quick``, ``overrides`` given here, the table's, the arm's, its choice of a grid, and the seed.

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
    shared, tuning = [*study.overrides], study.tuning
    chosen, used_seeds = list(study.tables), list(study.seeds)
    if is_quick:
        if study.quick is None:
            raise ConfigError(f"{path} has no quick version; add a quick section or drop --quick")
        shared += study.quick.overrides
        tuning = study.quick.tuning or tuning
        chosen, used_seeds = study.quick.tables, list(study.quick.seeds)
    chosen, used_seeds = list(tables or chosen), list(seeds or used_seeds)
    base = find_recipe(study.recipe, beside=path.parent)
    planned, tuned = [], []
    for name in chosen:
        settings = _named(study, name, path)
        own = [seed for seed in settings.seeds or used_seeds if seed in used_seeds]
        if not own:
            raise ConfigError(
                f"table {name} has the seeds {_listed(settings.seeds)}, none of which is among "
                f"{_listed(used_seeds)}; give one of them to --seeds"
            )
        common = [*shared, *overrides, *settings.overrides]
        table, own_tuning = _table(name, settings, base, common, own, tuning)
        planned.append(table)
        tuned += own_tuning
    _check_read([*shared, *overrides], planned)
    return Plan(planned, tuned, used_seeds, path.read_text(encoding="utf-8"))


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
        arms={
            arm: ArmConfig(set=() if arm == BASE_ARM else (f"method.name={arm}",)) for arm in arms
        },
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
        if table.arms.get(BASE_ARM, ArmConfig()) != ArmConfig():
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
    name: str,
    settings: TableConfig,
    base: Path,
    common: list[str],
    seeds: list[int],
    tuning: TuningConfig | None,
) -> tuple[StudyTable, list[TunedArm]]:
    """Return a table, with the first point of every grid, and its arms that have a grid."""

    def runs(arm: ArmConfig, more: Overrides, numbers: Sequence[int]) -> dict[int, PlannedRun]:
        return {seed: _run(base, common, [*arm.set, *more], seed) for seed in numbers}

    def candidate(arm: ArmConfig, point: Overrides) -> Candidate:
        tried = runs(arm, (*point, *tuning.overrides), tuning.seeds) if tuning else {}
        return Candidate(point, tried, Arm(runs(arm, point, seeds)))

    trained = {name: arm for name, arm in settings.arms.items() if name != BASE_ARM}
    if not trained:
        raise ConfigError(
            f"table {name} has only the arm base, which is read from the run of another arm; add "
            "one, such as opd"
        )
    points = {arm: _points(one.grid or settings.grid) for arm, one in trained.items()}
    has_grid = _check_grids(name, {arm: len(found) for arm, found in points.items()}, tuning)
    candidates = {
        arm: [candidate(one, point) for point in points[arm]] for arm, one in trained.items()
    }
    arms = {
        arm: candidates[arm][0].chosen if arm != BASE_ARM else Arm({}, is_untrained=True)
        for arm in settings.arms
    }
    tuned = [TunedArm(name, arm, found) for arm, found in candidates.items()] if has_grid else []
    return StudyTable(name, settings, with_untrained(arms)), tuned


def _points(grid: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """Return all combinations of a grid's values, the last key changing fastest."""
    return [
        tuple(f"{key}={value}" for key, value in zip(grid, point, strict=True))
        for point in product(*grid.values())
    ]


def _check_grids(table: str, sizes: Mapping[str, int], tuning: TuningConfig | None) -> bool:
    """Return whether a table has grids; all its arms must have one of the same size."""
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
        raise ConfigError(
            f"table {table} gives its arms grids of different size ({listed}), and an arm with "
            "more choices has an advantage; give all as many"
        )
    has_grid = max(sizes.values()) > 1
    if has_grid and tuning is None:
        raise ConfigError(
            f"table {table} has a grid, but the study has no section tuning; add it with seeds, "
            "and with held-out problems of its own under overrides"
        )
    return has_grid


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
