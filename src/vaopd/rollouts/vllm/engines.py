"""vLLM servers over HTTP: one that the run starts, or some that run already."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL.Image import Image

from vaopd.config import VllmConfig
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, EngineError
from vaopd.pictures import data_url
from vaopd.rollouts.vllm.server import VllmServer, connection, find_python
from vaopd.rollouts.vllm.transfer import (
    FileTransfer,
    IpcTransfer,
    choose_transfer,
    shared_folder,
)
from vaopd.rollouts.vllm.weights import Snapshot, bytes_of_weights

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


@dataclass(frozen=True)
class SentWeights:
    """Weights that a vLLM holds now."""

    version: str
    places: tuple[str, ...]
    """Its addresses, for all processes."""

    num_bytes: int
    """What was sent."""


def own_arguments(options: VllmConfig, dtype: str, *, on_gpu: bool) -> list[str]:
    """Return vLLM's arguments that this run decides; of two equal ones the last is used."""
    # vLLM refuses sleep mode without a GPU.
    sleep = ["--enable-sleep-mode"] if options.sleep and on_gpu else []
    return ["--dtype", dtype, "--generation-config", "vllm", *sleep, *options.arguments]


class VllmServers:
    """Servers that sample from the weights that they received last, asked in turn.

    A server that the run starts reads its first weights from a model folder; ``transfer`` brings
    the others.
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
        self.transfer = choose_transfer(options, world.device)
        self.has_sent = False
        self.places: tuple[str, ...] = ()
        self.clients: list[httpx2.Client] = []
        if world.is_main:
            for address in options.addresses:
                _check_health(address)

    def give(self, weights: Snapshot, version: str) -> SentWeights:
        """Start the server with these weights, or make every server load them; in the main process.

        Raises:
            EngineError: It does not start, does not answer, or refuses.
        """
        if not self.options.addresses and self.server is None:
            num_bytes = self._start(weights)
        else:
            self.connect(self.options.addresses)
            num_bytes = self._reload(weights)
        self.post("update_weight_version", {"new_version": version})
        return SentWeights(version, self.places, num_bytes)

    def connect(self, places: Sequence[str]) -> None:
        """Hold a client for each address."""
        if self.clients:
            return
        self.places = tuple(places)
        for place in places:
            client = httpx2.Client(**connection(place, MAX_REQUESTS))
            self.clients.append(self.resources.enter_context(client))

    def generate(self, requests: Sequence[SamplingRequest]) -> list[dict[str, Any]]:
        """Distribute requests over the servers.

        Returns:
            vLLM's answers in order, in the format of its ``/inference/v1/generate``.

        Raises:
            EngineError: A server ended, or refused a request.
        """
        try:
            return asyncio.run(self._answers(requests))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def sleep(self) -> None:
        """Free the servers' memory until they receive weights; in the main process."""
        self.post("sleep?level=2")

    def close(self) -> None:
        """Stop a server that was started here."""
        self.resources.close()
        self.clients, self.places, self.server = [], (), None

    def _start(self, weights: Snapshot) -> int:
        options = self.options
        on_gpu = weights.model.device.type == "cuda"
        # The first variable opens the endpoints for new weights.
        environment = {"VLLM_SERVER_DEV_MODE": "1", **self.transfer.server_environment}
        if options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, options.gpus))
        # vLLM reads configuration and tokenizer there later too.
        folder = Path(self.resources.enter_context(shared_folder(options.weights_folder)))
        weights.write(folder)
        num_bytes = bytes_of_weights(folder)
        own = own_arguments(options, self.dtype, on_gpu=on_gpu)
        self.server = VllmServer(
            folder,
            python=self.python,
            log=self.log,
            # The model's files decide the rest; sampling settings are sent with each request.
            arguments=["--enable-scale-out", *self.transfer.server_arguments, *own],
            on_gpu=on_gpu,
            environment=environment,
            is_private=self.transfer.is_private,
            say=self.say,
        )
        self.resources.callback(self.server.close)
        for path in folder.glob("*.safetensors"):
            path.unlink()
        self.connect([self.server.address])
        return num_bytes

    def _reload(self, weights: Snapshot) -> int:
        # Another run may have left it asleep; a server that is awake ignores this.
        self.post("wake_up?tags=weights")
        # Both caches hold values of the old weights. The scheduler's list of encoded images
        # must be emptied too, or the next request looks for an image that is not there.
        for place, answer in zip(self.places, self.post("reset_prefix_cache"), strict=True):
            if not answer["success"]:
                raise EngineError(
                    f"the vLLM server {self._name(place)} is answering other requests, so its "
                    "weights cannot be changed; give each run its own server"
                )
        self.post("reset_encoder_cache")
        try:
            num_bytes = self.transfer.send(weights, self)
        except (EngineError, RuntimeError) as error:
            # A driver or a container may forbid it, which shows at the first attempt.
            if self.options.transfer != "auto" or self.has_sent or not self._is_ipc:
                raise
            return self._start_with_files(weights, error)
        self.has_sent = True
        self.post("wake_up?tags=kv_cache")
        return num_bytes

    @property
    def _is_ipc(self) -> bool:
        return isinstance(self.transfer, IpcTransfer)

    def _start_with_files(self, weights: Snapshot, error: Exception) -> int:
        """Start another server, which gets its weights from files from now on."""
        reason = " ".join(str(error).split())[:300]
        self.say(
            f"weights do not reach vLLM through memory of the GPU ({reason}), so vLLM starts again "
            "and gets them through files; sampling.vllm.transfer=files begins with that"
        )
        self.close()
        self.transfer = FileTransfer(self.options.weights_folder)
        return self._start(weights)

    async def _answers(self, requests: Sequence[SamplingRequest]) -> list[dict[str, Any]]:
        """Send all requests at once; the first failure, or Ctrl-C, cancels the others.

        asyncio and not threads, because a thread that waits for an answer cannot be stopped.
        """
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    httpx2.AsyncClient(**connection(place, MAX_REQUESTS, is_async=True))
                )
                for place in self.places
            ]
            tasks = []
            async with asyncio.TaskGroup() as group:
                for number, request in enumerate(requests):
                    # By the number of the problem in the step, so that all servers get the same
                    # load.
                    turn = (self.world.rank + number * self.world.size) % len(clients)
                    answer = self._answer(clients[turn], self.places[turn], request)
                    tasks.append(group.create_task(answer))
        return [task.result() for task in tasks]

    async def _answer(
        self, client: httpx2.AsyncClient, place: str, request: SamplingRequest
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
            response = await client.post(path, json=body)
        except httpx2.TransportError as error:
            raise self._lost(place, error) from None
        return self._checked(place, path, response)

    def post(self, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Post to all servers at the same time, so that they load weights in parallel."""
        return self._ask_all("POST", path, body)

    def get(self, path: str) -> list[dict[str, Any]]:
        """Return what all servers answer."""
        return self._ask_all("GET", path)

    def _ask_all(
        self, verb: str, path: str, body: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        def ask(client: httpx2.Client, place: str) -> dict[str, Any]:
            try:
                response = client.request(verb, path, json=body)
            except httpx2.TransportError as error:
                raise self._lost(place, error) from None
            return self._checked(place, path, response)

        with ThreadPoolExecutor(len(self.clients)) as pool:
            return list(pool.map(ask, self.clients, self.places))

    def _lost(self, place: str, error: Exception) -> EngineError:
        if self.server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.process.wait(SECONDS_TO_DIE)
            self.server.check()
        return EngineError(
            f"the vLLM server {self._name(place)} does not answer ({type(error).__name__}); "
            "--resume goes on from the newest checkpoint"
        )

    def _checked(self, place: str, path: str, response: httpx2.Response) -> dict[str, Any]:
        if response.status_code != 200:
            text = " ".join(response.text.split())[:300]
            raise EngineError(
                f"the vLLM server {self._name(place)} refuses {path} with status "
                f"{response.status_code} ({text}); docs/scaling.md says how to start one"
            )
        return response.json() if response.content else {}

    def _name(self, place: str) -> str:
        return place if self.options.addresses else f"(log {self.log})"


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
