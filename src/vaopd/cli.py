"""The command line: parses and checks first, imports torch only when there is work to do."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vaopd.errors import PeerError, VaopdError
from vaopd.evaluation import command

T = TypeVar("T")

app = typer.Typer(
    help="On-policy distillation of vision-language models by visual advantage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; see recipes/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE, such as training.max_steps=10.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; runs/RECIPE unless given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an old run folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the recipe only.")
    ] = False,
    debug: command.Debug = False,  # read by main()
) -> None:
    """Train a student by a recipe."""
    from vaopd.config import load_config

    config = _told_once(lambda: load_config(recipe, overrides or []))
    if dry_run:
        typer.echo(config.to_yaml(), nl=False)
        return
    from vaopd.training.loop import train as run

    _quiet_weights()
    output = output or Path("runs") / recipe.stem
    result = run(config, output, resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") == "0":
        _print_result(result)


@app.command()
def score(
    teacher: Annotated[str, typer.Option(help="Hub name, model folder or tiny:NAME.")],
    rollouts: Annotated[Path, typer.Option(help="JSONL with a response (or token_ids) a row.")],
    output: Annotated[Path, typer.Option(help="JSONL to write; must not exist.")],
    problems: Annotated[
        str | None, typer.Option(help="Source of the problems that rows name by problem_id.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the recipe schema, such as view.ratio=0.2."),
    ] = None,
    debug: command.Debug = False,  # read by main()
) -> None:
    """Write the visual advantage of every token of any text, from any trainer."""
    from vaopd.config import parse_config, parse_overrides
    from vaopd.errors import ConfigError

    own = (f"student.model={teacher}", f"teacher.model={teacher}", f"data.train={rollouts}")
    small = ["data.min_pixels=1024"] if teacher.startswith("tiny:") else []
    config = parse_config(parse_overrides([*small, *(overrides or []), *own]))
    if not rollouts.is_file():
        raise ConfigError(f"rollouts file {rollouts} does not exist; give a JSONL file")
    if output.exists():
        raise ConfigError(f"output {output} exists; choose another file or remove it")
    from rich.console import Console
    from rich.progress import Progress

    from vaopd.models.devices import pick_device
    from vaopd.models.loading import PromptEncoder
    from vaopd.teacher.local import load_teacher
    from vaopd.teacher.rollout_file import score_file

    _quiet_weights()
    scorer = load_teacher(config, pick_device(config.training.device))
    encoder = PromptEncoder(scorer.model, config.data, config.view)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=_count_lines(rollouts))
        total = score_file(
            rollouts,
            output,
            scorer,
            encoder,
            high_fraction=config.method.high_fraction,
            problems=problems,
            progress=lambda rows: bar.update(task, advance=rows),
        )
    typer.echo(f"scored {total} rollouts with {teacher}: {output}")


@app.command()
def study(  # noqa: PLR0913  # a parameter for each option of the command
    recipe: Annotated[Path, typer.Argument(help="Study recipe (recipes/study.yaml) or recipe.")],
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
    debug: command.Debug = False,  # read by main()
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
    from vaopd.errors import ConfigError

    try:
        return [int(part) for part in _split(text) or []] or None
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}; write whole numbers, as in 0,1,2") from None


@app.command()
def inspect(
    paths: Annotated[
        list[Path], typer.Argument(help="Run folders, or files that `vaopd score` wrote.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file; RUN_DIR/report.html unless given.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Write the page again as a run goes on.")
    ] = False,
    max_rollouts: Annotated[
        int, typer.Option(min=1, help="Most rollouts to show; numbers always count all.")
    ] = 200,
    debug: command.Debug = False,  # read by main()
) -> None:
    """Write one self-contained HTML page of rollouts, visual advantage and curves."""
    from rich.console import Console

    from vaopd.inspection.report import follow_report, report_path, write_report

    target = report_path(paths, output)
    with Console(stderr=True).status("reading") as status:

        def progress(text: str) -> None:
            status.update(f"reading {text}")

        write = follow_report if follow else write_report
        try:
            report = write(paths, target, max_rollouts=max_rollouts, progress=progress)
        except KeyboardInterrupt:
            if not follow:
                raise
            # How one stops following: the page of the last step is there and whole.
            typer.echo(f"stopped following; the page stays: {target}")
            return
    left_out = report.total - report.shown
    shown = f"{report.shown} of {report.total} rollouts ({left_out} left out)"
    if left_out == 0:
        shown = f"{report.total} rollouts"
    typer.echo(f"{shown}, {report.num_bytes / 1e6:.1f} MB: {target}")


app.command()(command.evaluate)
app.command()(command.compare)


def _told_once(check: Callable[[], T]) -> T:
    """Return what a check gives; of the processes of a launcher only one tells its failure."""
    try:
        return check()
    except VaopdError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise PeerError(str(error), error.exit_code) from None
        raise


def _quiet_weights() -> None:
    """Turn off the bars of reading and writing weights, which break our own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if result.is_stopped:
        console.print(
            f"stopped behind step {result.steps}; the same command with --resume goes on",
            highlight=False,
            soft_wrap=True,
        )
        return
    if result.before and result.after:
        table = Table(title="held-out problems")
        table.add_column("")
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        for label, key, style in (
            ("accuracy", "accuracy", ".1%"),
            ("accuracy, pixelated image", "accuracy_pixelated", ".1%"),
            ("student VA on high-VA tokens (nats)", "student_va", ".3f"),
            ("teacher VA on the same tokens (nats)", "teacher_va", ".3f"),
        ):
            old, new = getattr(result.before, key), getattr(result.after, key)
            if old is not None and new is not None:
                table.add_row(label, format(old, style), format(new, style))
        console.print(table)
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s; run folder: {result.output}",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    """Run the command line; a failure is one sentence and an exit code."""
    debug = "--debug" in sys.argv
    try:
        app()
    except VaopdError as error:
        if debug:
            raise
        if not isinstance(error, PeerError):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        print(f"error: {reason}{place}; check space, permissions and the path", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(
            "interrupted; train --resume or the same study goes on from the newest checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
