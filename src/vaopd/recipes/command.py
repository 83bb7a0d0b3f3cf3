"""``vaopd recipes`` and ``vaopd recipes copy``."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.shipped import copy_recipe, shipped_recipes, summary


def complete_name(incomplete: str) -> list[str]:
    """Return the shipped recipes with this beginning; without one, shells complete file names."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
"""Read by the command line's ``main``."""

Json = Annotated[bool, typer.Option("--json", help="Write JSON for a script.")]


def print_json(value: Any) -> None:
    """Write a value to standard output as JSON."""
    typer.echo(json_module.dumps(value, indent=2, ensure_ascii=False))


RECIPE = typer.Argument(
    help="YAML file, or a name that vaopd recipes lists.", autocompletion=complete_name
)


def recipes(
    action: Annotated[
        Literal["copy"] | None, typer.Argument(help="copy NAME [DEST]; else the list.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="What to copy.", autocompletion=complete_name)
    ] = None,
    destination: Annotated[Path, typer.Argument(help="Folder, or a new .yaml file.")] = Path(),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes that ship, or copy one to change it; other commands take their names."""
    shipped = shipped_recipes()
    if json and action is None:
        print_json({each: {"path": str(path), "summary": summary(path)}
                    for each, path in shipped.items()})  # fmt: skip
        return
    if action is None:
        width = max(len(each) for each in shipped)
        for each, path in shipped.items():
            typer.echo(f"{each:{width}}  {summary(path)}")
    elif name is None:
        raise ConfigError("copy needs the name of a recipe; `vaopd recipes` lists those that ship")
    else:
        typer.echo(f"copied {name}: {copy_recipe(name, destination)}")
