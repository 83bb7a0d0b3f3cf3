"""Runs a tiny recipe and returns everything that a user could see of the run.

Left out is what differs between two runs of one recipe (seconds, ports, names of temporary
folders) and what only repeats the recipe (``config.yaml``).
"""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.tracker_stand_ins import stand_in
from torch.nn.modules.module import register_module_forward_pre_hook

from vaopd.config import parse_config, parse_overrides
from vaopd.errors import VaopdError
from vaopd.records import read_rows
from vaopd.training.run import train

# Trained models: with random ones no token of a response has a visual advantage.
RECIPE = {
    "student": {"model": "tiny:student"},
    "teacher": {"model": "tiny:teacher-s"},
    "data": {"train": "drawn:train?count=4", "min_pixels": 1024, "max_pixels": 1048576},
    "sampling": {"num_rollouts": 2, "max_new_tokens": 8},
    "validation": {"num_samples": 1},
    "training": {
        "problems_per_step": 2,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "log_rollouts_every": 1,
        "device": "cpu",
    },
}


@dataclass
class Observed:
    """What a run showed, and the error that it ended with."""

    error: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``validation.jsonl``."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``validation/``."""

    files: dict[str, str] = field(default_factory=dict)
    """Digest of each file."""

    said: list[str] = field(default_factory=list)
    """Lines of the terminal."""

    vllm_log: list[str] = field(default_factory=list)
    tracked: list[str] = field(default_factory=list)
    """How a stand-in for the tracker trackio was started."""

    forwards: Counter[tuple[str, bool, Any]] = field(default_factory=Counter)
    """Calls of each kind of module, by training mode and shape of the input."""

    saved_tensors: int = 0
    """Tensors that autograd kept for the backward pass in the ordinary way."""


def observe(output: Path, *overrides: str) -> Observed:
    """Return what can be seen of the run of ``RECIPE`` with overrides.

    An error of the run is a part of that; an error of the recipe is raised, because no run
    looked at the key then.
    """
    config = parse_config(parse_overrides(overrides, _copy(RECIPE)))
    seen = Observed()
    with _watching(seen), pytest.MonkeyPatch.context() as patch:
        # A tracker puts its folder there, as its package expects.
        patch.setenv("TRACKIO_DIR", "")
        calls, terminal = stand_in(patch, "trackio"), io.StringIO()
        try:
            train(config, output, console=Console(file=terminal))
        except VaopdError as error:
            seen.error = str(error)
        seen.said = terminal.getvalue().splitlines()
        for name, _, options in calls:
            if name == "trackio.init":
                run_name = options["name"].rpartition("-")[0]
                is_inside = os.environ["TRACKIO_DIR"].startswith(str(output))
                seen.tracked.append(f"{options['project']} {run_name} {is_inside}")
    _read_folder(output, seen)
    return seen


def _copy(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {section: dict(keys) for section, keys in values.items()}


@contextmanager
def _watching(seen: Observed) -> Iterator[None]:
    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        first = inputs[0] if inputs else None
        shape = tuple(first.shape) if isinstance(first, torch.Tensor) else None
        seen.forwards[type(module).__name__, module.training, shape] += 1

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen.saved_tensors += 1
        return tensor

    handle = register_module_forward_pre_hook(note)
    try:
        # Hooks of the run itself take precedence, so what it keeps elsewhere is not counted.
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
    finally:
        handle.remove()


def _read_folder(output: Path, seen: Observed) -> None:
    times = ("time/", "beside/", "tokens_per_second")
    for row in _rows(output / "metrics.jsonl"):
        seen.metrics.append({k: v for k, v in row.items() if not k.startswith(times)})
    seen.validation = _rows(output / "validation.jsonl")
    for path in sorted(output.glob("rollouts/*.jsonl")):
        seen.rollouts += read_rows(path)
    for path in sorted(output.glob("validation/*.jsonl")):
        seen.answers += read_rows(path)
    if (output / "vllm.log").exists():
        seen.vllm_log = _plain_log((output / "vllm.log").read_text())
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        seen.files[str(path.relative_to(output))] = hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.exists() else []


def _plain_log(text: str) -> list[str]:
    text = re.sub(r"--port \d+", "--port N", text)
    text = re.sub(r"vaopd-weights-\w+", "vaopd-weights-N", text)
    return text.splitlines()
