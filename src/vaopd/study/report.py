"""``study.html``: tables with intervals, plots and protocol on one page without any network."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from vaopd.evaluation.statistics import Interval
from vaopd.report.statistics import SHARES
from vaopd.study.figures import Line, Point, gain_plot, interval_plot, line_plot, with_own_ids
from vaopd.study.headline import headline, sentences
from vaopd.study.measuring import record_of
from vaopd.study.pages import REPORT
from vaopd.study.plan import Arm, Plan, StudyTable
from vaopd.study.results import Results
from vaopd.study.runs import is_finished, run_folder
from vaopd.study.speed import speed_sentences

TEMPLATES = Path(__file__).parent / "templates"


def _percent(value: float) -> str:
    return _number(1)(100 * value)


def _number(decimals: int) -> Callable[[float], str]:
    # The z writes 0 and not -0 for a small negative number.
    return lambda value: f"{value:z,.{decimals}f}"


@dataclass(frozen=True)
class MetricColumn:
    """Heading and format of a metric."""

    name: str
    label: str
    write: Callable[[float], str]


METRICS = (
    MetricColumn("accuracy", "accuracy, %", _percent),
    MetricColumn("accuracy_sampled", "accuracy, sampled, %", _percent),
    MetricColumn("accuracy_pixelated", "accuracy, pixelated, %", _percent),
    MetricColumn("student_va", "student VA, nats", _number(3)),
    MetricColumn("answer_change_rate", "answers changed, %", _percent),
    MetricColumn("va_correlation", "correlation of VA", _number(2)),
    MetricColumn("va_mass_top_10", "VA in top 10 %, %", _percent),
    MetricColumn("teacher_kl", "KL to teacher, nats", _number(3)),
    MetricColumn("response_length", "tokens a response", _number(1)),
    MetricColumn("truncated", "truncated, %", _percent),
    MetricColumn("seconds", "seconds", _number(1)),
    MetricColumn("tokens_trained", "tokens trained", _number(0)),
)


@dataclass(frozen=True)
class Cell:
    """A number of the page."""

    text: str
    interval: str = ""
    is_unclear: bool = False
    """Whether it is a difference that cannot be told from 0."""


def render(plan: Plan, results: Results, output: Path, study: dict[str, Any]) -> str:
    """Return the page.

    Args:
        plan: The tables and their runs.
        results: Their numbers.
        output: The study's folder, for the curves.
        study: The content of ``study.json``: protocol and failures.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["jinja", "html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.jinja").render(
        headline=headline(plan, results),
        tables=[_table(table, results, output, study["failures"]) for table in plan.tables],
        maps=_inline(_regime_maps(plan, results), "map"),
        protocol=study["protocol"],
    )


def _signed(value: float, write: Callable[[float], str]) -> str:
    text = write(value)
    return text if text.startswith("-") else f"+{text}"


def _table(
    table: StudyTable, results: Results, output: Path, failures: list[dict[str, Any]]
) -> dict[str, Any]:
    names = {mean.metric for mean in results.means if mean.table == table.name}
    kinds = [
        MetricColumn(name, f"{name.partition('/')[2]}, %", _percent)
        for name in sorted(names)
        if name.startswith("accuracy/")
    ]
    shown = [metric for metric in METRICS if metric.name in names]
    return {
        "name": table.name,
        "title": table.settings.title,
        "sentences": sentences(table, results),
        "baseline": table.settings.baseline,
        "metrics": shown,
        "rows": _rows(table, results, shown, output),
        "kinds": kinds,
        "kind_rows": _rows(table, results, kinds, output),
        "tests": [*_tests(table, results), *speed_sentences(table, results.rows)],
        "failures": [row for row in failures if row["table"] == table.name],
        "figures": _inline(_figures(table, results, output), table.name),
    }


def _inline(svgs: list[str], place: str) -> list[Markup]:
    """Return plots as parts of the page, with different ids, as matplotlib repeats its ids."""
    return [Markup(with_own_ids(svg, f"{place}-{n}-")) for n, svg in enumerate(svgs)]


def _rows(
    table: StudyTable, results: Results, metrics: list[MetricColumn], output: Path
) -> list[dict[str, Any]]:
    means = {(m.arm, m.metric): m for m in results.means if m.table == table.name}
    gaps = {(c.arm, c.metric): c for c in results.comparisons if c.table == table.name}
    rows = []
    for arm, planned in table.arms.items():
        done = sorted({seed for key, m in means.items() if key[0] == arm for seed in m.seeds})
        seeds = [(seed, _link(planned, seed, output)) for seed in done]
        own = [_mean_cell(means.get((arm, metric.name)), metric) for metric in metrics]
        other = [_gap_cell(gaps.get((arm, metric.name)), metric) for metric in metrics]
        is_compared = any(key[0] == arm for key in gaps)
        rows.append({"arm": arm, "seeds": seeds, "own": own, "gaps": other if is_compared else []})
    return rows


def _tests(table: StudyTable, results: Results) -> list[str]:
    """Return a sentence for each trained arm: its corrected test, and what it could have shown."""
    tested = [c for c in results.comparisons if c.table == table.name and c.p_holm is not None]
    return [
        f"{c.arm}: {_signed(c.interval.mean, _percent)} points, p = {c.p_holm:.3f} after "
        f"correction for {len(tested)} arms; a true difference of "
        f"{_percent(c.smallest_visible)} points would have been found with a chance of 80 %."
        for c in tested
        if c.smallest_visible is not None
    ]


def _link(arm: Arm, seed: int, output: Path) -> str:
    """Return the relative address of the report of a run; '' if it is not there."""
    page = run_folder(output, arm.runs[seed]) / REPORT
    is_there = page.is_file() and not arm.is_untrained
    return page.relative_to(output).as_posix() if is_there else ""


def _mean_cell(mean: Any, metric: MetricColumn) -> Cell:
    if mean is None:
        return Cell("")
    return Cell(metric.write(mean.interval.mean), _ends(mean.interval, metric))


def _gap_cell(comparison: Any, metric: MetricColumn) -> Cell:
    if comparison is None:
        return Cell("")
    gap = comparison.interval
    ends = _ends(gap, metric) or "one seed"
    return Cell(_signed(gap.mean, metric.write), ends, gap.is_none)


def _ends(interval: Interval, metric: MetricColumn) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{metric.write(interval.low)} to {metric.write(interval.high)}"


def _figures(table: StudyTable, results: Results, output: Path) -> list[str]:
    makers = {"intervals": _interval_figures, "curves": _curves, "sparsity": _sparsity_figure}
    return [svg for name in table.settings.figures for svg in makers[name](table, results, output)]


def _interval_figures(table: StudyTable, results: Results, output: Path) -> list[str]:
    order = list(table.arms)
    means = [
        Point(mean.arm, mean.interval, order.index(mean.arm))
        for mean in results.means
        if (mean.table, mean.metric) == (table.name, "accuracy")
    ]
    gaps = [
        Point(gap.arm, gap.interval, order.index(gap.arm))
        for gap in results.comparisons
        if (gap.table, gap.metric) == (table.name, "accuracy")
    ]
    figures = [interval_plot(means, "accuracy")] if means else []
    if gaps:
        label = f"accuracy above {table.settings.baseline}, points"
        figures.append(interval_plot(gaps, label, has_zero_line=True))
    return figures


def _curves(table: StudyTable, results: Results, output: Path) -> list[str]:
    """Return accuracy against steps, seconds and tokens (Fig. 5 of the paper)."""
    by_arm = {
        name: [
            record_of(output, run).curve for run in arm.runs.values() if is_finished(output, run)
        ]
        for name, arm in table.arms.items()
        if not arm.is_untrained
    }
    figures = []
    for axis in ("steps", "seconds", "tokens"):
        lines = []
        for name, curves in by_arm.items():
            runs = [(_column(curve, axis), _column(curve, "accuracy")) for curve in curves]
            if runs:
                x, y = (np.mean(values, axis=0) for values in zip(*runs, strict=True))
                shown = runs if len(runs) > 1 else ()
                lines.append(Line(name, x, y, shown, list(table.arms).index(name)))
        if lines:
            figures.append(line_plot(lines, axis, "accuracy"))
    return figures


def _column(curve: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in curve], dtype=float)


def _sparsity_figure(table: StudyTable, results: Results, output: Path) -> list[str]:
    """Return the share of advantage in the top tokens (Fig. 2a of the paper)."""
    lines, tokens = [], np.array(SHARES) / 100
    for number, (name, arm) in enumerate(table.arms.items()):
        runs = []
        for run in arm.runs.values():
            if is_finished(output, run):
                record = record_of(output, run)
                found = (record.before if arm.is_untrained else record.after).sparsity
                if found:
                    runs.append((tokens, np.array(found)))
        if runs:
            mean = np.mean([y for _, y in runs], axis=0)
            lines.append(Line(name, tokens, mean, runs, number))
    if not lines:
        return []
    return [line_plot(lines, "top tokens by teacher VA", "share of VA", is_log=True)]


def _regime_maps(plan: Plan, results: Results) -> list[str]:
    """Return the gain in accuracy against each axis, over the tables of that axis."""
    axes: dict[str, dict[str, list[tuple[float, Interval]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for table in plan.tables:
        axis = table.settings.axis
        for gap in results.comparisons:
            is_here = (gap.table, gap.metric) == (table.name, "accuracy")
            if axis and is_here and not table.arms[gap.arm].is_untrained:
                series = f"{gap.arm} - {gap.baseline}"
                axes[axis.name][series].append((axis.value, gap.interval))
    return [gain_plot(series, name, "gain in accuracy") for name, series in axes.items()]
