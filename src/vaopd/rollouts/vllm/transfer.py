"""How new weights reach a vLLM that runs: through files, or through memory of the GPU.

CUDA IPC lets a process open GPU memory of another one, so nothing is copied to the host. The
messages are those of vLLM 0.32 with ``weight_transfer_config.backend=ipc`` and packed tensors; the
trainer's half is written here, because vLLM's needs vLLM in the trainer's environment.
"""

import base64
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from vaopd.config import VllmConfig
from vaopd.errors import ConfigError
from vaopd.rollouts.vllm.weights import Snapshot, bytes_of_weights

SHARED_MEMORY = Path("/dev/shm")

BUFFER_BYTES = 512 * 2**20
"""GPU memory through which weights pass; more if one tensor is larger."""


@runtime_checkable
class Servers(Protocol):
    """The servers that take the weights."""

    def post(self, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Post to all of them at the same time and return their answers.

        Raises:
            EngineError: One ended, or refused.
        """
        ...

    def get(self, path: str) -> list[dict[str, Any]]:
        """Return their answers to a question; errors as in ``post``."""
        ...


@runtime_checkable
class WeightTransfer(Protocol):
    """One way from the trainer to servers that are awake and whose caches are empty."""

    server_arguments: Sequence[str]
    """What a server must be started with."""

    server_environment: dict[str, str]
    """Variables of such a server."""

    is_private: bool
    """Whether the server must listen on a socket that only its own user can open."""

    def send(self, weights: Snapshot, servers: Servers) -> int:
        """Make every server load the weights; return how many bytes passed.

        Raises:
            EngineError: A server refuses, or the disk is full.
        """
        ...


class FileTransfer:
    """A model folder in shared memory, which vLLM's ``reload_weights`` reads."""

    server_arguments: Sequence[str] = ()
    is_private = False

    def __init__(self, folder: str | None) -> None:
        """Take the folder in which weights are written, or shared memory."""
        self.folder = folder
        self.server_environment: dict[str, str] = {}

    def send(self, weights: Snapshot, servers: Servers) -> int:
        """Write the weights, and let the servers read them; see ``WeightTransfer``."""
        with shared_folder(self.folder) as name:
            weights.write(Path(name))
            call = {"method": "reload_weights", "kwargs": {"weights_path": name}}
            servers.post("collective_rpc", call)
            return bytes_of_weights(Path(name))


@runtime_checkable
class SharedBuffer(Protocol):
    """Bytes that the processes of a vLLM can open where they are."""

    content: Tensor
    """uint8 (bytes,), to be filled."""

    handles: dict[str, tuple[Any, ...]]
    """Arguments of torch's ``rebuild_cuda_tensor``, by the UUID of a GPU."""

    def publish(self) -> None:
        """Make the content visible to the others."""
        ...

    def close(self) -> None:
        """Free the memory, after the others have closed theirs."""
        ...


class IpcTransfer:
    """GPU memory of the trainer, which a vLLM on the same machine opens by CUDA IPC."""

    server_arguments: Sequence[str] = ("--weight-transfer-config", '{"backend": "ipc"}')
    # Handles are pickles, and a process that can send a pickle can run code.
    is_private = True

    def __init__(self, share: Callable[[int, int], SharedBuffer]) -> None:
        """Take a function that shares some bytes with a number of GPUs; such as ``GpuBuffer``."""
        self.share = share
        self.server_environment = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
        self.is_open = False

    def send(self, weights: Snapshot, servers: Servers) -> int:
        """Pass the weights through a shared buffer, as many at a time as it holds."""
        if not self.is_open:
            servers.post("init_weight_transfer_engine", {"init_info": {"packed": True}})
            self.is_open = True
        tensors = weights.tensors()
        total = sum(tensor.nbytes for tensor in tensors.values())
        largest = max(tensor.nbytes for tensor in tensors.values())
        num_gpus = servers.get("get_world_size")[0]["world_size"]
        buffer = self.share(min(total, max(BUFFER_BYTES, largest)), num_gpus)
        try:
            handles = base64.b64encode(pickle.dumps(buffer.handles)).decode()
            servers.post("start_weight_update")
            for chunk in packed(tensors.items(), buffer.content):
                buffer.publish()
                update = {**chunk, "ipc_handles_pickled": handles}
                servers.post("update_weights", {"update_info": update})
            servers.post("finish_weight_update")
        finally:
            buffer.close()
        return total


def packed(tensors: Iterable[tuple[str, Tensor]], buffer: Tensor) -> Iterator[dict[str, list[Any]]]:
    """Fill a buffer with whole tensors, one after the other, and again until all were in it.

    Args:
        tensors: Names and tensors, each no larger than the buffer.
        buffer: uint8 (bytes,). It is overwritten after each yield.

    Yields:
        What the buffer holds: ``names``, ``dtype_names``, ``shapes`` and ``tensor_sizes`` in bytes.
    """
    chunk: dict[str, list[Any]] = {}
    used = 0
    for name, tensor in tensors:
        if chunk and used + tensor.nbytes > len(buffer):
            yield chunk
            chunk, used = {}, 0
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        buffer[used : used + tensor.nbytes].copy_(content)
        used += tensor.nbytes
        for key, value in (
            ("names", name),
            ("dtype_names", str(tensor.dtype).removeprefix("torch.")),
            ("shapes", list(tensor.shape)),
            ("tensor_sizes", tensor.nbytes),
        ):
            chunk.setdefault(key, []).append(value)
    if chunk:
        yield chunk


class GpuBuffer:
    """The same bytes on several GPUs, each copy open to processes on its GPU."""

    def __init__(self, num_bytes: int, gpus: Sequence[int]) -> None:
        """Allocate the copies; the first one is filled."""
        self.gpus = gpus
        self.pools: list[Any] = []
        self.copies: list[Tensor] = []
        with _plain_segments():
            for gpu in gpus:
                # Pools and their use belong to the current GPU.
                with torch.cuda.device(gpu):
                    self.pools.append(torch.cuda.MemPool())
                    with torch.cuda.use_mem_pool(self.pools[-1]):
                        copy = torch.empty(num_bytes, dtype=torch.uint8, device=f"cuda:{gpu}")
                self.copies.append(copy)
        self.content = self.copies[0]
        self.handles = {
            str(torch.cuda.get_device_properties(gpu).uuid): reduce_tensor(copy)[1]
            for gpu, copy in zip(gpus, self.copies, strict=True)
        }

    def publish(self) -> None:
        """Copy the content to the other GPUs, and wait for all of them."""
        for copy in self.copies[1:]:
            copy.copy_(self.content)
        for gpu in self.gpus:
            torch.cuda.synchronize(gpu)

    def close(self) -> None:
        """Free the copies."""
        del self.content, self.copies, self.handles
        torch.cuda.ipc_collect()
        del self.pools


def set_allocator(settings: str) -> None:
    """Change the settings of torch's allocator; those that are not named get their defaults."""
    # The public function warns that it is deprecated, and names this one.
    torch._C._accelerator_setAllocatorSettings(settings)  # pyright: ignore


@contextmanager
def _plain_segments() -> Iterator[None]:
    """Allocate by cudaMalloc: others open expandable segments slowly, or not in a container."""
    settings = os.environ.get("PYTORCH_ALLOC_CONF", "")
    set_allocator("expandable_segments:False")
    try:
        yield
    finally:
        set_allocator(settings)


def choose_transfer(options: VllmConfig, device: torch.device) -> WeightTransfer:
    """Return how the weights of a run on this device reach its vLLM.

    Raises:
        ConfigError: ``sampling.vllm.transfer`` is ``ipc`` where that is impossible.
    """
    files = FileTransfer(options.weights_folder)
    if options.transfer == "files" or options.addresses:
        return files
    gpus = _gpus_here(options)
    if device.type == "cuda" and gpus is not None:
        return IpcTransfer(lambda num_bytes, count: GpuBuffer(num_bytes, gpus[:count]))
    if options.transfer == "ipc":
        reason = (
            "this process does not see all of sampling.vllm.gpus"
            if device.type == "cuda"
            else f"the student is on {device.type}"
        )
        raise ConfigError(f"sampling.vllm.transfer is 'ipc', but {reason}; use 'auto' or 'files'")
    return files


def _gpus_here(options: VllmConfig) -> list[int] | None:
    """Return this process's indices of the GPUs that a server may use; None if it lacks one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not options.gpus:
        return list(range(torch.cuda.device_count()))
    if visible is None:
        return list(options.gpus)
    names = visible.split(",")
    wanted = [str(gpu) for gpu in options.gpus]
    return [names.index(name) for name in wanted] if set(wanted) <= set(names) else None


def shared_folder(place: str | None) -> tempfile.TemporaryDirectory[str]:
    """Return a folder for weights: in this place, else in shared memory where there is one."""
    if place is None and SHARED_MEMORY.is_dir():
        place = str(SHARED_MEMORY)
    return tempfile.TemporaryDirectory(prefix="vaopd-weights-", dir=place)
