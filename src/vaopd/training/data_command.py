"""``vaopd data check`` and ``vaopd data prepare``; slow imports only when needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.command import Debug, Json, print_json

if TYPE_CHECKING:
    from vaopd.config import RunConfig

SOURCE = typer.Argument(help="File, folder, hub name or drawn:, as data.train of a recipe.")
NO_VALIDATION = "data.validation=null"
SHOWN = 10
"""Number of pairs that are printed."""

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of a recipe, such as data.columns={image: picture}."),
]

data = typer.Typer(help="Examine and prepare data of your own.", no_args_is_help=True)


@data.command()
def check(
    source: Annotated[str, SOURCE],
    model: Annotated[
        str | None, typer.Option(help="Count tokens for it: hub name, folder or tiny:NAME.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Read the data as it does, count tokens for its student.")
    ] = None,
    overrides: Set = None,
    json: Json = False,
    debug: Debug = False,  # read by main()
) -> None:
    """Say what a source holds and which rows a training would refuse; exit code 1 for any."""
    config = _config(source, model, recipe, overrides or [])
    if model is None and recipe is not None:
        model = config.student.model
    from rich.console import Console

    from vaopd.training.data_check import survey

    report = survey(source, config.data, model, Console(stderr=True))
    if json:
        print_json(report.as_json())
    else:
        typer.echo("\n".join(report.lines()))
    if report.good < report.rows:
        raise typer.Exit(1)


@data.command()
def prepare(
    source: Annotated[str, SOURCE],
    output: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    against: Annotated[
        list[str] | None, typer.Option(help="Source that should share no image, such as a test.")
    ] = None,
    distance: Annotated[
        int, typer.Option(min=0, max=64, help="Most differing bits of 64 of near-duplicates.")
    ] = 4,
    overrides: Set = None,
    debug: Debug = False,  # read by main()
) -> None:
    """Write a source as parquet with a manifest, and report near-duplicate images."""
    if output.exists():
        raise ConfigError(f"{output} exists; name a folder that does not, or remove it")
    config = _config(source, None, None, overrides or [])
    from rich.console import Console

    from vaopd.display import with_bar
    from vaopd.problems.duplicates import near_duplicates
    from vaopd.problems.prepare import prepare as write
    from vaopd.problems.sources import all_problems

    rules = _rules(config)
    problems = all_problems(source, rules=rules)
    others = {name: all_problems(name) for name in against or ()}
    total = len(problems) + sum(map(len, others.values()))
    console = Console(stderr=True)
    found = with_bar(
        console,
        "hashing images",
        total,
        lambda bar: near_duplicates(problems, others, distance, bar),
    )
    manifest = with_bar(
        console, "writing", len(problems), lambda bar: write(problems, source, output, found, bar)
    )
    typer.echo(f"{manifest['rows']} rows, {manifest['images']} images: {output}")
    typer.echo(f"near-duplicates ({distance} of 64 bits or fewer differ): {len(found)} pairs")
    for one in found[:SHOWN]:
        place = f"{one.other} of {one.source}" if one.source else one.other
        same = ", same question" if one.is_same_question else ""
        typer.echo(f"  {one.id} and {place}: {one.bits} bits{same}")
    if len(found) > SHOWN:
        typer.echo(f"  and {len(found) - SHOWN} more; all are in {output / 'manifest.json'}")


def _config(
    source: str, model: str | None, recipe: str | None, overrides: list[str]
) -> "RunConfig":
    """Return the recipe whose section ``data`` reads the source."""
    from vaopd.config import load_config, parse_config, parse_overrides
    from vaopd.problems.sources import stream_line

    if line := stream_line(source):
        typer.echo(line, err=True)
    for override in overrides:
        if override.startswith(("data.train=", "data.validation=")):
            raise ConfigError(f"--set {override} names another source than SOURCE; leave it out")
    if recipe is not None:
        return load_config(recipe, [*overrides, f"data.train={_quoted(source)}", NO_VALIDATION])
    values: dict[str, Any] = {"student": {"model": model or "none"}, "data": {"train": source}}
    if model is not None and model.startswith("tiny:"):
        values["data"]["min_pixels"] = 1024
    return parse_config(parse_overrides(overrides, values))


def _quoted(text: str) -> str:
    """Return a text as YAML reads it back."""
    import json

    return json.dumps(text)


def _rules(config: "RunConfig") -> Any:
    """Return how rows are read: without added texts, which belong to a recipe."""
    from dataclasses import replace

    from vaopd.problems.reading import reading_rules

    return replace(reading_rules(config.data), system_prompt="", prompt_suffix="")
