"""``vaopd doctor``; it checks its options before it imports torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.command import RECIPE, Debug
from vaopd.unread import unread_line

if TYPE_CHECKING:
    from vaopd.config import RunConfig

Overrides = Annotated[
    list[str] | None, typer.Argument(help="KEY=VALUE, such as student.lora.rank=16.")
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Devices that share a step (training.parallel); 1 unless given."),
]
Device = Annotated[
    Literal["cuda", "cpu"] | None, typer.Option(help="Plan for it, or check it; else what is here.")
]
Memory = Annotated[
    float | None, typer.Option(min=0.1, help="GiB of each device; else what is here.")
]
TextTokens = Annotated[int | None, typer.Option(min=1, help="Of a question; 256 unless given.")]
ImagePixels = Annotated[
    int | None, typer.Option(min=1, help="Area of an image; data.min_pixels unless given.")
]
ResponseTokens = Annotated[
    int | None, typer.Option(min=1, help="Of a response; sampling.max_new_tokens unless given.")
]
BringUp = Annotated[bool, typer.Option("--bring-up", help="Run the first checks of a new card.")]
Output = Annotated[Path | None, typer.Option(help="JSON file for the results of --bring-up.")]
Only = Annotated[str | None, typer.Option(help="Names of checks of --bring-up, with commas.")]
Listed = Annotated[bool, typer.Option("--list", help="List the checks of --bring-up.")]


def doctor(  # noqa: PLR0913  # a parameter for each option of the command
    recipe: Annotated[str | None, RECIPE] = None,
    overrides: Overrides = None,
    processes: Processes = None,
    device: Device = None,
    memory: Memory = None,
    text_tokens: TextTokens = None,
    image_pixels: ImagePixels = None,
    response_tokens: ResponseTokens = None,
    bring_up: BringUp = False,
    output: Output = None,
    only: Only = None,
    listed: Listed = False,
    debug: Debug = False,
) -> None:
    """Show what this machine can run and, for a recipe, the memory it needs; loads no weights."""
    from vaopd.config import load_config

    of_estimate = {
        "--processes": processes,
        "--memory": memory,
        "--text-tokens": text_tokens,
        "--image-pixels": image_pixels,
        "--response-tokens": response_tokens,
    }
    of_checks = {"--output": output, "--only": only, "--list": listed or None}
    if bring_up:
        _refuse(of_estimate, "is for the estimate of a recipe; leave it or --bring-up out")
    else:
        _refuse(of_checks, "is for the checks of --bring-up; add that, or leave it out")
    config = None if recipe is None else load_config(recipe, overrides or [])
    if config is not None and (line := unread_line(config)):
        typer.echo(line, err=True)
    if bring_up:
        _check_device(config, device, output, only, listed)
    elif config is None:
        given = {**of_estimate, "--device": device}
        _refuse(given, "is for the estimate of a recipe; name one, or leave it out")
        _show_machine()
    else:
        _estimate(config, device, of_estimate)


def _refuse(options: dict[str, Any], reason: str) -> None:
    """Raise an error if one of the options was given."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} {reason}")


def _show_machine() -> None:
    from rich.console import Console

    from vaopd.doctor.report import show_machine

    show_machine(Console())


def _estimate(config: "RunConfig", device: str | None, given: dict[str, Any]) -> None:
    import torch
    from rich.console import Console

    from vaopd.devices import pick_device
    from vaopd.doctor.estimate import Lengths
    from vaopd.doctor.report import show_estimate

    memory = given["--memory"]
    show_estimate(
        Console(),
        config,
        torch.device(device) if device else pick_device(config.training.device),
        processes=given["--processes"] or 1,
        capacity=int(memory * 2**30) if memory else None,
        lengths=Lengths(
            text_tokens=given["--text-tokens"] or 256,
            image_pixels=given["--image-pixels"],
            response_tokens=given["--response-tokens"],
        ),
    )


def _check_device(
    config: "RunConfig | None",
    device: str | None,
    output: Path | None,
    only: str | None,
    listed: bool,
) -> None:
    import torch
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from vaopd.devices import has_gpu
    from vaopd.doctor.bring_up.runner import choose_checks, run_checks

    checks = choose_checks(only)
    if listed:
        for check in checks:
            typer.echo(f"{check.name:18}{check.tells}")
        return
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    place = torch.device(device or ("cuda" if has_gpu() else "cpu"))
    results = run_checks(checks, place, Console(), output=output, recipe=config)
    if any(result.result == "failed" for result in results):
        raise typer.Exit(1)
