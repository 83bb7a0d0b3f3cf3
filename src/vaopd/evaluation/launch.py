"""The work of ``vaopd evaluate``: from its options to engines, judges and tables."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
import yaml

from vaopd.config import load_yaml
from vaopd.errors import ConfigError
from vaopd.evaluation.command_options import Answering, Asking
from vaopd.evaluation.engines.chat import ChatClient, Server
from vaopd.evaluation.engines.engine import Engine
from vaopd.evaluation.judge import PROMPT, Judge
from vaopd.evaluation.protocol import (
    Protocol,
    min_pixels_of,
    model_folder,
    protocol_in,
    trained_on,
    weights_of,
)
from vaopd.evaluation.registry import find_benchmarks
from vaopd.evaluation.runner import (
    ReadOptions,
    Scored,
    ScoreOptions,
    evaluate,
    score_saved,
    write_results,
)
from vaopd.evaluation.tables import print_tables

BOX = "Put your final answer, for a choice its letter, in \\boxed{}."
"""The line that ``--prompts box`` adds to every prompt."""


def protocol_of(model: str, asking: Asking, answering: Answering) -> Protocol:
    """Return the protocol that the options describe.

    Raises:
        ConfigError: A value is out of its range, or the training run of the model has not ended.
    """
    # The name on a server is not a local folder.
    model = model if answering.engine == "openai" else model_folder(model)
    data = trained_on(model)
    suffix, system = asking.prompt_suffix, asking.system_prompt
    if suffix is None:
        suffix = data and data.prompt_suffix
    if system is None:
        system = data and data.system_prompt
    lines = [BOX] if asking.prompts == "box" else []
    lines += [suffix] if suffix else []
    return Protocol(
        model=model,
        engine=answering.engine,
        samples=asking.samples,
        temperature=asking.temperature,
        top_p=asking.top_p,
        top_k=asking.top_k,
        max_new_tokens=asking.max_new_tokens,
        seed=asking.seed,
        min_pixels=min_pixels_of(model) if asking.min_pixels is None else asking.min_pixels,
        max_pixels=asking.max_pixels,
        weights=weights_of(model),
        base_url=answering.base_url,
        prompt_suffix="\n".join(lines),
        system_prompt=system or "",
        chat_template_kwargs=template_values(asking.chat_template_kwargs or []),
    )


def template_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; values are read as YAML, so ``false`` is a boolean.

    Raises:
        ConfigError: A text has no equals sign, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key.strip():
            raise ConfigError(
                f"--chat-template-kwargs {pair!r} is not KEY=VALUE; write for example "
                "enable_thinking=false"
            )
        try:
            values[key.strip()] = load_yaml(value)
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--chat-template-kwargs {pair!r} is not a YAML value ({reason}); write for "
                "example enable_thinking=false"
            ) from None
    return values


def generate(
    protocol: Protocol,
    names: str,
    output: Path,
    read: ReadOptions,
    options: ScoreOptions,
    make_engine: Callable[[], Engine],
) -> None:
    """Answer benchmarks, score them, and print the tables."""
    benchmarks = find_benchmarks(names)
    try:
        scored, spent = evaluate(benchmarks, protocol, make_engine, output, read, options)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if spent:
        typer.echo(spent)
    _show(scored, options.judge)
    typer.echo(f"results: {output}")


def score(
    predictions: Path, names: str, output: Path | None, read: ReadOptions, options: ScoreOptions
) -> None:
    """Score saved responses and print the tables.

    Raises:
        ConfigError: ``predictions`` is a file, and no output folder is given.
    """
    if output is None:
        if not predictions.is_dir():
            raise ConfigError(
                f"--predictions {predictions} is not a folder; say where with --output"
            )
        output = predictions
    benchmarks = find_benchmarks(names) if names else []
    scored = score_saved(predictions, benchmarks, output, read, options)
    protocol = protocol_in(predictions) if predictions.is_dir() else None
    write_results(output, scored, protocol, options.seed)
    _show(scored, options.judge)
    typer.echo(f"results: {output}")


def openai_engine(protocol: Protocol, *, concurrency: int, **options: Any) -> Callable[[], Engine]:
    """Return a function that makes the engine of a server; the options are those of ``Server``.

    Raises:
        ConfigError: There is no address, or it holds a password.
    """
    from vaopd.evaluation.engines.openai import OpenAIEngine

    asked = server(protocol.base_url, "--base-url", **options)
    return lambda: OpenAIEngine(protocol, asked, concurrency=concurrency)


def vllm_engine(
    protocol: Protocol, output: Path, *, python: str | None, arguments: str, **options: Any
) -> Callable[[], Engine]:
    """Return a function that starts a vLLM server and its engine, after the items are read.

    Raises:
        ConfigError: vLLM is not installed for that Python, or the arguments do not parse.
    """
    from vaopd.rollouts.vllm.server import find_python

    found = find_python(python, "--vllm-python")
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"--vllm-arguments {arguments!r} cannot be read: {error}") from None

    def make() -> Engine:
        # Imported here: torch and transformers take seconds.
        from vaopd.evaluation.engines.vllm import VllmEngine

        log = output / "vllm.log"
        return VllmEngine(protocol, python=found, arguments=words, log=log, **options)

    return make


def check_devices(names: str, engine: str) -> None:
    """Check ``--devices`` before anything is read or written, and without torch.

    Raises:
        ConfigError: A name is not one of torch, or the engine is a server that runs elsewhere.
    """
    if engine == "openai" and names != "auto":
        raise ConfigError(f"--devices {names} says nothing to the openai engine; leave it out")
    one = r"\s*(cpu|mps|cuda(:\d+)?)\s*"
    if names != "auto" and not re.fullmatch(f"{one}(,{one})*", names):
        raise ConfigError(
            f"--devices {names!r} is not a list of devices; write auto, cpu, or cuda:0,cuda:1"
        )


def transformers_engine(
    protocol: Protocol, output: Path, devices: str, batch_tokens: int
) -> Callable[[], Engine]:
    """Return a function that loads the model, after the items are read.

    One device is used in this process; each of several has a process of its own.
    """

    def make() -> Engine:
        # Imported here: torch and transformers take seconds.
        from vaopd.devices import check_auto_device, list_devices
        from vaopd.evaluation.engines.data_parallel import DataParallelEngine
        from vaopd.evaluation.engines.local import engine_of_device

        check_auto_device(devices, [protocol.model], "--devices")
        names = list_devices(devices)
        make_one = partial(engine_of_device, protocol, batch_tokens, len(names))
        if len(names) == 1:
            return make_one(names[0])
        typer.echo(f"loading the model in {len(names)} processes, on {', '.join(names)}", err=True)
        return DataParallelEngine(make_one, names, logs=output)

    return make


def judge(
    model: str | None, url: str | None, prompt: Path | None, concurrency: int
) -> Judge | None:
    """Return the judge that the options name; ``None`` without one.

    Raises:
        ConfigError: Its address or prompt is missing or not usable.
    """
    if model is None:
        return None
    text = PROMPT
    if prompt is not None:
        if not prompt.is_file():
            raise ConfigError(f"--judge-prompt {prompt} does not exist; name a text file")
        text = prompt.read_text(encoding="utf-8")
    client = ChatClient(server(url, "--judge-base-url"))
    return Judge(client=client, model=model, prompt=text, concurrency=concurrency)


def server(url: str | None, option: str, **options: Any) -> Server:
    """Return a server with the key from ``OPENAI_API_KEY``.

    Raises:
        ConfigError: There is no address.
    """
    if not url:
        raise ConfigError(f"{option} is missing; give it, such as http://localhost:8000/v1")
    if "@" in url:
        raise ConfigError(
            f"{option} holds a user or password, which the results would name; leave it out and "
            "set OPENAI_API_KEY"
        )
    return Server(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", ""), **options)


def check_at_least_one(**options: int | None) -> None:
    """Check that options that count something are at least 1.

    Raises:
        ConfigError: A value is below 1.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected at least 1")


def _show(scored: Sequence[Scored], judge: Judge | None) -> None:
    print_tables([one.score for one in scored])
    for one in scored:
        skipped = one.details.get("data", {}).get("skipped")
        if skipped:
            typer.echo(f"{one.score.benchmark}: skipped {skipped} bad rows, see skipped.jsonl")
        if verdict := one.details.get("judge"):
            share, value = verdict["agreement"]["share"], verdict["score"]["value"]
            typer.echo(
                f"{one.score.benchmark}: the judge agrees on {share:.1%} of responses; "
                f"{one.score.headline} by the judge {value}"
            )
    if judge is not None:
        typer.echo(f"judge: {judge.client.summary()}")
        judge.client.close()
