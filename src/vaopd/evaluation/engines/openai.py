"""Answers through any OpenAI-compatible server, such as vLLM, SGLang or a paid service."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from PIL import Image

from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.chat import ChatClient, Server
from vaopd.evaluation.engines.engine import Request
from vaopd.evaluation.predictions import Prediction
from vaopd.evaluation.protocol import Protocol, asked
from vaopd.pictures import data_url
from vaopd.problems.problem import IMAGE_PLACEHOLDER, Problem
from vaopd.views import fit_pixel_budget


class OpenAIEngine:
    """Sends one request for each sample, for several items at the same time.

    With ``in_one_request`` all samples of an item are one request, for servers that give choice i
    of a request the seed ``seed + i``, as vLLM does. ``sampling`` holds further fields of every
    request, for servers that extend the protocol.
    """

    def __init__(
        self,
        protocol: Protocol,
        server: Server,
        *,
        concurrency: int = 8,
        in_one_request: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.protocol = protocol
        self.in_one_request = in_one_request
        self.sampling = dict(sampling or {})
        self.client = ChatClient(server)
        self.concurrency = concurrency

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        """Answer items in any order; see ``Engine``.

        Raises:
            EngineError: A request failed after all attempts. Earlier answers are kept.
        """
        lock = threading.Lock()

        def save(item: Item, predictions: list[Prediction]) -> None:
            with lock:
                on_done(item, predictions)

        pool = ThreadPoolExecutor(self.concurrency)
        futures: dict[Future[None], Item] = {}
        try:
            for request in requests:
                futures[pool.submit(self._answer_item, benchmark, request, save)] = request.item
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, ProblemError):
                    on_bad_item(futures[future], error)
                elif error is not None:
                    raise error
        except BaseException:
            self.client.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def summary(self) -> str:
        """Return the number of requests and tokens, and the cost."""
        return self.client.summary()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _answer_item(
        self, benchmark: str, request: Request, save: Callable[[Item, list[Prediction]], None]
    ) -> None:
        content = self._content(asked(request.item.problem(benchmark), self.protocol))
        for samples in runs_of(request.samples, longest=None if self.in_one_request else 1):
            replies = self.client.complete_all(self._payload(content, request.item.id, samples))
            predictions = [
                Prediction(
                    id=request.item.id,
                    sample=sample,
                    response=reply.text,
                    reasoning=reply.reasoning,
                    finish_reason=reply.finish_reason,
                    prompt_tokens=reply.prompt_tokens,
                    response_tokens=reply.response_tokens,
                )
                for sample, reply in zip(samples, replies, strict=True)
            ]
            save(request.item, predictions)

    def _payload(
        self, content: list[dict[str, Any]], id: str, samples: Sequence[int]
    ) -> dict[str, Any]:
        protocol = self.protocol
        digest = hashlib.sha256(f"{protocol.seed}\x00{id}".encode()).digest()
        system = [{"role": "system", "content": protocol.system_prompt}]
        own: dict[str, Any] = {"top_k": protocol.top_k} if protocol.top_k else {}
        if protocol.chat_template_kwargs:
            own["chat_template_kwargs"] = dict(protocol.chat_template_kwargs)
        if len(samples) > 1:
            own["n"] = len(samples)
        return {
            "model": protocol.model,
            "messages": [
                *(system if protocol.system_prompt else []),
                {"role": "user", "content": content},
            ],
            "temperature": protocol.temperature,
            "top_p": protocol.top_p,
            "max_tokens": protocol.max_new_tokens,
            # Sample k of an item has the seed base + k, however samples are grouped in requests:
            # no two are the same, and a repeated or continued run asks for the same ones. 30 bits,
            # so that the sum is below 2^31.
            "seed": (int.from_bytes(digest[:4], "little") >> 2) + samples[0],
            **self.sampling,
            **own,
        }

    def _content(self, problem: Problem) -> list[dict[str, Any]]:
        """Return text and images as parts, in the order of the prompt."""
        images = iter(problem.load_images())
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(problem.prompt.split(IMAGE_PLACEHOLDER)):
            if number:
                url = data_url(self._fit(next(images)))
                parts.append({"type": "image_url", "image_url": {"url": url}})
            if text:
                parts.append({"type": "text", "text": text})
        return parts

    def _fit(self, image: Image.Image) -> Image.Image:
        return fit_pixel_budget(image, self.protocol.min_pixels, self.protocol.max_pixels)


def runs_of(samples: Sequence[int], *, longest: int | None = None) -> list[list[int]]:
    """Return the numbers in runs of consecutive ones, each with at most ``longest``."""
    runs: list[list[int]] = []
    for sample in samples:
        if runs and sample == runs[-1][-1] + 1 and len(runs[-1]) != longest:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return runs
