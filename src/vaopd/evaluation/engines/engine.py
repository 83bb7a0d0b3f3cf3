"""The interface of engines: their requests and results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.predictions import Prediction


@dataclass(frozen=True)
class Request:
    """An item and the numbers of the samples to draw for it."""

    item: Item
    samples: Sequence[int]


@runtime_checkable
class Engine(Protocol):
    """Answers items."""

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        """Call ``on_done`` with the responses of each item when they are complete.

        If an item does not give a valid prompt, ``on_bad_item`` is called; it may raise.
        """
        ...

    def summary(self) -> str:
        """Return requests, tokens and cost in one sentence; '' if they are not counted."""
        ...

    def close(self) -> None:
        """Release connections or memory."""
        ...
