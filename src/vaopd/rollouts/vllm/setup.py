"""Builds an environment with vLLM from the locked versions that ship with the package.

A virtual environment cannot be renamed, so it is built in its place: a marker file is written first
and says that the build is complete only after vLLM was imported.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vaopd.errors import ConfigError, EngineError, RunFolderError
from vaopd.records import read_json, write_json
from vaopd.rollouts.vllm.environment import record
from vaopd.rollouts.vllm.server import server_environment

LOCKS = Path(__file__).parents[2] / "assets" / "vllm"
MARKER = "vaopd-vllm.json"
STANDARD_ERROR = 2
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch for CPUs is; the torch of PyPI needs CUDA."""


@dataclass(frozen=True, kw_only=True)
class VllmBuild:
    """An environment with vLLM: where it is, and what is installed."""

    folder: Path
    variant: Literal["cuda", "cpu"]
    torch_index: str = TORCH_INDEX
    """Further package index for the torch of a CPU; '' = only those of pip's or uv's settings."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def lock(self) -> Path:
        """File with the version and the hashes of every package."""
        return LOCKS / f"{self.variant}.txt"

    def commands(self, uv: str | None) -> list[list[str]]:
        """Return the commands that build it; each may be repeated after it was interrupted.

        Args:
            uv: Path of uv, which is quicker; None uses venv and pip of this Python.
        """
        python, folder = str(self.python), str(self.folder)
        if uv:
            make = [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder]
            install = [uv, "pip", "install", "--python", python]
        else:
            make = [sys.executable, "-m", "venv", folder]
            install = [python, "-m", "pip", "install"]
        install += ["--no-deps"]
        locked = [*install, "--require-hashes", "--requirement", str(self.lock)]
        if self.variant == "cuda":
            return [make, locked]
        index = ["--extra-index-url", self.torch_index] if self.torch_index else []
        return [make, locked, [*install, *index, torch_requirement()]]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides whether a folder holds this build."""
        digest = hashlib.sha256(self.lock.read_bytes()).hexdigest()
        version = ".".join(map(str, sys.version_info[:2]))
        return {"variant": self.variant, "lock": digest, "python": version}


def torch_requirement() -> str:
    """Return the version of torch that vLLM is built for, as a requirement."""
    lines = (LOCKS / "cuda.txt").read_text(encoding="utf-8").splitlines()
    return next(line.split()[0] for line in lines if line.startswith("torch=="))


def set_up(build: VllmBuild, say: Callable[[str], None]) -> str:
    """Build the environment unless it is complete, record it, and return the version of vLLM.

    Raises:
        ConfigError: The folder holds something else.
        EngineError: An installer failed, or vLLM cannot be imported afterwards.
    """
    found = _marker(build)
    is_complete = found == {**build.identity, "is_complete": True}
    if is_complete and build.python.exists():
        say(f"{build.folder} is complete; nothing is installed")
    else:
        _install(build, say)
    version = _import_vllm(build)
    write_json(build.folder / MARKER, {**build.identity, "is_complete": True})
    record(build.python)
    return version


def _marker(build: VllmBuild) -> dict[str, Any] | None:
    """Return what the marker of the folder says; None if there is no environment yet.

    Raises:
        ConfigError: The folder was not made by this command, or for another variant.
    """
    folder, marker = build.folder, build.folder / MARKER
    another = "choose another folder"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not marker.is_file():
        kind = "is not empty" if folder.is_dir() else "is a file"
        raise ConfigError(f"{folder} {kind} and was not made by vaopd setup-vllm; {another}")
    try:
        found = read_json(marker)
    except RunFolderError:
        return {}
    for key in ("variant", "python"):
        if (was := found.get(key)) not in (None, build.identity[key]):
            raise ConfigError(
                f"{folder} holds an environment with {key} {was}, and {build.identity[key]} is "
                f"wanted; {another}, or remove this one"
            )
    return found


def _install(build: VllmBuild, say: Callable[[str], None]) -> None:
    build.folder.mkdir(parents=True, exist_ok=True)
    write_json(build.folder / MARKER, {**build.identity, "is_complete": False})
    uv = shutil.which("uv")
    say(
        f"building {build.folder} for {build.variant} with {'uv' if uv else 'venv and pip'}; this "
        "downloads gigabytes, and the same command goes on where it was interrupted"
    )
    for command in build.commands(uv):
        code = _run(command)
        if code:
            raise EngineError(
                f"{' '.join(command[:4])} .. ended with exit code {code}, its output is above; "
                "the same command goes on from here"
            )
    if build.variant == "cpu":
        # The wheels of torchvision need CUDA to load beside the torch of a CPU.
        folders = build.folder.glob("lib/python*/site-packages")
        for folder in folders:
            shutil.copy(LOCKS / "torchvision_operators.py", folder / "sitecustomize.py")


def _run(command: list[str]) -> int:
    """Return the exit code of a command, all of whose output goes to standard error."""
    try:
        return subprocess.run(command, stdout=STANDARD_ERROR, env=server_environment({})).returncode
    except OSError as error:
        raise EngineError(f"{command[0]} does not start ({error.strerror})") from None


def _import_vllm(build: VllmBuild) -> str:
    code = "import vllm; print(vllm.__version__)"
    environment = server_environment({"VLLM_LOGGING_LEVEL": "ERROR"})
    try:
        found = subprocess.run(
            [build.python, "-P", "-c", code], env=environment, capture_output=True, text=True
        )
    except OSError as error:
        raise EngineError(
            f"{build.python} does not start ({error.strerror}); remove {build.folder} and build it "
            "again"
        ) from None
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"vLLM was installed in {build.folder} but cannot be imported ({last[:300]}); see "
            "docs/gpu.md"
        )
    return found.stdout.split()[-1]
