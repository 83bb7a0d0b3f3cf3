"""The comparison of two evaluations as one HTML file: plot, table and items that flipped."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vaopd.evaluation.comparison import COLUMNS, Comparison, comparison_row
from vaopd.evaluation.flips import Flip, flips
from vaopd.evaluation.tables import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Placeholder for ``currentColor``, which matplotlib does not know; replaced in the SVG."""

MOST_FLIPS = 100
"""Most flipped items of a benchmark on the page, half of them from each side if there are more."""


def page(compared: Sequence[Comparison], first: Path, second: Path) -> str:
    """Return the HTML text, which needs no other file."""
    environment = Environment(
        loader=PackageLoader("vaopd.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html").render(
        first=str(first),
        second=str(second),
        sentences=[sentence(one) for one in compared],
        plot=Markup(_plot(compared)),
        columns=COLUMNS,
        rows=[comparison_row(one) for one in compared],
        benchmarks=[_flipped(one.benchmark, first, second) for one in compared],
    )


def sentence(one: Comparison) -> str:
    """Return the result of a comparison in plain words."""
    word = "more" if one.difference > 0 else "fewer"
    gap = f"{one.difference:+.1f} points ({one.low:+.1f} to {one.high:+.1f})"
    return f"{title_of(one.benchmark)}: " + (
        f"B has {word} than A, {one.second:.1f} and {one.first:.1f}: {gap}."
        if one.low > 0 or one.high < 0
        else f"A has {one.first:.1f} and B {one.second:.1f}; the difference, {gap}, is not "
        "distinguishable from zero."
    )


def _flipped(name: str, first: Path, second: Path) -> dict[str, object]:
    """Return the flipped items of a benchmark; of very many, some from either side."""
    found = flips(name, first / name, second / name)
    sides = [[flip for flip in found if flip.is_gain is gain] for gain in (False, True)]
    shown: list[Flip] = found
    if len(found) > MOST_FLIPS:
        half = MOST_FLIPS // 2
        rest = [max(half, MOST_FLIPS - len(other)) for other in reversed(sides)]
        shown = [flip for side, most in zip(sides, rest, strict=True) for flip in side[:most]]
    return {
        "title": title_of(name),
        "flips": shown,
        "lost": len(sides[0]),
        "gained": len(sides[1]),
        "left_out": len(found) - len(shown),
    }


def _plot(compared: Sequence[Comparison]) -> str:
    """Return differences and intervals as SVG, one line for each benchmark."""
    # Not pyplot, which keeps global state and looks for a window system.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # Names are text: a dollar sign in them would begin a formula, which may not parse.
    with rc_context(
        {"svg.fonttype": "none", "text.parse_math": False, **dict.fromkeys(colours, INK)}
    ):
        figure = Figure(figsize=(8, 1.2 + 0.45 * len(compared)), layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), compared)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _draw(axes: "Axes", compared: Sequence[Comparison]) -> None:
    places = list(range(len(compared)))[::-1]
    for place, one in zip(places, compared, strict=True):
        # The marker and the colour both show whether 0 is outside the interval.
        is_clear = one.low > 0 or one.high < 0
        colour = "#0a84c1" if is_clear else "#8a8a8a"
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2)
        axes.plot(one.difference, place, "D" if is_clear else "o", color=colour, markersize=6)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(places, [title_of(one.benchmark) for one in compared])
    axes.set_ylim(-0.7, len(compared) - 0.3)
    axes.set_xlabel("B - A, percentage points (95 % interval)")
    axes.spines[["top", "right", "left"]].set_visible(False)
