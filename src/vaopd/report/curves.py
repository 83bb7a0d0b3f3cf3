"""Charts of the numbers of a run by step, as plain data."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from vaopd.report.plots import Chart, line
from vaopd.report.sources import Source
from vaopd.report.statistics import Number

CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Accuracy",
        "percent",
        (
            ("metrics", "accuracy", "training rollouts"),
            ("validation", "accuracy", "validation"),
            ("validation", "accuracy_pixelated", "validation, degraded image"),
        ),
    ),
    (
        "Visual advantage",
        "nats",
        (
            ("metrics", "va/mean", "teacher, all training tokens"),
            ("validation", "teacher_va", "teacher, high group of validation"),
            ("validation", "student_va", "student, the same tokens"),
        ),
    ),
    ("Loss", "", (("metrics", "loss", "loss"),)),
    (
        "Divergence from the teacher",
        "nats",
        (
            ("metrics", "kl/mean", "KL to the target"),
            ("metrics", "nll/mean", "negative log-likelihood"),
        ),
    ),
    (
        "High group",
        "percent",
        (
            ("metrics", "va/high_share", "share of all advantage"),
            ("metrics", "va/high_zero_share", "share of its tokens with VA 0"),
        ),
    ),
    (
        "Response length",
        "tokens",
        (
            ("metrics", "response/length", "training rollouts"),
            ("validation", "response_length", "validation"),
        ),
    ),
    (
        "Truncated and unparsed",
        "percent",
        (
            ("metrics", "response/truncated_share", "truncated, training"),
            ("validation", "truncated", "truncated, validation"),
            ("metrics", "response/unparsed_share", "unparsed, training"),
            ("validation", "unparsed", "unparsed, validation"),
        ),
    ),
    (
        "VA correlation",
        "",
        (("validation", "va_correlation", "student VA with teacher VA, validation"),),
    ),
    (
        "Answers that change with the image",
        "percent",
        (("validation", "answer_change_rate", "validation"),),
    ),
    (
        "Rollout weights",
        "",
        (
            ("metrics", "weights/rollout_max", "largest"),
            ("metrics", "weights/rollout_min", "smallest"),
            ("metrics", "weights/effective_share", "effective share of tokens"),
            ("metrics", "weights/relative_share", "effective share against uniform"),
        ),
    ),
    ("Tokens per second", "tokens/s", (("metrics", "tokens_per_second", "response tokens"),)),
    ("Gradient norm", "", (("metrics", "gradient_norm", "before clipping"),)),
    ("Learning rate", "", (("metrics", "learning_rate", "learning rate"),)),
    ("Tokens in a step", "tokens", (("metrics", "response/tokens", "response tokens"),)),
    (
        "Tokens in a micro-batch",
        "tokens",
        (("metrics", "micro_batch_tokens", "padded tokens at most"),),
    ),
    ("Lag of rollouts", "steps", (("metrics", "rollout/lag", "age of the weights"),)),
)

FAMILIES = {"time": "Seconds by phase", "beside": "Seconds beside the training, by phase"}
"""Titles of charts that hold all keys with one beginning."""

ACRONYMS = {"va": "VA", "kl": "KL", "nll": "NLL"}


def curves(sources: Sequence[Source]) -> list[Chart]:
    """Return charts of everything in ``metrics.jsonl`` and ``validation.jsonl`` by step."""
    files = {
        name: [[flat_numbers(row) for row in getattr(source, name)] for source in sources]
        for name in ("metrics", "validation")
    }
    known = {(file, key) for _, _, entries in CURVES for file, key, _ in entries}
    charts = [_curve_chart(title, unit, entries, files, sources) for title, unit, entries in CURVES]
    found = {
        (file, key): None
        for file, runs in files.items()
        for rows in runs
        for row in rows
        for key in row
        if key != "step" and (file, key) not in known
    }
    # time/sample and time/train share a chart, and so do kinds of problems.
    families = groupby(sorted(found), key=lambda entry: (entry[0], entry[1].rpartition("/")[0]))
    for (file, family), entries in families:
        keys = [key for _, key in entries]
        for title, members in [(family, keys)] if family else [(key, [key]) for key in keys]:
            unit = {"accuracy_by_kind": "percent"}.get(
                title, "seconds" if title in FAMILIES else ""
            )
            named = tuple((file, key, in_words(key.rpartition("/")[2])) for key in members)
            charts.append(_curve_chart(_title(title, file), unit, named, files, sources))
    return [chart for chart in charts if chart["series"]]


def has_values(chart: Chart) -> bool:
    """Return whether a chart has anything to draw: a value other than 0."""
    return any(any(series["y"]) for series in chart["series"])


def in_words(key: str) -> str:
    """Return the name of a number as words: ``va_mean`` is ``VA mean``."""
    words = key.replace("/", ", ").replace("_", " ").split(" ")
    return " ".join(ACRONYMS.get(word, word) for word in words)


def _title(key: str, file: str) -> str:
    if key in FAMILIES:
        return FAMILIES[key]
    words = in_words(key)
    return words[0].upper() + words[1:] + (" (validation)" if file == "validation" else "")


def _curve_chart(
    title: str,
    unit: str,
    entries: Iterable[tuple[str, str, str]],
    files: dict[str, list[list[dict[str, Any]]]],
    sources: Sequence[Source],
) -> Chart:
    series = []
    for place, (file, key, label) in enumerate(entries):
        for number, source in enumerate(sources):
            points = [(row["step"], row[key]) for row in files[file][number] if key in row]
            if points:
                series.append(
                    line(label, source, number, place, points, len(sources))
                    # There are few points, and a line alone would not show them.
                    | {"marks": file == "validation"}
                )
    return {"title": title, "unit": unit, "x": "step", "kind": "line", "series": series}


def flat_numbers(row: dict[str, Any], prefix: str = "") -> dict[str, Number]:
    """Return the numbers of a row; those of an inner object as ``outer/inner``."""
    flat: dict[str, Number] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat if prefix or "step" in flat else {}
