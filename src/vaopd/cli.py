"""The command line: parses and checks first, imports torch only when there is work to do."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from vaopd.errors import VaopdError

app = typer.Typer(
    help="On-policy distillation of vision-language models by visual advantage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


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
    debug: Debug = False,
) -> None:
    """Train a student by a recipe."""
    from vaopd.config import load_config

    config = load_config(recipe, overrides or [])
    if dry_run:
        typer.echo(config.to_yaml(), nl=False)
        return
    from vaopd.training.loop import remove_run
    from vaopd.training.loop import train as run

    output = output or Path("runs") / recipe.stem
    if overwrite and not resume:
        remove_run(output)
    result = run(config, output, resume=resume)
    _print_result(result)


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
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
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
