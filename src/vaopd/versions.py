"""Versions from the packages' metadata, because importing torch takes seconds."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer


def installed_version(name: str) -> str | None:
    """Return the version of a package, or ``None`` where there is no metadata of it.

    That is so for a package that is not installed, and for vaopd itself where its source is on
    ``PYTHONPATH``, for example in the environment of vLLM.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _show(is_asked: bool) -> bool:
    if not is_asked:
        return False
    for name in ("vaopd", "torch", "transformers"):
        found = installed_version(name)
        typer.echo(f"{name} {found}" if found else f"{name} is not installed")
    raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show, is_eager=True, help="Print versions and exit."),
]
