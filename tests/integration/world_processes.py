"""Processes without a launcher, and what those of test_collectives.py tell each other."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any, Literal

import torch

from vaopd.distributed.collectives import VARIABLE
from vaopd.distributed.world import World, processes
from vaopd.errors import VaopdError
from vaopd.models.sharding import Sharding

Work = Callable[[World], Any]
PATIENCE_SECONDS = 900


def line_of(mark: str) -> str:
    """Return the place of the line that ends with a comment of these words."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, start=1) if line.endswith(f"# {mark}"))
    return f"integration/world_processes.py:{number}"


def in_processes(size: int, *works: Work, parallel: str = "ddp") -> list[list[Any]]:
    """Return what each work gives in each process, by work and rank; an error gives its words."""
    outcomes = launched(size, _talk, parallel, works)
    return [list(by_rank) for by_rank in zip(*outcomes, strict=True)]


def _talk(parallel: Literal["ddp", "fsdp2"], works: tuple[Work, ...]) -> list[Any]:
    outcomes = []
    with processes(parallel, "cpu") as world:
        for work in works:
            try:
                outcomes.append(work(world))
            except VaopdError as error:
                outcomes.append(f"{type(error).__name__}: {error}")
    return outcomes


def launched(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what a work gives in each of as many processes, by rank."""
    # Imports everything once and forks, where plain processes would each import it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vaopd.training.run"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = context.Queue()
    launch = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        context.Process(target=_run, args=(rank, launch, told, work, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in started:
        process.start()
    try:
        results = dict(told.get(timeout=PATIENCE_SECONDS) for _ in started)
    except Empty:
        raise AssertionError("some processes failed or wait for each other") from None
    finally:
        for process in started:
            process.join(timeout=10)
            process.kill()
    return [results[rank] for rank in range(size)]


def _run(
    rank: int, launch: dict[str, str], told: Any, work: Callable[..., Any], arguments: tuple
) -> None:
    os.environ |= launch | {"RANK": str(rank), "LOCAL_RANK": str(rank), VARIABLE: "1"}
    torch.set_num_threads(1)
    told.put((rank, work(*arguments)))


def exchanges(world: World) -> list[Any]:
    """Return what every kind of exchange gives, with as many values as the rank."""
    replica = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(replica.weight, world.rank + 1)
    if world.rank:
        replica.weight.grad = torch.full((1, 1), float(world.rank))
    world.sum_gradients(replica.parameters())
    world.share_weights(replica)
    items = list(range(7))
    return [
        world.gather(world.rank),
        world.sum(world.rank),
        world.any(world.rank == world.size - 1),
        world.on_main(lambda: f"from {world.rank}"),
        world.agree(lambda: world.rank),
        world.same("parity", "even"),
        world.gather(world.my_slice(items)) == world.turns(7),
        world.in_order([10 * i for i in world.my_slice(items)]),
        world.in_order([10 * i for i in world.my_slice([4])]),
        replica.weight.item(),
        None if replica.weight.grad is None else replica.weight.grad.item(),
        replica.bias.grad,
    ]


def leave_out(world: World) -> list[Any]:
    """Let the second process leave out what the others enter."""
    if world.rank != 1:
        world.agree(lambda: None)  # left out
    return world.gather(world.rank)  # entered too early


def leave_out_in_a_loop(world: World) -> None:
    """Let processes enter the same line from different ones."""

    def tell() -> None:
        world.gather(world.rank)  # shared helper

    if world.rank == 0:
        tell()  # one caller
    else:
        tell()  # another caller


def leave_out_in_a_thread(world: World) -> list[Any]:
    """Let a thread of the second process leave out an exchange beside good ones."""
    beside = world.beside()
    outcomes: list[Any] = []

    def work() -> None:
        try:
            if world.rank != 1:
                beside.any(True)  # left out by a thread
            beside.sum(1.0)  # entered too early by a thread
        except VaopdError as error:
            outcomes.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work)
    thread.start()
    sums = [world.sum(number) for number in range(50)]
    thread.join()
    return [sums, *outcomes]


def differ(world: World) -> str:
    """Let the last process have another value of what must be alike."""
    return world.same("options", f"a: 1\nb: {2 + (world.rank == world.size - 1)}\nc: 3")


class Model(torch.nn.Module):
    """The least that Sharding asks of a transformers model."""

    _no_split_modules = ("Linear",)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Embedding(4, 2), torch.nn.Linear(2, 2))
        self.head = torch.nn.Linear(2, 4, bias=False)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the embeddings."""
        return self.model[0]

    def get_output_embeddings(self) -> torch.nn.Module:
        """Return the head."""
        return self.head


def leave_out_a_forward(world: World) -> Any:
    """Let the second process tell a value where the others enter a sharded model."""
    assert world.mesh is not None
    model = Model()
    Sharding(model, world.mesh, torch.float32, filler=None)  # pyright: ignore
    if world.rank == 1:
        return world.gather(0)  # instead of a forward
    return model.model(torch.tensor([1]))  # forward


def learn_the_head_alone(world: World) -> list[float]:
    """Return the gradient of a head that only the last process used."""
    assert world.mesh is not None
    torch.manual_seed(0)
    model = Model()
    sharding = Sharding(model, world.mesh, torch.float32, filler=None)  # pyright: ignore
    with sharding.whole_head():
        assert sharding.head is not None
        if world.rank == world.size - 1:
            (sharding.head.sum() * 3).backward()
    return model.head.weight.grad.full_tensor().flatten().tolist()  # pyright: ignore
