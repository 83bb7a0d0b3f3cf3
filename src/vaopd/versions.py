"""The versions for ``vaopd --version``, from metadata, because importing torch takes seconds."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer


def _show(is_asked: bool) -> bool:
    if not is_asked:
        return False
    for name in ("vaopd", "torch", "transformers"):
        try:
            typer.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} is not installed")
    raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show, is_eager=True, help="Print versions and exit."),
]
