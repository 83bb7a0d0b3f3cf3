"""What an engine takes and gives."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.predictions import Prediction


@dataclass(frozen=True)
class Request:
    """An item and the samples of it that are wanted."""

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
        """Call ``on_done`` with the responses of each item as they come.

        An item that cannot be turned into a prompt goes to ``on_bad_item``, which raises or not.
        """
        ...

    def summary(self) -> str:
        """Return what was spent, in one sentence; empty where nothing is counted."""
        ...

    def close(self) -> None:
        """Give back connections or memory."""
        ...
