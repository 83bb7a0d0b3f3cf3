"""The tiny runs of the drill: their recipe, the uninterrupted ones, and what must be equal."""

import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.drill.children import Child
from tests.drill.tally import Tally

from vaopd.records import CARD, read_rows

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s"}
data:
  train: drawn:train?count=7
  validation: drawn:validation?count=2
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 6}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 2
  max_steps: 6
  learning_rate: 1.0e-3
  save_every: 2
  keep_checkpoints: null
  validate_every: 3
  log_rollouts_every: 1
"""
STEPS = 6
TIMINGS = ("time/", "tokens_per_second")


@dataclass
class Drill:
    """Where a drill works, how much it tries, and what it has found."""

    folder: Path
    tally: Tally
    seed: int
    sizes: dict[str, int]
    """Number of cases of each class."""

    deadline: float = math.inf
    """By ``time.monotonic``; afterwards no case is begun."""

    show: Any = field(default=print)

    @property
    def recipe(self) -> Path:
        """The recipe of all tiny runs."""
        path = self.folder / "recipe.yaml"
        if not path.is_file():
            path.write_text(RECIPE)
        return path

    @property
    def whole(self) -> Path:
        """The uninterrupted run, made by the first use."""
        return self.made("whole", train(self.recipe, self.folder / "whole.tmp"))

    @property
    def evaluated(self) -> Path:
        """The uninterrupted evaluation, made by the first use."""
        return self.made("evaluated", evaluate(self.whole, self.folder / "evaluated.tmp"))

    def made(self, name: str, arguments: list[str]) -> Path:
        """Return the result of a command that is run once; its output is ``NAME.tmp``."""
        target, work = self.folder / name, self.folder / f"{name}.tmp"
        if not target.exists():
            shutil.rmtree(work, ignore_errors=True)
            child = Child(arguments, self.folder / f"{name}.log")
            assert child.wait() == 0, child.text()
            work.rename(target)
        return target

    def fresh(self, name: str) -> Path:
        """Return the path of a folder that does not exist."""
        path = self.folder / "work" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        return path

    @property
    def log(self) -> Path:
        """File for the output of the next child."""
        return self.folder / "child.log"

    def left(self, name: str) -> int:
        """Return how many cases of a class are still to be tried."""
        if time.monotonic() > self.deadline:
            return 0
        return self.sizes[name] - self.tally.count(name).tried


def train(recipe: Path, output: Path, *more: str) -> list[str]:
    """Return the arguments of a training."""
    return ["train", str(recipe), "--output", str(output), *more]


def evaluate(run: Path, output: Path) -> list[str]:
    """Return the arguments of an evaluation of a run."""
    return [
        *("evaluate", str(run / "final"), "--benchmark", "drawn:validation?count=6"),
        *("--output", str(output), "--max-new-tokens", "6", "--min-pixels", "1024"),
        *("--samples", "2", "--batch-tokens", "64"),
    ]


def resumed(recipe: Path, output: Path, *more: str) -> list[str]:
    """Return the arguments that go on with a run, or begin it if there is nothing to go on with."""
    begun = (output / "config.yaml").is_file()
    return train(recipe, output, *(["--resume"] if begun else []), *more)


def difference(run: Path, whole: Path, *, checkpoints: bool = True) -> str:
    """Return the first file of a run that is not as in the uninterrupted run, or ''."""
    patterns = ["final/*", "rollouts/*.jsonl", "validation/*.jsonl", "validation.jsonl"]
    if checkpoints:
        patterns += ["checkpoints/step_*/*", "checkpoints/step_*/trainer_state/*.safetensors"]
    for pattern in patterns:
        names = {path.relative_to(whole) for path in whole.glob(pattern) if path.is_file()}
        mine = {path.relative_to(run) for path in run.glob(pattern) if path.is_file()}
        if names != mine:
            return f"{min(map(str, names ^ mine))} is only in one of them"
        for name in sorted(names):
            if _content(run / name) != _content(whole / name):
                return str(name)
    if metrics(run) != metrics(whole):
        return "metrics.jsonl"
    if hidden := [path for path in run.rglob("*") if path.name.endswith(".partial")]:
        return f"{hidden[0].relative_to(run)} is left"
    return ""


def _content(path: Path) -> bytes:
    """Return what a file holds; of a card, all but the command of its run and its own digest."""
    whole = path.read_bytes()
    if path.name != CARD:
        return whole
    lines = whole.splitlines()[:-1]
    return b"\n".join(line for line in lines if not line.startswith(b"- command: "))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the numbers of every step but its times."""
    return [
        {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
        for row in read_rows(run / "metrics.jsonl")
    ]


def evaluation_difference(output: Path, whole: Path) -> str:
    """Return what of an evaluation is not as in the uninterrupted one, or ''."""
    for name in ("predictions.jsonl", "verdicts.jsonl"):
        # Responses are written in the order in which they are complete.
        first, second = (
            sorted(json.dumps(row, sort_keys=True) for row in read_rows(one / "drawn" / name))
            for one in (output, whole)
        )
        if first != second:
            return name
    first, second = (json.loads((one / "results.json").read_text()) for one in (output, whole))
    return "" if first["benchmarks"] == second["benchmarks"] else "results.json"
