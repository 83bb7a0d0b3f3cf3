"""Tables of results for the terminal and in Markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

from vaopd.evaluation.registry import BENCHMARKS, MATH, PAPER, VISUAL
from vaopd.evaluation.scoring import Metric, Score

COLUMNS = (
    "benchmark", "metric", "items", "samples", "accuracy", "95 % interval", "unparsed",
    "truncated", "rules differ", "judge",
)  # fmt: skip


WIDTH = 160
"""Width in characters if the output is not a terminal."""


def number(value: float) -> str:
    """Return a percentage with two decimals, or a dash if it is NaN."""
    return f"{value:.2f}" if math.isfinite(value) else "-"


def interval(metric: Metric) -> str:
    """Return the two ends of an interval."""
    return f"{number(metric.low)} to {number(metric.high)}"


def title_of(name: str) -> str:
    """Return a benchmark's name as the paper writes it."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def summary_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Return one row of ``COLUMNS`` for each benchmark."""
    return [_row(score, score.headline, score.main) for score in scores]


def _row(score: Score, name: str, metric: Metric) -> tuple[str, ...]:
    return (
        title_of(score.benchmark),
        name,
        str(score.num_items),
        str(score.num_samples),
        number(metric.value),
        interval(metric),
        f"{score.unparsed:.1%}",
        f"{score.truncated:.1%}",
        f"{score.rules_differ:.1%}",
        number(math.nan if score.judge is None or name != score.headline else score.judge),
    )


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the two averages of the paper, each if all of its benchmarks have a score."""
    return {
        label: fmean(scores[name] for name in names)
        for label, names in (("Math Avg", MATH), ("Visual Avg", VISUAL))
        if scores.keys() >= set(names)
    }


def paper_row(scores: Sequence[Score]) -> tuple[list[str], list[str]] | None:
    """Return header and values in the order of the paper's Table 1.

    Without a benchmark of Table 1 it returns ``None``. The score of OCRBench is its number of hits
    out of 1,000 divided by ten, which is the percentage.
    """
    values = {score.benchmark: score.main.value for score in scores}
    if not values.keys() & set(PAPER):
        return None
    values |= {label: mean for label, mean in averages(values).items()}
    order = (*MATH, "Math Avg", *VISUAL, "Visual Avg")
    header = [title_of(name) for name in order]
    return header, [number(values[name]) if name in values else "-" for name in order]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def report(scores: Sequence[Score]) -> str:
    """Return all metrics of all benchmarks as Markdown."""
    parts = ["# Results\n", markdown(COLUMNS, summary_rows(scores))]
    if row := paper_row(scores):
        parts += ["## In the order of the paper's Table 1\n", markdown(row[0], [row[1]])]
    for score in scores:
        rows = [_row(score, name, metric) for name, metric in score.metrics.items()]
        parts += [f"## {title_of(score.benchmark)}\n", markdown(COLUMNS, rows)]
    return "\n".join(parts)


def wide_console() -> Console:
    """Return a console that does not fold tables to 80 columns in logs and pipes."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_tables(scores: Sequence[Score]) -> None:
    """Print the summary, and the row of Table 1 if one of its benchmarks has a score."""
    console = wide_console()
    print_table(console, "results (%)", COLUMNS, summary_rows(scores))
    if row := paper_row(scores):
        print_table(console, "in the order of the paper's Table 1", row[0], [row[1]])


def print_table(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print one table; numbers are aligned to the right."""
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name in ("benchmark", "metric") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
