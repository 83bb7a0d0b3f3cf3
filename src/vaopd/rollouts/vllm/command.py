"""``vaopd setup-vllm``; vLLM pins torch and transformers, so it gets an environment of its own."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from vaopd.recipes.command import Debug
from vaopd.rollouts.vllm.setup import TORCH_INDEX, VllmBuild, set_up


def setup_vllm(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to build it.")],
    device: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="What vLLM computes on.")
    ] = "auto",
    torch_index: Annotated[
        str, typer.Option(help="Package index of torch for a CPU; '' = your own settings.")
    ] = TORCH_INDEX,
    debug: Debug = False,
) -> None:
    """Build an environment with vLLM and record it, so that runs find it."""
    if device == "auto":
        from vaopd.devices import has_gpu

        device = "cuda" if has_gpu() else "cpu"
    build = VllmBuild(folder=folder.absolute(), variant=device, torch_index=torch_index)
    version = set_up(build, partial(typer.echo, err=True))
    typer.echo(f"vLLM {version} is ready in {build.folder}")
    typer.echo(
        f"sampling.engine=auto finds it; a recipe names it by sampling.vllm.python={build.python}"
    )
