"""The interface to a running vLLM, and its implementation by servers over HTTP."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
from PIL.Image import Image

from vaopd.config import VllmConfig
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, EngineError
from vaopd.pictures import data_url
from vaopd.rollouts.vllm.server import VllmServer, find_python
from vaopd.rollouts.vllm.weights import Snapshot

SHARED_MEMORY = Path("/dev/shm")
SECONDS_TO_DIE = 5.0
"""Wait for the exit of a killed server, which closes its connections first."""

LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0"}

MAX_REQUESTS = 64
"""Requests of a process at one server at a time; the server forms its own batches."""


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """A prompt, and how its siblings are to be sampled."""

    token_ids: list[int]
    """With one placeholder per image."""

    images: tuple[Image, ...]
    parameters: dict[str, Any]
    """Of vLLM's ``SamplingParams``."""


class SamplingEngine(Protocol):
    """A vLLM that samples from the weights that it received last."""

    def give(self, weights: Snapshot, version: str) -> tuple[str, ...]:
        """Load new weights, in the main process; return its addresses for all processes.

        Raises:
            EngineError: It does not start, does not answer, or refuses.
        """
        ...

    def connect(self, places: Sequence[str]) -> None:
        """Prepare connections to these addresses."""
        ...

    def generate(self, requests: Sequence[SamplingRequest]) -> list[dict[str, Any]]:
        """Return vLLM's answers in order, in the format of its ``/inference/v1/generate``.

        Raises:
            EngineError: It ended, or refused a request.
        """
        ...

    def sleep(self) -> None:
        """Free its memory until it receives weights; in the main process."""
        ...

    def close(self) -> None:
        """Stop what this object has started."""
        ...


def own_arguments(options: VllmConfig, dtype: str, *, on_gpu: bool) -> list[str]:
    """Return vLLM's arguments that this run decides; of two equal ones the last is used."""
    # vLLM refuses sleep mode without a GPU.
    sleep = ["--enable-sleep-mode"] if options.sleep and on_gpu else []
    return ["--dtype", dtype, "--generation-config", "vllm", *sleep, *options.arguments]


class VllmServers:
    """Servers that run already, or one that the main process starts, asked in turn.

    Weights go through one model folder in shared memory, which vLLM's ``reload_weights`` reads.
    """

    def __init__(
        self,
        options: VllmConfig,
        world: World,
        *,
        dtype: str,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        """Find an interpreter with vLLM, or check that the given servers answer.

        Args:
            options: As ``sampling.vllm``.
            world: The processes; only the main one starts a server and sends it weights.
            dtype: Name of the precision that a server computes in.
            log: File of its output.
            say: Shows a line of progress.

        Raises:
            ConfigError: vLLM is not installed there, or processes on other machines cannot reach
                it.
            EngineError: A server does not answer.
        """
        _check_reach(options, world)
        self.options = options
        self.world = world
        self.dtype = dtype
        self.log = log
        self.say = say
        is_started_here = world.is_main and not options.addresses
        self.python = find_python(options.python, "sampling.vllm.python") if is_started_here else ""
        self.resources = contextlib.ExitStack()
        self.server: VllmServer | None = None
        self.clients: list[httpx2.Client] = []
        if world.is_main:
            for address in options.addresses:
                _check_health(address)

    def give(self, weights: Snapshot, version: str) -> tuple[str, ...]:
        """Start the server with these weights, or make every server load them."""
        if not self.options.addresses and self.server is None:
            self._start(weights)
        else:
            self.connect(self.options.addresses)
            self._reload(weights)
        self._post_all("update_weight_version", {"new_version": version})
        return tuple(str(client.base_url) for client in self.clients)

    def connect(self, places: Sequence[str]) -> None:
        """Hold a client for each address."""
        if self.clients:
            return
        for place in places:
            # Without a time limit, because the recipe decides how long responses are.
            limits = httpx2.Limits(max_connections=MAX_REQUESTS)
            client = httpx2.Client(base_url=place, timeout=None, limits=limits)
            self.clients.append(self.resources.enter_context(client))

    def generate(self, requests: Sequence[SamplingRequest]) -> list[dict[str, Any]]:
        """Distribute requests over the servers; see ``SamplingEngine``."""
        # By the number of the problem in the step, so that all servers get the same load.
        numbers = range(self.world.rank, self.world.rank + len(requests) * self.world.size,
                        self.world.size)  # fmt: skip
        places = [self.clients[number % len(self.clients)].base_url for number in numbers]
        try:
            return asyncio.run(self._answers(places, requests))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def sleep(self) -> None:
        """Put all servers to sleep; see ``SamplingEngine``. Level 2 frees the weights too."""
        self._post_all("sleep?level=2")

    def close(self) -> None:
        """Stop a server that was started here."""
        self.resources.close()
        self.clients, self.server = [], None

    def _start(self, weights: Snapshot) -> None:
        options = self.options
        on_gpu = weights.model.device.type == "cuda"
        environment = {"VLLM_SERVER_DEV_MODE": "1"}  # for new weights
        if options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, options.gpus))
        # vLLM reads configuration and tokenizer there later too.
        folder = Path(self.resources.enter_context(self._shared_folder()))
        weights.write(folder)
        self.server = VllmServer(
            folder,
            python=self.python,
            log=self.log,
            # The model's files decide the rest; sampling settings are sent with each request.
            arguments=["--enable-scale-out", *own_arguments(options, self.dtype, on_gpu=on_gpu)],
            on_gpu=on_gpu,
            environment=environment,
            say=self.say,
        )
        self.resources.callback(self.server.close)
        for path in folder.glob("*.safetensors"):
            path.unlink()
        self.connect([self.server.address])

    def _reload(self, weights: Snapshot) -> None:
        with self._shared_folder() as name:
            weights.write(Path(name))
            # Another run may have left it asleep; a server that is awake ignores this.
            self._post_all("wake_up?tags=weights")
            # Both caches hold values of the old weights. The scheduler's list of encoded images
            # must be emptied too, or the next request looks for an image that is not there.
            for client, answer in zip(
                self.clients, self._post_all("reset_prefix_cache"), strict=True
            ):
                if not answer["success"]:
                    raise EngineError(
                        f"the vLLM server {self._place(client.base_url)} is answering other "
                        "requests, so its weights cannot be changed; give each run its own server"
                    )
            self._post_all("reset_encoder_cache")
            call = {"method": "reload_weights", "kwargs": {"weights_path": name}}
            self._post_all("collective_rpc", call)
            self._post_all("wake_up?tags=kv_cache")

    def _shared_folder(self) -> tempfile.TemporaryDirectory[str]:
        place = self.options.weights_folder
        if place is None and SHARED_MEMORY.is_dir():
            place = str(SHARED_MEMORY)
        return tempfile.TemporaryDirectory(prefix="vaopd-weights-", dir=place)

    async def _answers(
        self, places: Sequence[httpx2.URL], requests: Sequence[SamplingRequest]
    ) -> list[dict[str, Any]]:
        """Send all requests at once; the first failure, or Ctrl-C, cancels the others.

        asyncio and not threads, because a thread that waits for an answer cannot be stopped.
        """
        limits = httpx2.Limits(max_connections=MAX_REQUESTS * len(self.clients))
        async with (
            httpx2.AsyncClient(timeout=None, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            tasks = [
                group.create_task(self._answer(client, place, request))
                for place, request in zip(places, requests, strict=True)
            ]
        return [task.result() for task in tasks]

    async def _answer(
        self, client: httpx2.AsyncClient, place: httpx2.URL, request: SamplingRequest
    ) -> dict[str, Any]:
        parts = [{"type": "image_url", "url": data_url(image)} for image in request.images]
        body = {
            "token_ids": request.token_ids,
            "content_parts": parts,
            "return_token_ids": True,
            "sampling_params": request.parameters,
        }
        path = "inference/v1/generate"
        try:
            response = await client.post(place.join(path), json=body)
        except httpx2.TransportError as error:
            raise self._lost(place, error) from None
        return self._checked(place, path, response)

    def _post_all(self, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Post to all servers at the same time, so that they load weights in parallel."""
        with ThreadPoolExecutor(len(self.clients)) as pool:
            return list(pool.map(lambda client: self._post(client, path, body), self.clients))

    def _post(
        self, client: httpx2.Client, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            response = client.post(path, json=body)
        except httpx2.TransportError as error:
            raise self._lost(client.base_url, error) from None
        return self._checked(client.base_url, path, response)

    def _lost(self, place: httpx2.URL, error: Exception) -> EngineError:
        if self.server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.process.wait(SECONDS_TO_DIE)
            self.server.check()
        return EngineError(
            f"the vLLM server {self._place(place)} does not answer ({type(error).__name__}); "
            "--resume goes on from the newest checkpoint"
        )

    def _checked(self, place: httpx2.URL, path: str, response: httpx2.Response) -> dict[str, Any]:
        if response.status_code != 200:
            text = " ".join(response.text.split())[:300]
            raise EngineError(
                f"the vLLM server {self._place(place)} refuses {path} with status "
                f"{response.status_code} ({text}); docs/scaling.md says how to start one"
            )
        return response.json() if response.content else {}

    def _place(self, place: httpx2.URL) -> str:
        return str(place) if self.options.addresses else f"(log {self.log})"


def _check_health(address: str) -> None:
    try:
        status = str(httpx2.get(f"{address.rstrip('/')}/health", timeout=10.0).status_code)
    except httpx2.TransportError as error:
        status = type(error).__name__
    if status != "200":
        raise EngineError(
            f"the vLLM server {address} does not answer ({status}); start it before the run, as "
            "docs/scaling.md says, or leave it out of sampling.vllm.addresses"
        )


def _check_reach(options: VllmConfig, world: World) -> None:
    """Check that all processes see the same servers.

    Raises:
        ConfigError: They are on several machines, and an address means another server on each of
            them.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    hosts = [httpx2.URL(address).host for address in options.addresses] or ["127.0.0.1"]
    if here < world.size and any(host in LOOPBACK for host in hosts):
        raise ConfigError(
            f"sampling.engine is 'vllm' for {world.size} processes on several machines, but "
            f"sampling.vllm.addresses is {list(options.addresses)}, which the others cannot reach; "
            "start servers under addresses that all machines reach, with "
            "sampling.vllm.weights_folder on a file system that all see"
        )
