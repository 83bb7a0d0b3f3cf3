"""An engine without a model, which processes of a data-parallel engine can import."""

import os
import signal
import time
from collections.abc import Callable, Iterable

from vaopd.errors import ModelError, ProblemError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.engine import Request
from vaopd.evaluation.predictions import Prediction


class WorkerEngine:
    """Answers with its device and what it was given; some questions make it fail."""

    def __init__(self, device: str) -> None:
        if device == "broken":
            raise ModelError("model m has no weights; download it again")
        self.device = device

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        for request in requests:
            item = request.item
            if item.prompt == "bad":
                on_bad_item(item, ProblemError("the prompt is too long"))
                continue
            if item.prompt == "fail":
                raise RuntimeError("CUDA out of memory")
            if item.prompt == "die":
                print("a last line", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if item.prompt == "wait":
                time.sleep(600)
            text = f"{self.device} {benchmark} {item.images!r}"
            on_done(
                item, [Prediction(id=item.id, sample=k, response=text) for k in request.samples]
            )

    def summary(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing is open."""
