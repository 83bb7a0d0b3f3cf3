"""How an update grows with siblings, response, prompt, vocabulary and batch.

Each sweep is one process that goes from the smallest shape to the largest: the peak of resident
memory can only rise. Everything but the swept size is that of the scale, with few problems.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Arm, PeakMeter, synchronize
from benchmarks.scales import Scale
from benchmarks.subjects import make_subjects
from benchmarks.update import make_step, update

REPEATS = 2


def sweep(name: str, *, share_prefix: bool = True) -> Callable[[Scale, str], Arm]:
    """Return the builder of one sweep."""

    def build(scale: Scale, device: str) -> Arm:
        meter = PeakMeter(device)
        values = scale.sweeps.get(name, ())

        def run() -> dict[str, Any]:
            points = [
                {"value": value, **_point(with_size(scale, name, value), device, share_prefix)}
                | {"peak_bytes": meter.peak()}
                for value in values
            ]
            return {"points": points}

        return Arm(run=run)

    return build


def with_size(scale: Scale, name: str, value: int) -> Scale:
    """Return the scale with one size set; more prompt means a larger image."""
    base = dataclasses.replace(scale, problems=scale.growth_problems)
    match name:
        case "K":
            return dataclasses.replace(base, siblings=value)
        case "R":
            return dataclasses.replace(base, response=value)
        case "V":
            return dataclasses.replace(base, vocabulary=value)
        case "batch":
            return dataclasses.replace(base, problems=value)
    text = scale.prompt - scale.image_tokens
    side = 2 * scale.patch
    rows = scale.image[1] // side
    columns = (value - text) // rows
    return dataclasses.replace(
        base, prompt=text + rows * columns, image=(side * columns, side * rows)
    )


def _point(scale: Scale, device: str, share_prefix: bool) -> dict[str, Any]:
    subjects = make_subjects(scale, device)
    step = make_step(scale, subjects, method="va_opd", share_prefix=share_prefix)
    seconds = []
    for repeat in range(REPEATS + 1):
        synchronize(device)
        started = time.perf_counter()
        update(step, subjects, slice(None))
        if repeat:  # the first warms up
            seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds)}


def straight_line(points: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return intercept and slope of seconds by least squares, and the share they explain (R^2)."""
    xs, ys = [p["value"] for p in points], [p["seconds"] for p in points]
    slope, intercept = statistics.linear_regression(xs, ys)
    residual = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    spread = sum((y - statistics.fmean(ys)) ** 2 for y in ys)
    return intercept, slope, 1 - residual / spread if spread else 1.0


ARMS = {
    "K": sweep("K"),
    "K, plain rows": sweep("K", share_prefix=False),
    "R": sweep("R"),
    "P": sweep("P"),
    "V": sweep("V"),
    "batch": sweep("batch"),
}
