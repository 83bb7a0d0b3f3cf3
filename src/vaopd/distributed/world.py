"""The processes of a run: their ranks, how they exchange values, how work is split over them.

torchrun, accelerate launch and other launchers number the processes by RANK, LOCAL_RANK and
WORLD_SIZE. A run of one plain process is a world of size 1, which does not communicate.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vaopd.devices import pick_device
from vaopd.distributed.collectives import check_place
from vaopd.errors import ConfigError, PeerError, TrainingError, VaopdError, told_once

T = TypeVar("T")

PATIENCE = timedelta(hours=3)
"""How long a process waits for another. Responses of one process may be much longer than those of
another; the launcher notices a process that has died, so this limit need not."""

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Connection refused",
             "Broken pipe", "Timed out waiting", "Gloo")  # fmt: skip
"""Words in torch's errors after another process has ended. Torch has no exception type for it."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    ``gather`` and all methods that use it are collectives: every process must enter the same ones
    in the same order. So the decision to enter one may depend only on values that are alike in all
    processes: the recipe, the result of a collective, or a value that ``same`` has compared. A
    decision by values of one process belongs inside the work for ``agree``, never around it.
    """

    parallel: Literal["none", "ddp", "fsdp2"] = "none"
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    """Devices over which parameters are sharded; none in a run of one plain process."""
    channel: dist.ProcessGroup | None = None
    """Group over which values are exchanged; none = the default group."""
    second: dist.ProcessGroup | None = None
    """Another group, for a thread."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and prints for the user."""
        return self.rank == 0

    @property
    def shards(self) -> DeviceMesh | None:
        """The mesh over which models are sharded; none if they are not."""
        return self.mesh if self.parallel == "fsdp2" else None

    @property
    def load_device(self) -> torch.device:
        """Device for loading weights.

        Before sharding, a whole model may not fit on a GPU. The main process alone reads it, into
        main memory; the others build it without weights and receive their parts.
        """
        if not self.shards:
            return self.device
        return torch.device("cpu" if self.is_main else "meta")

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        check_place(self.channel)
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.channel)
        return values

    def same(self, what: str, value: T) -> T:
        """Return the value after checking that it is the same in all processes.

        Raises:
            TrainingError: It is not; names the first line that differs. ``PeerError`` in all
                processes except the main one.
        """
        first, *others = [text.splitlines() for text in self.gather(str(value))]
        for rank, lines in enumerate(others, start=1):
            if lines != first:
                pairs = zip_longest(first, lines, fillvalue="nothing")
                one, other = next(pair for pair in pairs if pair[0] != pair[1])
                message = (
                    f"process {rank} has other {what} than process 0 ({other.strip():.200} and "
                    f"{one.strip():.200}); start all by the same command with the same files"
                )
                raise (TrainingError if self.is_main else PeerError)(message)
        return value

    def beside(self) -> "World":
        """Return the same processes on a separate channel, for a thread.

        Values of a thread must not mix with values that the main threads exchange.
        """
        return replace(self, channel=self.second) if self.second else self

    def agree(self, work: Callable[[], T]) -> T:
        """Return the result of the work in this process; if it fails in one process, all fail.

        The work must not communicate: the others would wait for a process that has failed.

        Raises:
            PeerError: The work failed in another process, which raises its own error.
        """
        if self.size == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        told = None
        if failure is not None:
            told = (str(failure), getattr(failure, "exit_code", 1))
        reports = self.gather(told)
        first = next((rank for rank, report in enumerate(reports) if report), None)
        if first is None:
            return result  # pyright: ignore[reportReturnType]  # the work gave it
        if failure is not None and first == self.rank:
            raise failure
        message, exit_code = reports[first] or ("", 1)
        raise PeerError(f"process {first} failed: {message}", exit_code) from failure

    def agree_unless_sharded(self, work: Callable[[], T]) -> T:
        """Return the result of the work; a failure is reported to all, except in a sharded run.

        There the work itself communicates, so a failure ends this process and the launcher ends
        the others.
        """
        return work() if self.shards else self.agree(work)

    def agree_if_sharded(self, work: Callable[[], T]) -> T:
        """Return the result of the work; a failure is reported to all in a sharded run only.

        For parts of a larger work, between which a sharded run communicates, and which
        ``agree_unless_sharded`` holds together in other runs.
        """
        return self.agree(work) if self.shards else work()

    def on_main(self, work: Callable[[], T]) -> T:
        """Return the result of work that only the main process does; if it fails, all fail."""
        result = self.agree(lambda: work() if self.is_main else None)
        if self.size > 1:
            check_place(self.channel)
            box = [result]
            dist.broadcast_object_list(box, src=0, group=self.channel)
            result = box[0]
        return result  # pyright: ignore[reportReturnType]  # what the main process got

    def sum(self, value: float) -> float:
        """Return the sum of the numbers of all processes."""
        return sum(self.gather(value)) if self.size > 1 else value

    def any(self, value: bool) -> bool:
        """Return whether the value is true in at least one process."""
        return any(self.gather(value))

    def my_slice(self, items: Sequence[T]) -> list[T]:
        """Return the items of this process: every ``size``-th, beginning at its rank."""
        return list(items)[self.rank :: self.size] if self.size > 1 else list(items)

    def turns(self, count: int) -> list[list[int]]:
        """Return which of ``count`` items are in ``my_slice`` of each process, by rank."""
        return [list(range(count))[rank :: self.size] for rank in range(self.size)]

    def in_order(self, results: Sequence[T]) -> list[T]:
        """Return the results of all processes for their ``my_slice``, in the order of all items."""
        if self.size == 1:
            return list(results)
        parts = self.gather(list(results))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of replicas, once a step; for sharded models backward does it.

        A replica without a gradient counts as zero. A parameter that no replica used has no
        gradient afterwards, as in a single process; otherwise AdamW would decay it.
        """
        if self.parallel != "ddp" or self.size == 1:
            return
        check_place()
        trained = [p for p in parameters if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in trained], device=self.device).int()
        dist.all_reduce(used, dist.ReduceOp.MAX)
        sums = []
        for parameter, is_used in zip(trained, used.tolist(), strict=True):
            if is_used:
                gradient = parameter.grad
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
                parameter.grad = gradient.contiguous()
                sums.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in sums:
            assert work is not None, "an asynchronous sum has a handle"
            work.wait()

    def share_weights(self, model: torch.nn.Module) -> None:
        """Copy the weights of the main process to every replica."""
        if self.parallel != "ddp" or self.size == 1:
            return
        check_place()
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def balanced_shares(loads: Sequence[int], size: int) -> list[list[int]]:
    """Return the items of each of ``size`` processes, so that their loads are balanced.

    Items are assigned from the heaviest to the lightest, each to the process with the smallest
    load. With fewer items than processes, some get none.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    totals = [0] * size
    for item in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        rank = min(range(size), key=lambda r: (totals[r], len(shares[r]), r))
        shares[rank].append(item)
        totals[rank] += loads[item]
    return [sorted(share) for share in shares]


@contextmanager
def processes(parallel: Literal["none", "ddp", "fsdp2"], device: str) -> Iterator[World]:
    """Yield the world of a run, in the existing process group or in a new one.

    Args:
        parallel: As ``training.parallel``.
        device: As ``training.device``; each process of a machine takes its own GPU.

    Raises:
        ConfigError: The launcher and ``training.parallel`` do not fit, or there are fewer GPUs
            than processes.
        TrainingError: Another process has ended.
    """
    place = told_once(lambda: _checked_device(parallel, device))
    if parallel == "none":
        yield World(device=place)
        return
    backend = "gloo"
    if place.type == "cuda":
        torch.cuda.set_device(place)
        # Objects are sent over gloo, so that no pickle goes through GPU memory.
        backend = "cpu:gloo,cuda:nccl"
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group(backend, timeout=PATIENCE)
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(place.type, (size,))
    # All processes open it, before anything can fail in only one of them.
    second = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None
    try:
        # new_group returns a number only in processes that are not in the group.
        yield World(parallel, rank, size, place, mesh, second=second)  # pyright: ignore
    except VaopdError:
        raise
    except RuntimeError as error:
        if any(words in str(error) for words in LOST_PEER):
            raise TrainingError(
                "another process of this run has ended; its message or the launcher's says why; "
                "continue with --resume"
            ) from error
        raise
    if size > 1:
        check_place()
    # Not after a failure: destroying the group would wait for processes inside a collective.
    if is_ours:
        # Threads of gloo hold the last values for a moment. If these are Python objects that are
        # freed while the interpreter ends, the process aborts. So the last value is that of a
        # barrier, and objects that keep the group alive after its end are collected here.
        dist.barrier()
        dist.destroy_process_group()
        gc.collect()


def _checked_device(parallel: str, device: str) -> torch.device:
    check_launch(parallel)
    return pick_device(device) if parallel == "none" else _own_device(device)


def check_launch(parallel: str) -> None:
    """Check that the launcher started the processes that ``training.parallel`` needs.

    Raises:
        ConfigError: Several processes with none, or no launcher with ddp or fsdp2.
    """
    count = os.environ.get("WORLD_SIZE")
    if parallel == "none" and count not in (None, "1"):
        raise ConfigError(
            f"training.parallel is none, but {count} processes were started, which would all "
            "train the same; add training.parallel=ddp or fsdp2, or start one process"
        )
    if parallel != "none" and (count is None or "RANK" not in os.environ):
        raise ConfigError(
            f"training.parallel is {parallel}, but no launcher started this process (RANK and "
            "WORLD_SIZE are not set); start it with torchrun --nproc-per-node N -m vaopd train, "
            "or set training.parallel=none"
        )


def _own_device(name: str) -> torch.device:
    """Return the device of this process: on a machine with GPUs, that of its local rank."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"training.device is {name!r}, but each process takes the GPU of its own number; use "
            "auto, cuda or cpu and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    device = pick_device(name)
    if device.type == "cpu":
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes were started on this machine, which has "
            f"{torch.cuda.device_count()} GPUs; start one process for each GPU, or set "
            "training.device=cpu"
        )
    return torch.device("cuda", local)
