"""Answers through a vLLM server that is started for the evaluation and stopped after it."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from vaopd.devices import list_devices, pick_device, pick_dtype
from vaopd.errors import EngineError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.chat import Server
from vaopd.evaluation.engines.engine import Request
from vaopd.evaluation.engines.openai import OpenAIEngine
from vaopd.evaluation.predictions import Prediction
from vaopd.evaluation.protocol import Protocol
from vaopd.models.loading import check_files, load_model
from vaopd.rollouts.vllm.server import VllmServer

PROTOCOL_ONLY = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_token_ids": True,
}
"""Fields of every request: vLLM would take missing values from ``generation_config.json``, and the
number of tokens of each of several samples is known by their ids."""


PARALLEL = {
    *("--data-parallel-size", "-dp", "--tensor-parallel-size", "-tp"),
    *("--pipeline-parallel-size", "-pp"),
}
"""Arguments of vLLM that say how GPUs are divided."""


class VllmEngine:
    """An ``OpenAIEngine`` that starts its server itself."""

    def __init__(
        self,
        protocol: Protocol,
        *,
        python: str,
        arguments: Sequence[str],
        log: Path,
        devices: str = "auto",
        concurrency: int = 8,
        timeout_seconds: float = 600.0,
    ) -> None:
        """Start the server and wait until it answers.

        Raises:
            EngineError: The server ended before it answered.
            ModelError: A file of the model's folder is damaged.
        """
        check_files(protocol.model)
        names = list_devices(devices)
        place = pick_device(names[0], "--devices")
        dtype = pick_dtype("auto", place)
        with contextlib.ExitStack() as stack:
            model = protocol.model
            if model.startswith("tiny:"):
                model = stack.enter_context(tempfile.TemporaryDirectory(prefix="vaopd-model-"))
                _write_tiny(protocol, Path(model))
            self.server = VllmServer(
                model,
                python=python,
                log=log,
                arguments=[
                    *("--served-model-name", protocol.model),
                    *("--dtype", str(dtype).removeprefix("torch.")),
                    *data_parallel(len(names), arguments),
                    *arguments,
                ],
                on_gpu=place.type == "cuda",
                environment={} if devices == "auto" else visible_gpus(names),
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
            stack.callback(self.server.close)
            self.resources = stack.pop_all()
        self.engine = OpenAIEngine(
            protocol,
            Server(
                base_url=f"{self.server.address}/v1",
                timeout_seconds=timeout_seconds,
                first_wait_seconds=0.1,  # a local server that ended does not come back
            ),
            concurrency=concurrency,
            in_one_request=True,
            sampling=PROTOCOL_ONLY,
        )

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        """Answer items in any order; see ``Engine``.

        Raises:
            EngineError: The server ended or refused. Earlier answers are kept.
        """
        try:
            self.engine.answer(benchmark, requests, on_done, on_bad_item)
        except EngineError as error:
            try:
                self.server.check()
            except EngineError as ended:
                raise EngineError(f"{ended}; the same command goes on from here") from None
            raise EngineError(f"{error} (log of the server: {self.server.log})") from None

    def summary(self) -> str:
        """Return the number of requests and tokens."""
        return self.engine.summary()

    def close(self) -> None:
        """Close the connections and end the server."""
        self.engine.close()
        self.resources.close()


def data_parallel(num_devices: int, arguments: Sequence[str]) -> list[str]:
    """Return vLLM's argument for one copy on each device; none if the user divides the GPUs."""
    given = {word.partition("=")[0].replace("_", "-") for word in arguments}
    if num_devices == 1 or given & PARALLEL:
        return []
    return ["--data-parallel-size", str(num_devices)]


def visible_gpus(names: Sequence[str]) -> dict[str, str]:
    """Return the variable by which a server sees only these GPUs; empty for the CPU."""
    numbers = [torch.device(name).index or 0 for name in names if name.startswith("cuda")]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = (
        seen.split(",") if seen else [str(number) for number in range(max(numbers, default=0) + 1)]
    )
    return {"CUDA_VISIBLE_DEVICES": ",".join(ids[number] for number in numbers)} if numbers else {}


def _write_tiny(protocol: Protocol, folder: Path) -> None:
    """Write a shipped model as one folder; the package stores its tokenizer elsewhere."""
    model = load_model(
        protocol.model,
        device=torch.device("cpu"),
        dtype=torch.float32,
        compute_dtype=torch.float32,
        seed=protocol.seed,
    )
    model.save(folder)
