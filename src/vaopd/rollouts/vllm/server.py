"""A vLLM server in its own environment: finding, starting, watching and stopping it.

vLLM pins torch and transformers, so it usually has its own environment and is not imported
here. A folder that it can serve holds ``config.json``, ``generation_config.json``, the
weights, the tokenizer with its chat template and ``preprocessor_config.json``: what
``VisionLanguageModel.save`` writes, for the tiny models too. vLLM builds the whole Qwen processor
from it, with its video half, and needs torchvision in its own environment for that.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

from vaopd.allocator import GROWING, VARIABLE
from vaopd.errors import ConfigError, EngineError
from vaopd.rollouts.vllm.environment import recorded_python

PYTHON_VARIABLE = "VAOPD_VLLM_PYTHON"

STARTUP_SECONDS = 3600.0
"""Loading tens of gigabytes and compiling take minutes; a server that fails ends by itself."""

SOCKET = "unix:"
"""Begins the address of a server that listens on a socket in the file system."""

SECONDS_BETWEEN_LINES = 15.0
SECONDS_TO_STOP = 30.0

# The command `vllm serve` of the CPU build fails at its own version number; the module runs in
# every build. PR_SET_PDEATHSIG remains after execv: if the trainer is killed, its server ends too.
LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[1:]]
os.execv(sys.executable, arguments)
"""


SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Gigabytes for keys and values if vLLM runs on a CPU; its default is half the memory."""

CPU_STEP_TOKENS = "32768"
"""Most tokens of one step of the engine on a CPU; vLLM's default is 2,048."""

EAGER = {"TORCHDYNAMO_DISABLE": "1"}
"""Even in eager mode vLLM compiles a few functions at the first request, for half a minute."""

OF_A_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
}
"""Variables by which torchrun numbers a process; a server must not inherit them."""


def engine_arguments(*, on_gpu: bool) -> list[str]:
    """Return vLLM's arguments that are the same for every use.

    Without a GPU graphs are not compiled, because compiling takes longer than it saves. A step of
    the engine then takes as many tokens as prompts need: where it splits the prompt of a request
    that has a seed, vLLM 0.32 rewinds its generator, and a CPU's generator cannot be rewound
    ("CPU Generator does not use offset"), which ends the engine.
    """
    on_cpu = [] if on_gpu else ["--enforce-eager", "--max-num-batched-tokens", CPU_STEP_TOKENS]
    return ["--max-model-len", "auto", "--enable-prefix-caching", *on_cpu]


def find_python(given: str | None, option: str) -> str:
    """Return an interpreter that has vLLM.

    That is the given one, else ``VAOPD_VLLM_PYTHON``, else the one that ``vaopd setup-vllm`` built
    last, else this one.

    Args:
        given: Path or name of the interpreter, if the user gave one.
        option: How the user gives it, for the message.

    Raises:
        ConfigError: There is no such interpreter, or vLLM is not installed for it.
    """
    name = given or os.environ.get(PYTHON_VARIABLE) or recorded_python() or sys.executable
    python = shutil.which(name)
    remedy = (
        f"name the interpreter of an environment with vLLM by {option} or {PYTHON_VARIABLE}, or "
        "build one: vaopd setup-vllm DIR"
    )
    if python is None:
        raise ConfigError(f"{name!r} is not a Python interpreter; {remedy}")
    # -P: a folder called vllm in the current folder is not the package.
    test = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    found = subprocess.run(
        [python, "-P", "-c", test], env=server_environment({}), capture_output=True, check=False
    )
    if found.returncode:
        raise ConfigError(f"vLLM is not installed for {python}; {remedy}")
    return python


class VllmServer:
    """A running server on a free port of this machine, until ``close``."""

    def __init__(
        self,
        model: str | Path,
        *,
        python: str,
        log: Path,
        arguments: Sequence[str] = (),
        on_gpu: bool = False,
        environment: dict[str, str] | None = None,
        is_private: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start the server and wait until it answers.

        Args:
            model: Hub name or folder.
            python: From ``find_python``.
            log: File that the server's output is added to.
            arguments: Further arguments of vLLM; of two equal ones the last is used.
            on_gpu: See ``engine_arguments``.
            environment: Further environment variables.
            is_private: Listen on a socket in a folder that only this user can open, and not on a
                port, which every user of the machine can.
            say: Shows a line of progress.

        Raises:
            EngineError: The server ended before it answered.
        """
        self.log = log
        self.folder = tempfile.TemporaryDirectory(prefix="vaopd-vllm-") if is_private else None
        if self.folder is not None:
            socket_path = f"{self.folder.name}/socket"
            self.address, listen = f"{SOCKET}{socket_path}", ["--uds", socket_path]
        else:
            port = str(_free_port())
            self.address = f"http://127.0.0.1:{port}"
            listen = ["--host", "127.0.0.1", "--port", port]
        command = [python, "-P", "-c", LAUNCH, "--model", str(model), *listen]
        command += engine_arguments(on_gpu=on_gpu)
        eager = {} if on_gpu else EAGER
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # In a new session Ctrl-C does not reach the server, and its whole group can be ended.
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=server_environment(eager | (environment or {})),
                start_new_session=True,
            )
        try:
            self._wait(say)
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Return if the server runs.

        Raises:
            EngineError: It ended; the message names its log.
        """
        code = self.process.poll()
        if code is not None:
            raise EngineError(f"the vLLM server ended with exit code {code}; see {self.log}")

    def close(self) -> None:
        """End the server and the processes that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(SECONDS_TO_STOP)
        # Workers of a server that was killed would continue to run.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.folder is not None:
            self.folder.cleanup()

    def _wait(self, say: Callable[[str], None]) -> None:
        start = last = time.monotonic()
        say(f"vLLM is starting; its log is {self.log}")
        while not _answers(self.address):
            self.check()
            now = time.monotonic()
            if now - start > STARTUP_SECONDS:
                raise EngineError(
                    f"the vLLM server gave no answer in {STARTUP_SECONDS:.0f} s; see {self.log}"
                )
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                say(f"vLLM is starting, {now - start:.0f} s")
            time.sleep(0.5)
        say(f"vLLM answers after {time.monotonic() - start:.0f} s")


def connection(place: str, max_requests: int, *, is_async: bool = False) -> dict[str, Any]:
    """Return the arguments of an HTTP client for an address of a ``VllmServer``.

    Without a time limit, because the recipe decides how long responses are.
    """
    limits = httpx2.Limits(max_connections=max_requests)
    if not place.startswith(SOCKET):
        return {"base_url": place, "timeout": None, "limits": limits}
    kind = httpx2.AsyncHTTPTransport if is_async else httpx2.HTTPTransport
    transport = kind(uds=place.removeprefix(SOCKET), limits=limits)
    return {"base_url": "http://vllm", "timeout": None, "transport": transport}


def _answers(address: str) -> bool:
    if address.startswith(SOCKET) and not _listens(address.removeprefix(SOCKET)):
        return False
    try:
        with httpx2.Client(**connection(address, 1)) as client:
            return client.get("health", timeout=5.0).status_code == 200
    except httpx2.TransportError:
        return False


def _listens(path: str) -> bool:
    """Return whether a socket takes connections; vLLM makes its file minutes earlier."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(path) == 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def server_environment(further: dict[str, str]) -> dict[str, str]:
    """Return the variables of a process in the environment of vLLM."""
    # Packages of this environment must not come before those of the server's environment.
    foreign = {"PYTHONPATH", *OF_A_LAUNCHER}
    kept = {
        name: text
        for name, text in os.environ.items()
        if name not in foreign and not name.startswith("TORCHELASTIC_")
    }
    if "TORCHELASTIC_RUN_ID" in os.environ and kept.get("OMP_NUM_THREADS") == "1":
        del kept["OMP_NUM_THREADS"]  # torchrun's own, for processes that share the cores
    if kept.get(VARIABLE) == GROWING:
        del kept[VARIABLE]  # the run's own; vLLM's pools of memory need segments of fixed sizes
    return {**SETTINGS, **kept, **further}
