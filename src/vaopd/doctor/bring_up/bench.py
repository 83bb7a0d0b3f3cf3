"""What the checks share: their device, the form of their results, and a clock."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vaopd.config import RunConfig


class NotRunHere(Exception):
    """A check cannot run on this machine; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check measured, and what is wrong with it."""

    numbers: dict[str, Any]
    summary: str
    """The numbers that matter, in one line."""

    problems: list[str] = field(default_factory=list)
    """One sentence for each number outside of its limit; empty = passed."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The outcome of a check, as in the JSON file."""

    name: str
    tells: str
    result: Literal["passed", "failed", "not run"]
    message: str
    """Its summary, what is wrong, or why it was not run."""

    numbers: dict[str, Any]
    seconds: float


@dataclass(frozen=True, eq=False)
class Bench:
    """The place of all checks."""

    device: torch.device
    folder: Path
    """For run folders and logs; removed at the end."""

    recipe: RunConfig | None = None
    """Its models take the steps whose memory is measured; None = tiny ones."""

    resources: ExitStack = field(default_factory=ExitStack)
    """Stops servers at the end."""

    @property
    def is_gpu(self) -> bool:
        """Whether sizes are those of a GPU."""
        return self.device.type == "cuda"

    def random(self, *shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Return normal numbers in float32 on the CPU, the same for every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator) * scale

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Return the median time of some work, after a first time that does not count."""
        work()
        taken = []
        for _ in range(repeats):
            taken.append(1000 * self.seconds(work))
        return round(sorted(taken)[repeats // 2], 4)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the time of some work that is done once."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected number."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def beyond(numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return a sentence for each number that is above its limit, or not a number."""
    return [
        f"{name} is {numbers[name]:.3g}, above {limit:.3g}"
        for name, limit in limits.items()
        if not numbers[name] <= limit
    ]
