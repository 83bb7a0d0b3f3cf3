"""``vaopd study``: options first, further imports when there is work."""

from pathlib import Path
from typing import Annotated

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.command import RECIPE, Debug


def study(  # noqa: PLR0913  # a parameter for each option of the command
    recipe: Annotated[str, RECIPE],
    output: Annotated[Path, typer.Option(help="Folder of the study; finished runs in it stay.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE for all runs, training.max_steps=10.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(help="Methods to compare, the first is the baseline: opd,va_opd.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of training, such as 0,1,2.")] = None,
    tables: Annotated[str | None, typer.Option(help="Tables of a study recipe to run.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's short version.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; 2 unless there is one core.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and list the runs only.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare arms over seeds: train what is missing, write study.json and study.html."""
    from vaopd.study.recipe import load_plan

    plan = load_plan(
        recipe,
        overrides or [],
        arms=_split(arms),
        seeds=_seeds(seeds),
        tables=_split(tables),
        is_quick=quick,
    )
    if dry_run:
        for name in plan.runs:
            typer.echo(name)
        return
    from vaopd.study.run import run_study
    from vaopd.study.runs import num_cores

    run_study(plan, output, jobs=jobs or min(2, num_cores()))
    typer.echo(f"{len(plan.runs)} runs; page: {output / 'study.html'}")


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _seeds(text: str | None) -> list[int] | None:
    try:
        return [int(part) for part in _split(text) or []] or None
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}; write whole numbers, as in 0,1,2") from None
