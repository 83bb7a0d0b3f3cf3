"""One figure of the numbers of runs by step, as PNG or SVG."""

import io
import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError
from vaopd.records import read_rows, write_bytes
from vaopd.report.curves import flat_numbers, in_words
from vaopd.run_records import schema_of

FORMATS = (".png", ".svg")
Points = tuple[list[int], list[float]]
"""Steps and values."""


def plot(runs: Sequence[Path], metrics: Sequence[str], output: Path) -> None:
    """Write a figure with a panel for each metric and a line for each run that has it.

    Args:
        runs: Run folders.
        metrics: Keys of ``metrics.jsonl``; those of ``validation.jsonl`` as ``validation/KEY``.
        output: The PNG or SVG file; replaced if it exists.

    Raises:
        ConfigError: The file is of another kind, or no run has a metric; suggests the nearest one.
        RunFolderError: A folder is not a run or is damaged.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"output {output} is neither .png nor .svg; give it one of these endings")
    numbers = [_numbers(run) for run in runs]
    for metric in metrics:
        _check_known(metric, numbers)
    write_bytes(
        output, _draw([run.name for run in map(Path.resolve, runs)], numbers, metrics, output)
    )


def _numbers(run: Path) -> dict[str, Points]:
    """Return all series of a run by the name of their metric."""
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not a run folder (no config.yaml); name runs of vaopd train")
    schema_of(run)
    found: dict[str, Points] = {}
    for name, prefix in (("metrics", ""), ("validation", "validation/")):
        path = run / f"{name}.jsonl"
        for row in read_rows(path) if path.is_file() else []:
            for key, value in flat_numbers(row).items():
                if key != "step":
                    steps, values = found.setdefault(prefix + key, ([], []))
                    steps.append(int(row["step"]))
                    values.append(value)
    return found


def _check_known(metric: str, numbers: Sequence[dict[str, Any]]) -> None:
    known = sorted({key for one in numbers for key in one})
    if metric not in known:
        nearest = get_close_matches(metric, known, n=1, cutoff=0.0)
        remedy = f"did you mean {nearest[0]}?" if nearest else "wait for the first step"
        raise ConfigError(f"no run has the metric {metric!r}; {remedy}")


def _draw(
    names: Sequence[str],
    numbers: Sequence[dict[str, Points]],
    metrics: Sequence[str],
    output: Path,
) -> bytes:
    # Not pyplot, which keeps global state and looks for a window system.
    # matplotlib warns about its font cache when it runs for the first time.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 2.9 * len(metrics)), layout="constrained", dpi=150)
    panels = figure.subplots(len(metrics), squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        for number, (name, one) in enumerate(zip(names, numbers, strict=True)):
            if metric in one:
                steps, values = one[metric]
                marker = "o" if len(steps) < 12 else ""
                axes.plot(steps, values, color=f"C{number}", marker=marker, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(in_words(metric))
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    date = {"Date": None} if output.suffix == ".svg" else None
    figure.savefig(buffer, format=output.suffix.removeprefix("."), metadata=date)
    return buffer.getvalue()
