"""Seconds, peak bytes and counted operations of one arm in this process."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class NotMeasured(Exception):
    """An arm cannot run here; the message is the reason that the table shows."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to do the work of a phase, its inputs at hand."""

    run: Callable[[], dict[str, Any]]
    """Does the work once; what it returns is shown beside the numbers."""

    warm_up: Callable[[], Any] = lambda: None
    """A small part of the work, done before: allocations, thread pools, kernels."""

    share: float = 0.0
    """Which part of the work the warm-up is; its operations are counted and scaled up."""


def measure(arm: Arm, device: str) -> dict[str, Any]:
    """Return seconds, peak bytes above the inputs, counted operations and the arm's own numbers."""
    meter = PeakMeter(device)
    with FlopCounterMode(display=False) as counter:
        arm.warm_up()
    synchronize(device)
    started = time.perf_counter()
    details = arm.run()
    synchronize(device)
    seconds = time.perf_counter() - started
    operations = round(counter.get_total_flops() / arm.share) if arm.share else None
    return {"seconds": seconds, "peak_bytes": meter.peak(), "operations": operations, **details}


class PeakMeter:
    """Peak memory above what is held when the meter starts.

    On a GPU the allocator's own count; on a CPU resident memory, as the kernel keeps it. Memory
    that was freed may stay resident, so an arm has a process to itself.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.before = _status_bytes("VmRSS")

    def peak(self) -> int:
        """Return the peak so far, in bytes."""
        is_cuda = self.device == "cuda"
        now = torch.cuda.max_memory_allocated() if is_cuda else _status_bytes("VmHWM")
        return now - self.before


def _status_bytes(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    assert found is not None, f"the kernel does not report {key}"
    return int(found[1]) * 1024


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_speed(device: str) -> float:
    """Return the operations a second of a large matrix product: the speed an arm could reach."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
