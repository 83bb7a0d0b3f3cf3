"""Answers by a transformers model in this process; the samples of an item share one prefill."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vaopd.config import DataConfig, ViewConfig
from vaopd.devices import pick_device, pick_dtype
from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.engine import Request
from vaopd.evaluation.predictions import Prediction
from vaopd.evaluation.protocol import Protocol, asked
from vaopd.models.loading import load_model
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler

MAX_PROMPT_TOKENS = 32_768
"""Enough for seven images of the largest pixel budget and their text."""


def _set_template(family: Any, protocol: Protocol) -> None:
    """Set the system message and the values of the protocol in a family's chat template."""
    owner = family.processor if hasattr(family, "processor") else family.tokenizer
    apply = owner.apply_chat_template
    text = [{"type": "text", "text": protocol.system_prompt}]
    system = [{"role": "system", "content": text}] if protocol.system_prompt else []

    def with_protocol(messages: Sequence[Any], **options: Any) -> Any:
        return apply([*system, *messages], **options, **protocol.chat_template_kwargs)

    owner.apply_chat_template = with_protocol


class TransformersEngine:
    """Samples with the keyed noise of training, so a continued run gives the same responses."""

    def __init__(
        self, protocol: Protocol, *, device: str = "auto", batch_tokens: int = 131_072
    ) -> None:
        self.protocol = protocol
        place = pick_device(device, "--devices")
        dtype = pick_dtype("auto", place)
        self.model = load_model(
            protocol.model, device=place, dtype=dtype, compute_dtype=dtype, seed=protocol.seed
        )
        data = DataConfig(
            train="",
            min_pixels=protocol.min_pixels,
            max_pixels=protocol.max_pixels,
            max_prompt_tokens=MAX_PROMPT_TOKENS,
        )
        self.encoder = PromptEncoder(self.model, data, ViewConfig())
        _set_template(self.model.family, protocol)
        self.sampler = TransformersSampler(self.model, batch_tokens=batch_tokens)

    def answer(
        self,
        benchmark: str,
        requests: Iterable[Request],
        on_done: Callable[[Item, list[Prediction]], None],
        on_bad_item: Callable[[Item, Exception], None],
    ) -> None:
        """Answer a few items at a time; see ``Engine``.

        All samples of an item are drawn, even if some are known: they share the prefill, and
        the keyed noise gives the known ones again.
        """
        protocol = self.protocol
        settings = SamplingSettings(
            num_rollouts=protocol.samples,
            temperature=protocol.temperature,
            top_p=protocol.top_p,
            top_k=protocol.top_k,
            max_new_tokens=protocol.max_new_tokens,
            seed=protocol.seed,
            stream=f"evaluate {benchmark}",
        )
        waiting: dict[str, tuple[Item, int]] = {}

        def prompts() -> Iterator[EncodedPrompt]:
            for request in requests:
                try:
                    prompt = self.encoder.original(asked(request.item.problem(benchmark), protocol))
                except ProblemError as error:
                    on_bad_item(request.item, error)
                    continue
                waiting[request.item.id] = request.item, len(prompt)
                yield prompt

        for groups in self.sampler.stream(prompts(), settings):
            for group in groups:
                item, prompt_tokens = waiting.pop(group[0].problem_id)
                on_done(item, [self._prediction(rollout, prompt_tokens) for rollout in group])

    def summary(self) -> str:
        """Return '': a local model has no cost."""
        return ""

    def close(self) -> None:
        """Do nothing: the end of the process releases the memory."""

    def _prediction(self, rollout: Rollout, prompt_tokens: int) -> Prediction:
        ids = list(rollout.response_ids)
        return Prediction(
            id=rollout.problem_id,
            sample=rollout.sibling,
            response=self.model.tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason=rollout.finish_reason,
            prompt_tokens=prompt_tokens,
            response_tokens=len(ids),
        )


def engine_of_device(
    protocol: Protocol, batch_tokens: int, num_processes: int, device: str
) -> TransformersEngine:
    """Return the engine of one of several processes on this machine."""
    # The progress bars of transformers would break those of vaopd.
    transformers_logging.disable_progress_bar()
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    return TransformersEngine(protocol, device=device, batch_tokens=batch_tokens)
