"""Answers by copies of an engine in several processes, one for each device.

This module does not import torch: the process that reads and saves needs none.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from vaopd.errors import EngineError, ProblemError, VaopdError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.engine import Engine, Request
from vaopd.evaluation.predictions import Prediction

Message = tuple[Literal["ready", "next", "answered", "refused", "finished", "failed"], Any]
"""What a worker sends. After ``ready`` and ``finished`` it waits for the name of a benchmark, after
``next`` for a request; ``None`` ends the benchmark or the worker."""

SECONDS_TO_STOP = 10.0


@dataclass(frozen=True, eq=False)
class DeviceWorker:
    """A process with one copy of the engine."""

    device: str
    process: BaseProcess
    connection: Connection
    log: Path

    def send(self, value: Any) -> None:
        """Send a request or a name.

        Raises:
            EngineError: The process ended.
        """
        try:
            self.connection.send(value)
        except OSError:
            raise self._ended() from None

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            VaopdError: The engine failed, or the process ended.
        """
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == "failed":
            raise value
        return kind, value

    def _ended(self) -> EngineError:
        self.process.join(SECONDS_TO_STOP)
        written = self.log.read_text(errors="replace").split("\n") if self.log.is_file() else []
        last = next((line.strip() for line in reversed(written) if line.strip()), "")
        said = f"its last line is {last[:200]!r}" if last else "it wrote nothing"
        return EngineError(
            f"the process of {self.device} ended with exit code {self.process.exitcode}; {said} "
            f"(log {self.log}); the same command goes on from here"
        )


class DataParallelEngine:
    """Splits the items over processes; each item is answered by one of them.

    The share of a process is every n-th item, so equal commands make equal batches. Answers are
    saved by the main process as they come: a killed process loses only its own batch.
    """

    def __init__(
        self, make_engine: Callable[[str], Engine], devices: Sequence[str], *, logs: Path
    ) -> None:
        """Start one process for each device and wait until all engines are made.

        Args:
            make_engine: Returns the engine of a device; must be picklable.
            devices: One name for each process.
            logs: Folder for the output of the processes, ``process_0.log`` and so on.

        Raises:
            VaopdError: An engine cannot be made.
        """
        logs.mkdir(parents=True, exist_ok=True)
        # A forked process cannot use CUDA.
        context = multiprocessing.get_context("spawn")
        self.workers: list[DeviceWorker] = []
        try:
            for number, device in enumerate(devices):
                mine, theirs = context.Pipe()
                log = logs / f"process_{number}.log"
                process = context.Process(
                    target=_work, args=(theirs, make_engine, device, log), daemon=True
                )
                process.start()
                # Else the end of the process would not close the connection.
                theirs.close()
                self.workers.append(DeviceWorker(device, process, mine, log))
            for worker in self.workers:
                worker.receive()
        except BaseException:
            self.close()
            raise

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        """Answer items in any order; see ``Engine``.

        Raises:
            VaopdError: The engine of a process failed, or a process ended. Earlier answers are
                kept.
        """
        listed = list(requests)
        items = {request.item.id: request.item for request in listed}
        busy = {worker.connection: worker for worker in self.workers}
        shares = {
            worker.connection: _with_images(listed[number :: len(self.workers)], on_bad_item)
            for number, worker in enumerate(self.workers)
        }
        for worker in self.workers:
            worker.send(benchmark)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                kind, value = busy[connection].receive()
                if kind == "next":
                    busy[connection].send(next(shares[connection], None))
                elif kind == "answered":
                    on_done(items[value[0]], value[1])
                elif kind == "refused":
                    on_bad_item(items[value[0]], value[1])
                else:
                    del busy[connection]

    def summary(self) -> str:
        """Return '': local models have no cost."""
        return ""

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            # Also in the middle of a batch: nobody waits for its answers any more.
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(SECONDS_TO_STOP)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()


def _with_images(
    share: Sequence[Request], on_bad_item: Callable[[Item, Exception], None]
) -> Iterator[Request]:
    """Yield requests whose images are read: an image that stays in its table cannot be sent."""
    for request in share:
        try:
            images = tuple(
                one if isinstance(one, bytes | Path) else one.load() for one in request.item.images
            )
        except ProblemError as error:
            on_bad_item(request.item, error)
            continue
        yield replace(request, item=replace(request.item, images=images))


def _work(
    connection: Connection, make_engine: Callable[[str], Engine], device: str, log: Path
) -> None:
    """Answer what the main process asks, until it ends."""
    # Ctrl-C reaches every process of the terminal; the main process decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        _serve(connection, make_engine(device))
    except VaopdError as error:
        connection.send(("failed", error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process ended
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        sentence = (
            f"the process of {device} failed with {reason} (log {log}); the same command goes on "
            "from here"
        )
        connection.send(("failed", EngineError(sentence)))


def _serve(connection: Connection, engine: Engine) -> None:
    def asked() -> Iterator[Request]:
        while True:
            connection.send(("next", None))
            request = connection.recv()
            if request is None:
                return
            yield request

    connection.send(("ready", None))
    while True:
        engine.answer(
            connection.recv(),
            asked(),
            lambda item, predictions: connection.send(("answered", (item.id, predictions))),
            lambda item, error: connection.send(("refused", (item.id, error))),
        )
        connection.send(("finished", None))


def _end_with_the_main_process() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)
