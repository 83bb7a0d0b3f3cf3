"""The report of one or several runs: one HTML file that needs only a browser."""

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vaopd.errors import ConfigError, RunFolderError
from vaopd.records import write_text
from vaopd.report.curves import curves, has_values
from vaopd.report.evaluations import (
    FOLDER,
    Evaluation,
    evaluation_tables,
    find_evaluations,
    is_evaluation,
)
from vaopd.report.overview import overview
from vaopd.report.plots import advantage_charts, measured_records
from vaopd.report.rollouts import Pictures, rollout_groups
from vaopd.report.sources import Source, read_source
from vaopd.report.statistics import SHARES, Number, concentration, first_mention, quantile

SCRIPTS = (
    "uplot/uPlot.iife.min.js",
    "page.js",
    "tokens.js",
    "pictures.js",
    "rollouts.js",
    "charts.js",
    "start.js",
)
STYLES = ("uplot/uPlot.min.css", "report.css", "rollouts.css")
RELOAD_SECONDS = 10
POLL_SECONDS = 2.0
ROWS_SUFFIX = ".jsonl"
"""Suffix of files of ``vaopd score``; other paths that do not exist yet are taken for runs."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """A written page and the numbers of its rollouts."""

    path: Path
    shown: int
    """Rollouts on the page."""

    total: int
    """Rollouts that were logged."""

    num_bytes: int
    is_finished: bool


def report_path(paths: Sequence[Path], output: Path | None) -> Path:
    """Return the path of the page: ``output``, in the first run, or next to a scored file.

    Raises:
        ConfigError: All paths are evaluations.
    """
    first = _runs(paths)[0]
    if output is not None:
        return output / "report.html" if output.is_dir() else output
    if first.is_dir() or _is_to_come(first):
        return first / "report.html"
    return first.with_name(f"{first.stem}_report.html")


def write_report(
    paths: Sequence[Path],
    output: Path,
    *,
    max_rollouts: int = 200,
    is_live: bool = False,
    progress: Progress = lambda text: None,
) -> Report:
    """Read the runs and write the page; after an error no part of it is written.

    Args:
        paths: Run folders and files of ``vaopd score``, of which the first gives the page its
            name, and output folders of ``vaopd evaluate``; those inside a run are found.
        output: The HTML file.
        max_rollouts: Most rollouts to show; statistics and curves always count all of them.
        is_live: Whether the page reloads itself, for a run that is not finished.
        progress: Called with the name of what is read.

    Raises:
        ConfigError: A path does not exist, or all of them are evaluations.
        RunFolderError: A path is not a run or scored file, is empty, or is damaged.
    """
    sources = [read_source(path, progress) for path in _runs(paths)]
    evaluations = find_evaluations(paths)
    total = sum(len(source.records) for source in sources)
    pictures = Pictures()
    groups = rollout_groups(sources, pictures, max_rollouts=max_rollouts, progress=progress)
    shown = sum(len(group["rollouts"]) for group in groups)
    is_finished = all(source.is_finished for source in sources)
    charts = curves(sources)
    data = {
        "runs": [source.name for source in sources],
        "groups": groups,
        "pictures": pictures.data_addresses(),
        "scales": _scales(groups),
        "advantageCharts": advantage_charts(sources),
        "curveCharts": [chart for chart in charts if has_values(chart)],
        "reloadSeconds": RELOAD_SECONDS if is_live and not is_finished else 0,
    }
    zeros = [chart["title"] for chart in charts if not has_values(chart)]
    counts = {"shown": shown, "total": total, "zeros": zeros}
    page = _render(sources, evaluations, data, counts)
    write_text(output, page)
    return Report(output, shown, total, len(page.encode()), is_finished)


def _runs(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that are not evaluations."""
    runs = [path for path in paths if not is_evaluation(path)]
    if not runs:
        raise ConfigError(
            f"{paths[0]} is an evaluation; name the run folder before it, or compare evaluations "
            "by vaopd compare"
        )
    return runs


def follow_report(
    paths: Sequence[Path],
    output: Path,
    *,
    max_rollouts: int = 200,
    progress: Progress = lambda text: None,
    say: Progress = lambda text: None,
    wait: Callable[[float], None] = time.sleep,
) -> Report:
    """Write the page again whenever a run has grown, until all runs are finished.

    It waits for runs that do not exist or have not logged a step; ``say`` is called once with
    the reason.
    """
    seen: list[tuple[str, int, int]] | None = None
    found: Report | str = ""
    while isinstance(found, str) or not found.is_finished:
        state = _state(paths)
        if state != seen:
            seen = state
            found = _live_report(paths, output, max_rollouts, progress)
            if isinstance(found, str):
                say(f"waiting for {found}")
        if isinstance(found, str) or not found.is_finished:
            wait(POLL_SECONDS)
    return found


def _live_report(
    paths: Sequence[Path], output: Path, max_rollouts: int, progress: Progress
) -> Report | str:
    """Write the page; return it, or the reason why it cannot be written yet."""
    for path in paths:
        if _is_to_come(path):
            return f"a run at {path}"
    try:
        return write_report(
            paths, output, max_rollouts=max_rollouts, is_live=True, progress=progress
        )
    except RunFolderError as error:
        if "nothing to show yet" not in str(error):
            raise
        return "the first step"


def _is_to_come(path: Path) -> bool:
    """Return whether a run may still appear at a path: it is missing, or an empty folder."""
    if path.is_dir():
        # A run writes its first file under a hidden name and renames it afterwards.
        return all(entry.name.startswith(".") for entry in path.iterdir())
    return not path.exists() and path.suffix != ROWS_SUFFIX


def _state(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return a value that changes when a run grows."""
    found = []
    for path in paths:
        patterns = (
            "*.json*",
            "rollouts/*.jsonl",
            "validation/*.jsonl",
            f"{FOLDER}/*/*.json",
        )
        names = [p for pattern in patterns for p in path.glob(pattern)] if path.is_dir() else [path]
        for name in sorted(name for name in names if name.exists()):
            status = name.stat()
            found.append((str(name), status.st_size, status.st_mtime_ns))
    return found


def _render(
    sources: Sequence[Source],
    evaluations: Sequence[Evaluation],
    data: dict[str, Any],
    counts: dict[str, Any],
) -> str:
    environment = Environment(
        loader=PackageLoader("vaopd.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "\n".join(_asset(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        title=" and ".join(source.name for source in sources),
        style=Markup("\n".join(_asset(name) for name in STYLES)),
        script=Markup(script),
        # Only this script can run, so text of a model cannot run as a script.
        script_hash=f"sha256-{digest}",
        data=Markup(_embedded(data)),
        overviews=[overview(source) for source in sources],
        configurations=[_configuration(source) for source in sources],
        facts=_facts(sources),
        evaluations=evaluation_tables(evaluations) if evaluations else None,
        has_advantage=bool(data["advantageCharts"]),
        has_curves=bool(data["curveCharts"]),
        **counts,
        reload_seconds=data["reloadSeconds"],
    )


def _asset(name: str) -> str:
    return (files("vaopd.report") / "templates" / name).read_text(encoding="utf-8")


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that cannot close its script element."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # JSON may hold half a surrogate pair, which is not valid UTF-8.
    return escaped.encode("utf-8", "replace").decode()


def _finite(value: Any) -> Any:
    """Return the data with null for numbers that JSON cannot hold, such as a loss that is NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _scales(groups: Sequence[dict[str, Any]]) -> dict[str, Number]:
    """Return the value at the strongest colour of each measure, the same for the whole page.

    The 99th percentile of the values that are not zero: one outlier would make all others pale.
    """
    scales = {}
    for letter in "vskw":
        values = [
            value
            for group in groups
            for rollout in group["rollouts"]
            for value in rollout.get(letter, ())
            if value
        ]
        if any(letter in rollout for group in groups for rollout in group["rollouts"]):
            scales[letter] = quantile(values, 0.99) or 1.0
    return scales


def _facts(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the numbers under "Visual advantage", for each run that has any."""
    facts = []
    for source in sources:
        records = measured_records(source)
        if not records:
            continue
        values = [value for record in records for value in record.advantage]
        shares = concentration(values)
        high = [v for r in records for v, h in zip(r.advantage, r.is_high, strict=False) if h]
        places = [
            place
            for record in records
            if record.is_high
            and (place := first_mention(record.advantage, record.is_high)) is not None
        ]
        facts.append(
            {
                "name": source.name,
                "noise": source.metrics[0].get("va/noise_floor") if source.metrics else None,
                "mean": fmean(r.mean_advantage for r in records if r.mean_advantage is not None),
                "top": shares[SHARES.index(20)] if shares else None,
                "zero": fmean(value == 0 for value in values),
                "high_zero": fmean(value == 0 for value in high) if high else None,
                "first": quantile(places, 0.5) if places else None,
                "rollouts": len(records),
                "tokens": len(values),
            }
        )
    return facts


def _configuration(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "text": source.config_text,
        "environment": yaml.safe_dump(source.environment, sort_keys=False, allow_unicode=True)
        if source.environment
        else "",
    }
