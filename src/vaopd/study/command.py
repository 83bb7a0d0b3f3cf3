"""``vaopd study``: options first, further imports when there is work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.command import RECIPE, Debug

if TYPE_CHECKING:
    from vaopd.study.plan import Plan


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
    budget_minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Begin no run that is not expected to end in time; call again to go on."
        ),
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
        for name in [*plan.tuning_runs, *plan.runs]:
            typer.echo(name)
        return
    _run(plan, output, jobs, None if budget_minutes is None else 60 * budget_minutes)


def _run(plan: "Plan", output: Path, jobs: int | None, budget_seconds: float | None) -> None:
    from rich.console import Console

    from vaopd.study.run import run_study, tune
    from vaopd.study.runs import Runner, num_cores

    console, num_jobs = Console(stderr=True), jobs or min(2, num_cores())
    runner = Runner(output, jobs=num_jobs, console=console, budget_seconds=budget_seconds)
    if plan.tuning:
        choices = tune(plan, output, runner)
        if choices is None:
            typer.echo("no settings are chosen yet, because the budget ended before")
            return
        plan = plan.with_choices(choices)
    run_study(plan, output, runner=runner)
    left = f", {runner.postponed} of them not begun" if runner.postponed else ""
    typer.echo(f"{len(plan.runs)} runs{left}; page: {output / 'study.html'}")


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _seeds(text: str | None) -> list[int] | None:
    try:
        return [int(part) for part in _split(text) or []] or None
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}; write whole numbers, as in 0,1,2") from None
