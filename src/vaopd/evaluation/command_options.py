"""The options of ``vaopd evaluate`` in sections, which a command takes instead of parameters."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


@dataclass(frozen=True, kw_only=True)
class What:
    """The model, the benchmarks and the output folder."""

    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub name, run folder (its final/), checkpoint, model folder, tiny:NAME, "
            "served name."
        ),
    ] = None
    benchmark: Annotated[
        str,
        typer.Option(
            help="NAME[,NAME..] of `vaopd benchmarks`, paper for the eight of Table 1, own files."
        ),
    ] = ""
    output: Annotated[
        Path | None, typer.Option(help="Folder for responses, verdicts and results.json.")
    ] = None
    predictions: Annotated[
        Path | None, typer.Option(help="Score these saved responses; needs no model.")
    ] = None
    data: Annotated[
        Path | None, typer.Option(help="Folder (or file) of benchmark data; else the hub.")
    ] = None
    on_bad_row: Annotated[
        Literal["error", "skip"], typer.Option(help="Stop at a bad row, or count and skip it.")
    ] = "error"
    limit: Annotated[int | None, typer.Option(help="Only so many items, from the front.")] = None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Settings of prompts and sampling."""

    samples: Annotated[
        int, typer.Option(help="Responses for each item (avg@k); may grow in the same folder.")
    ] = 8
    temperature: Annotated[float, typer.Option(help="0 = greedy.")] = 1.0
    top_p: Annotated[float, typer.Option(help="Nucleus mass.")] = 1.0
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 = all.")] = 0
    max_new_tokens: Annotated[int, typer.Option(help="Longest response.")] = 4096
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 42
    min_pixels: Annotated[
        int | None,
        typer.Option(help="Smaller images are scaled up; by the model's own run, else 262,144."),
    ] = None
    max_pixels: Annotated[int, typer.Option(help="Larger images are scaled down.")] = 4_194_304
    prompts: Annotated[
        Literal["official", "box"],
        typer.Option(help="Each set's own prompt, or with a line that asks for a box."),
    ] = "official"
    prompt_suffix: Annotated[
        str | None,
        typer.Option(
            help="Text after every prompt, on a line of its own; by the model's own run, else none."
        ),
    ] = None
    system_prompt: Annotated[
        str | None,
        typer.Option(help="Text of a system message; by the model's own run, else none."),
    ] = None
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the chat template, such as enable_thinking=false."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Settings of the engine that answers."""

    engine: Annotated[
        Literal["transformers", "vllm", "openai"],
        typer.Option(help="In process, a vLLM server started for it, or a server that runs."),
    ] = "transformers"
    devices: Annotated[
        str,
        typer.Option(
            "--devices",
            "--device",
            help="One copy of the model on each: auto = every visible GPU, else the CPU; or "
            "cuda:0,cuda:2. Not for the openai engine.",
        ),
    ] = "auto"
    batch_tokens: Annotated[
        int, typer.Option(help="Key-value cache of the transformers engine, in tokens.")
    ] = 131_072
    vllm_python: Annotated[
        str | None, typer.Option(help="Interpreter with vLLM; else VAOPD_VLLM_PYTHON or this one.")
    ] = None
    vllm_arguments: Annotated[
        str, typer.Option(help='Further arguments of vLLM, "--tensor-parallel-size 2".')
    ] = ""
    base_url: Annotated[
        str | None, typer.Option(help="Server; its key is read from OPENAI_API_KEY.")
    ] = None
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 600.0
    price_input: Annotated[float | None, typer.Option(help="Price of a million prompt tokens.")] = (
        None
    )
    price_output: Annotated[
        float | None, typer.Option(help="Price of a million response tokens.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Settings of scoring."""

    extraction: Annotated[
        Literal["last_committed", "first_committed", "last_boxed"],
        typer.Option(help="Which answer counts."),
    ] = "last_committed"
    judge_model: Annotated[
        str | None, typer.Option(help="Also let this model judge, at temperature 0.")
    ] = None
    judge_base_url: Annotated[
        str | None, typer.Option(help="Server of the judge; its key is in OPENAI_API_KEY.")
    ] = None
    judge_prompt: Annotated[
        Path | None, typer.Option(help="File with {question}, {answer} and {response}.")
    ] = None
    score: Annotated[
        Literal["rules", "judge"], typer.Option(help="Whose verdicts are the table's score.")
    ] = "rules"


def in_sections(*sections: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: the command line sees the fields, the function gets the sections."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**options: Any) -> None:
            options.pop("debug")  # read by main()
            function(
                *(
                    section(**{field.name: options[field.name] for field in fields(section)})
                    for section in sections
                )
            )

        found = [field for section in sections for field in fields(section)]
        assert all(field.default is not MISSING for field in found)
        parameters = [(field.name, field.type, field.default) for field in found]
        kind = inspect.Parameter.KEYWORD_ONLY
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, kind, annotation=annotation, default=default)
                for name, annotation, default in [*parameters, ("debug", Debug, False)]
            ]
        )
        command.__annotations__ = {name: annotation for name, annotation, _ in parameters}
        command.__annotations__["debug"] = Debug
        return command

    return decorate
