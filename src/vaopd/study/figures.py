"""Plots of a study as inline SVG: text stays text, and lines have the text colour of the page."""

import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vaopd.evaluation.statistics import Interval

INK = "#010203"
"""Placeholder for ``currentColor``, which matplotlib does not know; replaced in the SVG."""

COLOURS = ("#0a84c1", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#56b4e9", "#8a6fd1", "#8a8a8a")
"""After Okabe and Ito, distinguishable to colour-blind readers, readable on white and on black."""

WIDTH_INCHES = 4.4
"""Fits a narrow screen; wider pages put figures side by side."""


@dataclass(frozen=True)
class Point:
    """One dot with its interval."""

    label: str
    interval: Interval
    colour: int = 0
    """Index into `COLOURS`, modulo its length: an arm has the same colour in all plots."""


@dataclass(frozen=True)
class Line:
    """One curve, the mean of its runs, and these runs."""

    label: str
    x: np.ndarray
    y: np.ndarray
    runs: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    colour: int = 0
    """As of `Point`."""


def interval_plot(points: Sequence[Point], label: str, *, has_zero_line: bool = False) -> str:
    """Return a plot of dots with their intervals, one per row, in shares of 1."""

    def draw(axes: Axes) -> None:
        for row, point in enumerate(points):
            _bar(axes, point.interval, row, COLOURS[point.colour % len(COLOURS)], is_vertical=False)
        axes.set_yticks(range(len(points)), [point.label for point in points])
        axes.set_ylim(len(points) - 0.5, -0.5)
        if has_zero_line:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel(label)

    return _svg(draw, height=0.9 + 0.32 * len(points))


def line_plot(lines: Sequence[Line], x_label: str, y_label: str, *, is_log: bool = False) -> str:
    """Return a plot of curves, with runs as thin lines; the vertical axis is in shares of 1."""

    def draw(axes: Axes) -> None:
        for line in lines:
            colour = COLOURS[line.colour % len(COLOURS)]
            for x, y in line.runs:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.4)
            axes.plot(line.x, line.y, "o-", color=colour, markersize=3, label=line.label)
        if is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    return _svg(draw, height=3.0)


def gain_plot(series: dict[str, list[tuple[float, Interval]]], x_label: str, y_label: str) -> str:
    """Return a plot of gains with intervals against the value of an axis, one colour per series."""

    def draw(axes: Axes) -> None:
        for number, (label, points) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            points = sorted(points, key=lambda item: item[0])
            axes.plot(
                [x for x, _ in points],
                [gain.mean for _, gain in points],
                color=colour,
                linewidth=0.8,
                label=label,
            )
            for x, gain in points:
                _bar(axes, gain, x, colour, is_vertical=True)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    return _svg(draw, height=3.0)


def with_own_ids(svg: str, prefix: str) -> str:
    """Return the SVG with a prefix on every id, so that a page can hold several."""
    svg = re.sub(r' id="', f' id="{prefix}', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)


def _bar(
    axes: Axes, interval: Interval, place: int | float, colour: str, *, is_vertical: bool
) -> None:
    if interval.low is not None and interval.high is not None:
        ends, places = [interval.low, interval.high], [place, place]
        axes.plot(*((places, ends) if is_vertical else (ends, places)), color=colour, linewidth=2)
    dot = (place, interval.mean) if is_vertical else (interval.mean, place)
    axes.plot(*dot, "o", color=colour, markersize=6)


def _svg(draw: Callable[[Axes], None], *, height: float) -> str:
    """Return a figure as an SVG element that scales with the page."""
    # Not pyplot, which keeps global state and looks for a window system.
    # matplotlib warns about its font cache when it runs for the first time.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # Fonts of the page instead of outlines; the same ids for the same numbers. Names are text: a
    # dollar sign in them would begin a formula, which may not parse.
    own: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vaopd"}
    with rc_context({**own, "font.family": "sans-serif", "text.parse_math": False}):
        text = _drawn(draw, height)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page sets the width; the view box keeps the proportions.
    opening, rest = text[: text.index(">")], text[text.index(">") :]
    return re.sub(r' (width|height)="[^"]*"', "", opening) + rest


def _drawn(draw: Callable[[Axes], None], height: float) -> str:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.tick_params(colors=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
