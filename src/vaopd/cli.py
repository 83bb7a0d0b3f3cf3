"""Defines the command line; it checks its input before it imports torch."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vaopd.allocator import let_segments_grow
from vaopd.doctor.command import doctor
from vaopd.errors import (
    ConfigError,
    PeerError,
    VaopdError,
    did_you_mean,
    is_out_of_memory,
    told_once,
)
from vaopd.evaluation import command
from vaopd.look import inspect, plot, runs
from vaopd.recipes.command import RECIPE, Debug, recipes
from vaopd.rollouts.vllm.command import setup_vllm
from vaopd.study.command import study
from vaopd.teacher.command import serve_teacher
from vaopd.training.data_command import data
from vaopd.versions import VersionOption

if TYPE_CHECKING:
    from vaopd.config import RunConfig

OUT_OF_MEMORY_REMEDY = (
    "give it more memory, a smaller model or fewer tokens at a time (--batch-tokens, "
    "teacher.batch_tokens); the same command goes on or starts again"
)

app = typer.Typer(
    help="On-policy distillation of vision-language models by visual advantage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(version: VersionOption = False) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # On import, bitsandbytes warns about a CPU kernel that vaopd does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@app.command()
def train(
    recipe: Annotated[str, RECIPE],
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
        bool, typer.Option("--dry-run", help="Check recipe and local data, print the recipe.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a student by a recipe."""
    from vaopd.config import load_config

    config = told_once(lambda: load_config(recipe, overrides or []))
    if dry_run:
        # Only the recipe is printed to standard output.
        _show_dry_run(config)
        _show_unread(config)
        return
    if config.training.device != "cpu":
        let_segments_grow()
    from vaopd.training.run import train as run

    _quiet_weights()
    output = output or Path("runs") / Path(recipe).stem
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
    debug: Debug = False,
) -> None:
    """Write the visual advantage of every token of any text, from any trainer."""
    config = _score_config(teacher, rollouts, overrides or [])
    if not rollouts.is_file():
        remedy = did_you_mean(rollouts) or "; give a JSONL file"
        raise ConfigError(f"rollouts file {rollouts} does not exist{remedy}")
    if output.exists():
        raise ConfigError(f"output {output} exists; choose another file or remove it")
    from rich.console import Console

    from vaopd.devices import check_auto_device, pick_device
    from vaopd.display import with_bar
    from vaopd.teacher.local import load_teacher
    from vaopd.teacher.rollout_file import score_file

    _quiet_weights()
    check_auto_device(config.training.device, [teacher])
    scorer = load_teacher(config, pick_device(config.training.device))
    work = partial(score_file, rollouts, output, scorer, config, problems=problems)
    count = _count_lines(rollouts)
    total = with_bar(Console(stderr=True), "scoring", count, lambda bar: work(progress=bar))
    typer.echo(f"scored {total} rollouts with {teacher}: {output}")


def _score_config(teacher: str, rollouts: Path, overrides: list[str]) -> "RunConfig":
    """Return the recipe of a scoring; ``--set`` may not change what other options decide."""
    from vaopd.config import parse_config, parse_overrides

    options = {
        "student.model": "--teacher",
        "teacher.model": "--teacher",
        "data.train": "--rollouts",
    }
    for override in overrides:
        key = override.partition("=")[0]
        if key in options:
            raise ConfigError(f"--set {override} says what {options[key]} says; leave it out")
    values = {
        "student": {"model": teacher},
        "teacher": {"model": teacher},
        "data": {"train": str(rollouts)}
        | ({"min_pixels": 1024} if teacher.startswith("tiny:") else {}),
    }
    return parse_config(parse_overrides(overrides, values))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder, checkpoint or LoRA adapters.")],
    output: Annotated[
        Path | None, typer.Option(help="Model folder to write; must not exist without --push.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Precision of the weights; float32 unless given."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face hub.")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="A new repository is private unless --public is given."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch of the repository; main unless given.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one plain Hugging Face model folder, with adapters merged, or push it to the hub."""
    if push is None and (private is not None or revision is not None):
        raise ConfigError("--private, --public and --revision belong to --push OWNER/NAME; add it")
    if push is None and output is None:
        raise ConfigError("export needs --output DIR to write, --push OWNER/NAME, or both")
    from vaopd.hub.push import HubTarget
    from vaopd.training.export import export as run
    from vaopd.training.export import export_and_push

    _quiet_weights()
    if push is None:
        assert output is not None
        folder = run(source, output, dtype or "float32")
        typer.echo(f"exported {folder} in {dtype or 'float32'}: {output}")
        return
    target = HubTarget(push, is_private=private is not False, revision=revision)
    folder, address = export_and_push(source, output, dtype, target)
    typer.echo(f"pushed {folder} to {push}: {address}")


app.command()(doctor)
app.command()(inspect)
app.command()(runs)
app.command()(plot)
app.command()(command.evaluate)
app.command()(command.compare)
app.command()(command.export_predictions)
app.command()(study)
app.command()(command.benchmarks)
app.command()(serve_teacher)
app.command()(recipes)
app.command()(setup_vllm)
app.add_typer(data, name="data")


def _show_dry_run(config: "RunConfig") -> None:
    """Print the recipe to standard output and the checks of the data to standard error."""
    from vaopd.training.dry_run import dry_run

    for line in dry_run(config):
        typer.echo(line, err=True)
    typer.echo(config.to_yaml(), nl=False)


def _quiet_weights() -> None:
    """Turn off other packages' progress bars for weights, which disturb our progress bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _show_unread(config: "RunConfig") -> None:
    from vaopd.unread import unread_line

    if line := unread_line(config):
        typer.echo(line, err=True)


def _count_lines(path: Path) -> int:
    from vaopd.problems.rows import numbered_lines

    return sum(1 for _ in numbered_lines(path))


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if result.is_stopped:
        console.print(
            f"stopped after step {result.steps}; the same command with --resume goes on",
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
    if result.best:
        console.print(
            f"best validation: {result.best.metric} {result.best.value:.1%} at step "
            f"{result.best.step}; its model: {result.output / 'checkpoints' / 'best'}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s; run folder: {result.output}",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    """Run the command line; print a failure as one sentence and exit with a code."""
    debug = "--debug" in sys.argv
    try:
        app()
    except VaopdError as error:
        if debug:
            raise
        if not isinstance(error, PeerError):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print(
            "interrupted; train --resume or the same study goes on from the newest checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    # A panic of a library in Rust is not an Exception.
    except BaseException as error:
        if debug or not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        if is_out_of_memory(error):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"error: memory ran out ({reason}); {OUT_OF_MEMORY_REMEDY}", file=sys.stderr)
            raise SystemExit(1) from None
        assert isinstance(error, OSError)
        place = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        print(f"error: {reason}{place}; check space, permissions and the path", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
