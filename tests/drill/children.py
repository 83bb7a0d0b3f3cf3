"""Commands of vaopd in children of this process: forked, so that torch is imported only once.

The parent must not compute with torch, which would start threads that a fork does not copy.
"""

import ctypes
import mmap
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from vaopd import cli
from vaopd.evaluation.engines import local
from vaopd.evaluation.validation import Validator
from vaopd.training import export as export_module
from vaopd.training import run as run_module
from vaopd.training import step as step_module

POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 300.0
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of sys/prctl.h; Linux only, like the mounts of the drill."""

PHASES = ("start", "train", "validate", "save", "export", "evaluate")
"""What a command does at a moment; ``start`` is all that is not named."""

TRACEBACK = 70
"""Exit code of a child that ended by an exception; the command line would print a traceback."""


class Child:
    """A running command: its process, its output, and the phase it is in."""

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        *,
        prepare: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start the command.

        Args:
            arguments: Arguments of ``vaopd``.
            output: File for standard output and error.
            prepare: Called in the child before the command.
            environment: Added to the environment.
        """
        self.output = output
        self.shared = mmap.mmap(-1, 64)
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            self.become(arguments, prepare, environment or {})

    def become(
        self,
        arguments: list[str],
        prepare: Callable[[], None] | None,
        environment: dict[str, str],
    ) -> None:
        """Run the command in the forked process and end it."""
        code = TRACEBACK
        try:
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(file, number)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            os.environ.update(environment)
            # If the drill is killed, so are its children.
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
            torch.set_num_threads(1)
            warnings.simplefilter("ignore")
            mark_phases(self.shared)
            if prepare is not None:
                prepare()
            sys.argv = ["vaopd", *arguments]
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or ``None`` while the child runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        """Return the exit code when the child has ended; kill it if it never does."""
        while self.poll() is None:
            if time.monotonic() - self.began > PATIENCE_SECONDS:
                self.send(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> bool:
        """Send a signal; return whether the child was still there."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def kill(self) -> bool:
        """Kill the child and return whether it was still running."""
        self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    @property
    def phase(self) -> str:
        """The phase the child is in."""
        return PHASES[self.shared[0]]

    def entered(self, phase: str) -> int:
        """Return how often the child has entered a phase."""
        return self.shared[8 + PHASES.index(phase)]

    def wait_for(self, phase: str, times: int) -> bool:
        """Wait until a phase was entered so often; return ``False`` if the child ends before."""
        while self.entered(phase) < times:
            if self.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def text(self) -> str:
        """Return what the child has printed; '' before it has begun."""
        if not self.output.exists():
            return ""
        return self.output.read_text(errors="replace")

    def errors(self) -> list[str]:
        """Return the lines that begin with ``error:``."""
        return [line for line in self.text().splitlines() if line.startswith("error: ")]


def mark_phases(shared: mmap.mmap) -> None:
    """Let the functions that begin a phase say so in shared memory."""
    for owner, name, phase in (
        (step_module.Step, "run", "train"),
        (Validator, "examine", "validate"),
        (run_module, "save_checkpoint", "save"),
        (run_module, "mark_best", "save"),
        (export_module, "new_folder", "export"),
        (local.TransformersEngine, "answer", "evaluate"),
    ):
        setattr(owner, name, marked(getattr(owner, name), PHASES.index(phase), shared))


def marked(function: Callable, phase: int, shared: mmap.mmap) -> Callable:
    """Return the function with a mark while it runs; for ``new_folder``, until its next mark."""

    def call(*arguments, **options):
        before = shared[0]
        shared[0] = phase
        shared[8 + phase] = min(255, shared[8 + phase] + 1)
        result = function(*arguments, **options)
        if PHASES[phase] != "export":
            shared[0] = before
        return result

    return call


def limit_memory(megabytes: int) -> Callable[[], None]:
    """Return work for a child: let its address space grow by so much and no more."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return limit
