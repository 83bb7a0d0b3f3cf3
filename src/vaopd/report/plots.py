"""Charts as plain data; the page draws them with uPlot.

uPlot (MIT, 50 kB, no dependency) is embedded, so that readers can point at a curve, compare runs
and switch between dark and light, which static images do not allow.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from vaopd.report.sources import Record, Source
from vaopd.report.statistics import (
    SHARES,
    Number,
    concentration,
    even_edges,
    first_mention,
    high_positions,
    histogram,
)

BINS = 20
NUM_HUES = 6
"""Colours of the page; more lines of one run are dashed as well."""

MAX_POINTS = 2000
"""Most points of a scatter plot; more points would only overlap."""

Chart = dict[str, Any]
Series = dict[str, Any]


def line(
    label: str, source: Source, run: int, place: int, points: Iterable[tuple], runs: int
) -> Series:
    """Return a line; its colour stands for the run, or for the quantity if there is one run.

    Its dash and its dot stand for the quantity where the colour does not.
    """
    xs, ys = zip(*sorted(points), strict=True)
    return {
        "label": f"{source.name}: {label}" if runs > 1 else label,
        "hue": run if runs > 1 else place,
        "dash": place if runs > 1 else place // NUM_HUES,
        "dot": place,
        "x": list(xs),
        "y": list(ys),
    }


def advantage_charts(sources: Sequence[Source]) -> list[Chart]:
    """Return charts of the distribution of visual advantage over all logged training rollouts."""
    measured = [measured_records(source) for source in sources]
    if not any(measured):
        return []
    charts = [
        _concentration(sources, measured),
        _advantage_histogram(sources, measured),
        _positions(sources, measured),
        _first_mentions(sources, measured),
        _weight_against_length(sources, measured),
        _weight_by_outcome(sources, measured),
    ]
    return [chart for chart in charts if chart["series"]]


def measured_records(source: Source) -> list[Record]:
    """Return the rollouts with advantage: of training or scoring, otherwise of validation."""
    with_advantage = [record for record in source.records if len(record.advantage)]
    trained = [record for record in with_advantage if record.group.source != "validation"]
    return trained or with_advantage


def _concentration(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    parts: list[tuple[str, Source, int, list[Record]]] = []
    for number, (source, records) in enumerate(zip(sources, measured, strict=True)):
        parts.append(("all logged steps", source, number, records))
        steps = sorted({record.group.step for record in records})
        if len(sources) == 1 and len(steps) > 1:
            for step in (steps[0], steps[-1]):
                some = [record for record in records if record.group.step == step]
                parts.append((f"step {step}", source, number, some))
    series = []
    for place, (label, source, number, records) in enumerate(parts):
        shares = concentration(value for record in records for value in record.advantage)
        if shares:
            points = [(0.0, 0.0), *zip(SHARES, shares, strict=True)]
            at = 0 if len(sources) > 1 else place
            series.append(line(label, source, number, at, points, len(sources)))
    return {
        "id": "concentration",
        "title": "Concentration",
        "caption": "Share of all visual advantage held by the tokens that have most of it.",
        "unit": "percent",
        "x": "top % of tokens",
        "kind": "line",
        "series": series,
    }


def _binned(
    chart: Chart,
    sources: Sequence[Source],
    measured: Sequence[list[Record]],
    values: Callable[[Record], Iterable[Number]],
    *,
    split: bool,
    high: Number | None = None,
) -> Chart:
    """Return a histogram with a line for each run; one run has lines for right and wrong."""
    everything = [value for records in measured for record in records for value in values(record)]
    edges = even_edges(0.0, high or max(everything, default=1.0), BINS)
    series = []
    for number, (source, records) in enumerate(zip(sources, measured, strict=True)):
        outcomes = {record.is_correct for record in records} if split else set()
        named: list[tuple[str, list[Record]]] = [("all", records)]
        if len(sources) == 1 and len(outcomes) > 1:
            named = [
                (name, [record for record in records if record.is_correct is outcome])
                for name, outcome in (("right", True), ("wrong", False))
            ]
        for place, (label, some) in enumerate(named):
            found = [value for record in some for value in values(record)]
            if found:
                counts = histogram(found, edges)
                shares = [count / len(found) for count in counts]
                # The line ends at the end of the last bin.
                points = list(zip(edges, [*shares, shares[-1]], strict=True))
                name = f"{label} ({len(found):,})"
                series.append(line(name, source, number, place, points, len(sources)))
    return {"kind": "steps", "unit": "percent", "series": series, **chart}


def _advantage_histogram(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    chart = {
        "id": "histogram",
        "title": "Advantage of a rollout",
        "caption": "Mean over its tokens; share of rollouts in each bin.",
        "x": "nats",
    }
    return _binned(
        chart, sources, measured, lambda r: [value_or_zero(r.mean_advantage)], split=True
    )


def value_or_zero(value: Number | None) -> Number:
    """Return the number, or 0 for ``None``."""
    return 0.0 if value is None else value


def _positions(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    chart = {
        "id": "positions",
        "title": "Where high tokens stand",
        "caption": "Relative position of the high group's tokens; 0 is the first token.",
        "x": "position in the response",
    }
    return _binned(
        chart, sources, measured, lambda r: high_positions(r.is_high), split=False, high=1.0
    )


def _first_mentions(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    def first(record: Record) -> list[Number]:
        place = first_mention(record.advantage, record.is_high) if record.is_high else None
        return [] if place is None else [place]

    chart = {
        "id": "first-mention",
        "title": "First mention",
        "caption": "First high token with a tenth of the response's largest advantage; "
        "share of rollouts.",
        "x": "position in the response",
    }
    return _binned(chart, sources, measured, first, split=True, high=1.0)


def relative_weights(source: Source) -> list[tuple[Record, Number]]:
    """Return each weighted rollout with its weight times the number of siblings; 1 is uniform."""
    return [
        (record, record.rollout_weight * len(siblings))
        for siblings in source.siblings.values()
        for record in siblings
        if record.rollout_weight is not None
    ]


def _weight_against_length(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    series = []
    for number, source in enumerate(sources):
        weighted = relative_weights(source)
        weighted = weighted[:: -(-len(weighted) // MAX_POINTS) or 1]
        outcomes = (("right", True), ("wrong", False), ("not graded", None))
        for place, (label, outcome) in enumerate(outcomes):
            points = [(r.length, round(w, 4)) for r, w in weighted if r.is_correct is outcome]
            if points:
                series.append(line(label, source, number, place, points, len(sources)))
    return {
        "id": "weight-length",
        "title": "Weight against length",
        "caption": "Rollout weight times siblings: 1 is what a uniform method gives.",
        "unit": "",
        "x": "tokens",
        "kind": "scatter",
        "series": series,
    }


def _weight_by_outcome(sources: Sequence[Source], measured: Sequence[list[Record]]) -> Chart:
    weights = [relative_weights(source) for source in sources]
    edges = even_edges(0.0, max((w for run in weights for _, w in run), default=1.0), BINS)
    series, means = [], []
    for number, (source, run) in enumerate(zip(sources, weights, strict=True)):
        for place, (label, outcome) in enumerate((("right", True), ("wrong", False))):
            found = [weight for record, weight in run if record.is_correct is outcome]
            if found:
                shares = [count / len(found) for count in histogram(found, edges)]
                points = list(zip(edges, [*shares, shares[-1]], strict=True))
                series.append(line(label, source, number, place, points, len(sources)))
                name = f"{source.name}, {label}" if len(sources) > 1 else label
                means.append(f"{name} {fmean(found):.2f} (n={len(found):,})")
    return {
        "id": "weight-correctness",
        "title": "Weight against correctness",
        "caption": "Rollout weight times siblings. Means: " + "; ".join(means) + ".",
        "unit": "percent",
        "x": "weight x siblings",
        "kind": "steps",
        "series": series,
    }
