"""The comparison of two evaluations as one HTML file with an embedded plot."""

import io
from collections.abc import Sequence
from html import escape

from vaopd.evaluation.comparison import COLUMNS, Comparison, comparison_row
from vaopd.evaluation.tables import title_of

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison of two evaluations</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; color: #1c1c1c; background: #fff; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid #d4d4d4; text-align: right;
  white-space: nowrap; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Comparison of two evaluations</h1>
<p>A: <code>{first}</code><br>B: <code>{second}</code></p>
<figure aria-label="Difference B minus A with its 95 % interval, by benchmark">{plot}</figure>
<div class="scroll">{table}</div>
<p>Scores are percentages, averaged over sample runs. Intervals and p of the bootstrap come from
resampling items (with the other questions of their figure, problem or tree) for both evaluations
together. McNemar counts an item for the side with more right samples; with one sample a side this
is McNemar's exact test. Neither p is corrected for the number of benchmarks.</p>
</body>
</html>
"""


def page(compared: Sequence[Comparison], first: str, second: str) -> str:
    """Return the HTML text, which needs no other file."""
    header = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in comparison_row(one)) + "</tr>"
        for one in compared
    )
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    return _PAGE.format(
        first=escape(first), second=escape(second), plot=_plot(compared), table=table
    )


def _plot(compared: Sequence[Comparison]) -> str:
    """Return differences and intervals as SVG, one line for each benchmark."""
    from matplotlib import rc_context

    # Names are text: a dollar sign in them would begin a formula, which may not parse.
    with rc_context({"text.parse_math": False}):
        svg = _drawn(compared)
    return svg[svg.index("<svg") :]


def _drawn(compared: Sequence[Comparison]) -> str:
    # Not pyplot, which keeps global state and looks for a window system.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(compared)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    places = list(range(len(compared)))[::-1]
    for place, one in zip(places, compared, strict=True):
        # The marker and the colour both show whether 0 is outside the interval.
        is_clear = one.low > 0 or one.high < 0
        colour = "#0b5fa5" if is_clear else "#6b6b6b"
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2)
        axes.plot(one.difference, place, "D" if is_clear else "o", color=colour, markersize=6)
    axes.axvline(0, color="#1c1c1c", linewidth=1)
    axes.set_yticks(places, [title_of(one.benchmark) for one in compared])
    axes.set_ylim(-0.7, len(compared) - 0.3)
    axes.set_xlabel("B - A, percentage points (95 % interval)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
