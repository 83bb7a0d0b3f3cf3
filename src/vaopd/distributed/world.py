"""The processes of a run: who they are, what they tell each other, how work is split over them.

torchrun, accelerate launch and other launchers say who a process is by RANK, LOCAL_RANK and
WORLD_SIZE. A run of one plain process is a world of size 1, which talks to nobody.
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
"""How long a process waits for another. Responses of one share may be much longer than those of
another; a process that died is noticed by the launcher, not by this."""

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Connection refused",
             "Broken pipe", "Timed out waiting", "Gloo")  # fmt: skip
"""How torch says that another process is gone; it has no exception type for it."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    ``gather`` and all that is built on it are collectives: every process must enter the same ones
    in the same order. So what decides whether one is entered must be known to be alike in all: the
    recipe, what a collective returned, or what ``same`` has compared. What is one process's own
    decides inside of the work that is handed to ``agree``, never around it.
    """

    parallel: Literal["none", "ddp", "fsdp2"] = "none"
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    """Where sharded parameters are spread; none without processes."""
    channel: dist.ProcessGroup | None = None
    """Over which values are told; none = the one that all processes begin with."""
    second: dist.ProcessGroup | None = None
    """Another one, for a thread."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    @property
    def shards(self) -> DeviceMesh | None:
        """The mesh over which models are to be sharded, or none."""
        return self.mesh if self.parallel == "fsdp2" else None

    @property
    def load_device(self) -> torch.device:
        """Where weights are read to: a model to be sharded may not fit a device as a whole."""
        return torch.device("cpu") if self.shards else self.device

    def gather(self, value: T) -> list[T]:
        """Return everybody's value, by rank."""
        if self.size == 1:
            return [value]
        check_place(self.channel)
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.channel)
        return values

    def same(self, what: str, value: T) -> T:
        """Return a value that decides what comes next, once all have shown that theirs is alike.

        Raises:
            TrainingError: It is not, with the first line that differs; ``PeerError`` in all
                processes but the main one.
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
        """Return the same processes on a channel of their own, for a thread.

        What a thread tells must not get between what the main threads tell each other.
        """
        return replace(self, channel=self.second) if self.second else self

    def agree(self, work: Callable[[], T]) -> T:
        """Return what the work gives here; where it fails in one process, it fails in all.

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
        """Agree on work that only communicates where models are sharded.

        There a failure in the middle ends this process, and the launcher ends the others.
        """
        return work() if self.shards else self.agree(work)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do the work in the main process alone; return its result, or fail, everywhere."""
        result = self.agree(lambda: work() if self.is_main else None)
        if self.size > 1:
            check_place(self.channel)
            box = [result]
            dist.broadcast_object_list(box, src=0, group=self.channel)
            result = box[0]
        return result  # pyright: ignore[reportReturnType]  # what the main process got

    def sum(self, value: float) -> float:
        """Return the sum of everybody's number."""
        return sum(self.gather(value)) if self.size > 1 else value

    def any(self, value: bool) -> bool:
        """Return whether the value is true in some process."""
        return any(self.gather(value))

    def my_slice(self, items: Sequence[T]) -> list[T]:
        """Return every ``size``-th item, beginning with the own rank."""
        return list(items)[self.rank :: self.size] if self.size > 1 else list(items)

    def turns(self, count: int) -> list[list[int]]:
        """Return which of ``count`` items are the ``turn`` of each process, by rank."""
        return [list(range(count))[rank :: self.size] for rank in range(self.size)]

    def in_order(self, results: Sequence[T]) -> list[T]:
        """Return everybody's results of their ``my_slice`` in the order of all items."""
        if self.size == 1:
            return list(results)
        parts = self.gather(list(results))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of replicas, once a step; sharded ones are summed in backward.

        A replica without a gradient counts as zero. A parameter that no replica used keeps no
        gradient, as in a single process: AdamW would decay it otherwise.
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
        """Give every replica the weights of the main process."""
        if self.parallel != "ddp" or self.size == 1:
            return
        check_place()
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def balanced_shares(loads: Sequence[int], size: int) -> list[list[int]]:
    """Return which items each of ``size`` processes takes, so that loads come out alike.

    The heaviest item goes first, each to whoever has least. With fewer items than processes some
    get none.
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
    """Give the world of a run, in the process group that there is or in one of its own.

    Args:
        parallel: As ``training.parallel``.
        device: As ``training.device``; each process of a machine takes its own GPU.

    Raises:
        ConfigError: The launcher and ``training.parallel`` do not fit, or there are fewer GPUs
            than processes.
        TrainingError: Another process is gone.
    """
    place = told_once(lambda: _checked_device(parallel, device))
    if parallel == "none":
        yield World(device=place)
        return
    backend = "gloo"
    if place.type == "cuda":
        torch.cuda.set_device(place)
        # Objects travel over gloo, so that no pickle passes through GPU memory.
        backend = "cpu:gloo,cuda:nccl"
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group(backend, timeout=PATIENCE)
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(place.type, (size,))
    # Opened by all, before anything can fail in one of them alone.
    second = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None
    try:
        # Only who is left out of a group gets a number in its place.
        yield World(parallel, rank, size, place, mesh, second=second)  # pyright: ignore
    except VaopdError:
        raise
    except RuntimeError as error:
        if any(words in str(error) for words in LOST_PEER):
            raise TrainingError(
                "another process of this run is gone; its own message or the launcher's says why; "
                "go on with --resume"
            ) from error
        raise
    if size > 1:
        check_place()
    # After a failure others may still be inside a collective, which ending the group waits for.
    if is_ours:
        # Threads of gloo hold the last values for a moment. To let go of Python's while the
        # interpreter ends aborts the process, so the last value is none of Python's, and what
        # keeps the group alive behind its end goes first.
        dist.barrier()
        dist.destroy_process_group()
        gc.collect()


def _checked_device(parallel: str, device: str) -> torch.device:
    check_launch(parallel)
    return pick_device(device) if parallel == "none" else _own_device(device)


def check_launch(parallel: str) -> None:
    """Check that the launcher started as many processes as ``training.parallel`` is for.

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
