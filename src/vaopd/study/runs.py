"""Runs of a study: each is a training in its own process, and several run at the same time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO

from rich.console import Console

from vaopd.display import Display, duration
from vaopd.records import write_text
from vaopd.study.plan import PlannedRun

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
"""Time in which a run must end by itself when the study is interrupted."""


def run_folder(output: Path, run: PlannedRun) -> Path:
    """Return the folder of a run of the study in ``output``."""
    return output / "runs" / run.name


def record_file(output: Path, run: PlannedRun) -> Path:
    """Return the small file with the results of a finished run."""
    return output / "records" / f"{run.name}.json"


def is_finished(output: Path, run: PlannedRun) -> bool:
    """Return whether the run is finished; its record is enough, the folder may be deleted."""
    files = (record_file(output, run), run_folder(output, run) / "summary.json")
    return any(file.is_file() for file in files)


@dataclass
class _Process:
    run: PlannedRun
    popen: subprocess.Popen
    log: IO[bytes]
    started: float


class Runner:
    """Trains every run of a plan, a few at a time."""

    def __init__(
        self, output: Path, *, jobs: int, console: Console, budget_seconds: float | None = None
    ) -> None:
        """Prepare to train.

        Args:
            output: Folder of the study.
            jobs: Runs at the same time; the cores are divided among them.
            console: Console for progress.
            budget_seconds: Time from now in which runs are begun that are expected to end in it;
                none = no limit.
        """
        self.output = output
        self.jobs = jobs
        self.end = None if budget_seconds is None else time.monotonic() + budget_seconds
        self.durations: list[float] = []
        self.postponed = 0
        self.display = Display(console)
        self.signal: int | None = None

    def execute(self, runs: dict[str, PlannedRun]) -> dict[str, str]:
        """Train the runs that are not finished; return the messages of failed runs, by name.

        An interrupted run continues from its newest checkpoint. A failing run does not stop
        the others. Runs for which the budget has no time are counted in ``postponed``.
        """
        waiting = [run for run in runs.values() if not is_finished(self.output, run)]
        done = len(runs) - len(waiting)
        self.display.say(f"{len(runs)} runs, {done} of them finished before, {self.jobs} at a time")
        failures: dict[str, str] = {}
        begun, open_before = time.monotonic(), self._open_share(waiting)
        active: list[_Process] = []
        with self.display, self._stopping(active):
            bar = self.display.start("runs", len(runs), done)
            while waiting or active:
                while waiting and len(active) < self.jobs:
                    if not self._fits():
                        self._postpone(waiting)
                        break
                    active.append(self._start(waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                self._check_signal()
                ended = [process for process in active if process.popen.poll() is not None]
                for process in ended:
                    active.remove(process)
                    done += 1
                    self._end(process, failures, f"{done}/{len(runs)}")
                left = self._open_share([*waiting, *(process.run for process in active)])
                note = _time_left(time.monotonic() - begun, open_before - left, left)
                self.display.advance(bar, len(ended), note)
        return failures

    def _fits(self) -> bool:
        """Return whether a run that takes as long as the others did ends within the budget."""
        expected = fmean(self.durations) if self.durations else 0.0
        return self.end is None or time.monotonic() + expected < self.end

    def _postpone(self, waiting: list[PlannedRun]) -> None:
        self.postponed += len(waiting)
        self.display.say(
            f"the budget has no time for {len(waiting)} more runs, first {waiting[0].name}; the "
            "same command goes on with them"
        )
        waiting.clear()

    def _start(self, run: PlannedRun) -> _Process:
        folder = run_folder(self.output, run)
        recipe = self.output / "recipes" / f"{run.name}.yaml"
        write_text(recipe, run.config.to_yaml())
        command = [sys.executable, "-m", "vaopd", "train", str(recipe), "--output", str(folder)]
        if (folder / "config.yaml").is_file():
            command.append("--resume")
        elif folder.exists():
            # The run was killed before its first file, so there is nothing to continue.
            shutil.rmtree(folder)
        path = self.output / "logs" / f"{run.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("wb")
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(max(1, num_cores() // self.jobs))},
            start_new_session=True,  # an interrupt reaches the study, which stops its runs itself
        )
        return _Process(run, popen, log, time.monotonic())

    def _end(self, process: _Process, failures: dict[str, str], count: str) -> None:
        process.log.close()
        seconds = time.monotonic() - process.started
        name = process.run.name
        if process.popen.returncode == 0 and is_finished(self.output, process.run):
            self.display.say(f"{count} {name}: done in {seconds:.0f} s")
            self.durations.append(seconds)
            return
        failures[name] = _message(self.output / "logs" / f"{name}.txt", process.popen.returncode)
        self.display.say(f"{count} {name}: failed after {seconds:.0f} s: {failures[name]}")

    @contextmanager
    def _stopping(self, active: Iterable[_Process]) -> Iterator[None]:
        """Stop the running trainings when the study is interrupted; each can be resumed."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        before = {number: signal.signal(number, self._note_signal) for number in numbers}
        try:
            yield
        finally:
            for process in active:
                process.popen.terminate()
            for process in active:
                try:
                    process.popen.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.popen.kill()
                process.log.close()
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _note_signal(self, number: int, frame: object) -> None:
        # Raising here could leave a started run that is not in the list yet.
        self.signal = number

    def _check_signal(self) -> None:
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _open_share(self, runs: Sequence[PlannedRun]) -> float:
        """Return the remaining work as a number of runs."""
        return float(len(runs)) - sum((self._done_share(run) for run in runs), 0.0)

    def _done_share(self, run: PlannedRun) -> float:
        """Return the finished share of a run, in [0, 1]; 0 if its length is not in the recipe."""
        steps = run.config.training.max_steps
        path = run_folder(self.output, run) / "metrics.jsonl"
        if steps is None or not path.is_file():
            return 0.0
        return min(1.0, path.read_bytes().count(b"\n") / steps)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _time_left(elapsed: float, worked: float, left: float) -> str:
    """Return the remaining time at the speed so far, in words; '' before the first progress."""
    if worked <= 0:
        return ""
    return f"about {duration(elapsed / worked * left)} left"


def _message(log: Path, code: int) -> str:
    """Return the last line a failed run printed, which is its one-sentence error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ") or f"ended with exit code {code}"
