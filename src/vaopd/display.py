"""Shows progress of long work: a bar on a terminal, otherwise a line from time to time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

ELAPSED_WIDTH = 60
"""Columns that a terminal needs to show both the elapsed and the remaining time."""


class _Bars(Progress):
    """Shows bars over the whole width, with their notes on separate lines.

    With a note on the same line, rich would shorten bar, step and remaining time to a few letters
    on a terminal of 80 columns.
    """

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(task.fields["note"])


LINE_SECONDS = 10.0
"""Without a terminal, long work other than steps prints at most one line per this interval."""


class Display:
    """Shows finished steps and the phases between them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        elapsed = [TimeElapsedColumn()] if console.width >= ELAPSED_WIDTH else []
        self.progress = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            *elapsed,
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self.told_at: dict[Any, float] = {}

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def start(self, description: str, total: int, completed: int = 0) -> Any:
        """Return the handle of a new bar."""
        return self.progress.add_task(description, total=total, completed=completed, note="")

    def advance(self, task: Any, count: int, left: str | None = None) -> None:
        """Advance a bar; without a terminal, print a line from time to time.

        Args:
            task: Handle from ``start``.
            count: Amount of work since the last call.
            left: Text about the remaining time; by default it is computed from the speed so far.
        """
        self.progress.update(task, advance=count, note=left or "")
        shown = next(one for one in self.progress.tasks if one.id == task)
        elapsed, total, done = shown.elapsed or 0.0, shown.total or 0.0, shown.completed
        since = elapsed - self.told_at.get(task, 0.0)
        if self.console.is_terminal or since < LINE_SECONDS or not 0 < done < total:
            return
        self.told_at[task] = elapsed
        if left is None:
            left = f"about {duration(elapsed * (total - done) / done)} left"
        self.say(f"{shown.description}: {done:.0f}/{total:.0f}{left and ', '}{left}")

    def finish(self, task: Any) -> None:
        """Remove a bar."""
        self.progress.remove_task(task)

    def step(self, task: Any, row: dict[str, Any], steps: int) -> None:
        """Show the metrics of a step."""
        line = step_line(row)
        if self.console.is_terminal:
            self.progress.update(task, advance=1, note=line)
        else:
            self.say(f"step {row['step']}/{steps}  {line}")


def with_bar(
    console: Console, title: str, total: int, work: Callable[[Callable[[int], None]], T]
) -> T:
    """Return the result of long work that reports its progress, and show that progress."""
    with bar(console, title, total) as advance:
        return work(advance)


@contextmanager
def bar(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts finished work, and show that progress."""
    with Display(console) as display:
        task = display.start(title, total)
        yield lambda done: display.advance(task, done)


def duration(seconds: float) -> str:
    """Return a duration as short text: ``8 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def step_line(row: dict[str, Any]) -> str:
    """Return the log line of a row of metrics: loss, KL, advantage, accuracy, speed, phases."""
    parts = [f"loss {row['loss']:.4f}" if "loss" in row else "loss not finite"]
    for key, name in (("kl/mean", "KL"), ("nll/mean", "NLL"), ("va/mean", "VA")):
        if key in row:
            parts.append(f"{name} {row[key]:.4f}")
    if "va/high_share" in row:
        parts.append(f"VA in high {row['va/high_share']:.0%}")
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.0%}")
    if "skipped_in_a_row" in row:
        parts.append("skipped")
    parts.append(f"{row['tokens_per_second']:.0f} tokens/s")
    phases = [
        f"{phase} {row[f'time/{phase}']:.1f}s"
        for phase in ("push", "sample", "score", "train")
        if f"time/{phase}" in row
    ]
    return "  ".join([*parts, *phases])
