"""Sampling with a transformers model: the prompt is prefilled once for all siblings.

B decoding rows, V vocabulary.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from vaopd.errors import ModelError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.walk import write_logits
from vaopd.rollouts.cache import SamplingCache
from vaopd.rollouts.decoding import Decoding, Place, Prefilled
from vaopd.rollouts.drawing import draw_tokens
from vaopd.rollouts.sampler import Rollout, SamplingSettings, sampling_noise

CHECK_EVERY = 16
"""Tokens between two looks at which rows have ended, on a GPU: each look waits for the GPU."""

REFILL_BELOW = 0.75
"""Other prompts are begun when at most this share of the rows is left: each time, the cache is
copied."""


class Waiting:
    """The prompts that are not begun yet; at most one is encoded before its turn."""

    def __init__(self, prompts: Iterable[EncodedPrompt]) -> None:
        self.rest = iter(prompts)
        self.first = next(self.rest, None)
        self.begun = 0

    def take(self) -> EncodedPrompt:
        """Return the first prompt, and look for the next."""
        prompt = self.first
        assert prompt is not None, "the caller looks whether there is one"
        self.first = next(self.rest, None)
        self.begun += 1
        return prompt


class TransformersSampler:
    """Samples in process from the model that is being trained."""

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        batch_tokens: int = 131_072,
        on_token: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.on_token = on_token
        allowed = torch.zeros(model.head.shape[0], dtype=torch.bool)
        allowed[: model.vocab_size] = True
        allowed[model.forbidden_ids] = False
        self.suppressed = (~allowed).to(model.device)
        self.cache_argument = cache_argument(model.base.forward)
        self.check_every = 1 if model.device.type == "cpu" else CHECK_EVERY

    def take_weights(self, version: int) -> int:
        """Do nothing: samples come from the trained model itself."""
        return 0

    def sleep(self) -> None:
        """Do nothing: caches are freed after each call."""

    def sample(
        self,
        prompts: Sequence[EncodedPrompt],
        settings: SamplingSettings,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> list[list[Rollout]]:
        """Return ``num_rollouts`` responses for each prompt; see ``Sampler``."""
        groups: dict[int, list[Rollout]] = {}
        # Responses of the processes differ in length, so decoding must not use collectives.
        with self.model.whole_model():
            for found in self._groups(Waiting(prompts), settings):
                groups |= found
                progress(len(found) * settings.num_rollouts)
        return [groups[number] for number in range(len(prompts))]

    def stream(
        self, prompts: Iterable[EncodedPrompt], settings: SamplingSettings
    ) -> Iterator[list[list[Rollout]]]:
        """Yield the responses of a few prompts at a time, as soon as all of a prompt have ended.

        Prompts are taken from the iterable as they are needed, so a large set is never encoded
        as a whole.
        """
        for found in self._groups(Waiting(prompts), settings):
            yield list(found.values())

    def _groups(
        self, waiting: Waiting, settings: SamplingSettings
    ) -> Iterator[dict[int, list[Rollout]]]:
        """Yield the responses of complete prompts, by the number of the prompt.

        Rows that end make place for other prompts, so that few rows wait for the longest.
        """
        was_training = self.model.model.training
        decoding: Decoding | None = None
        ended: dict[int, list[Rollout]] = defaultdict(list)
        while waiting.first is not None or decoding is not None:
            first = waiting.begun
            new = self._next_prompts(waiting, decoding, settings)
            self.model.model.eval()
            # Around each part and not around the loop: the caller's code runs between the parts.
            with torch.no_grad(), self.model.autocast():
                decoding = self._joined(decoding, new, first, settings)
                refills = waiting.first is not None and self._can_join(decoding)
                enough = int(len(decoding) * REFILL_BELOW) if refills else 0
                for number, rollout in self._decode(decoding, enough, settings):
                    ended[number].append(rollout)
            self.model.model.train(was_training)
            decoding = decoding if len(decoding) else None
            whole = [n for n, group in ended.items() if len(group) == settings.num_rollouts]
            if whole:
                yield {n: sorted(ended.pop(n), key=lambda one: one.sibling) for n in whole}

    def _can_join(self, decoding: Decoding) -> bool:
        """Return whether rows can join others that have begun before."""
        return self.model.family.can_pack and decoding.cache.can_join

    def _next_prompts(
        self, waiting: Waiting, decoding: Decoding | None, settings: SamplingSettings
    ) -> list[EncodedPrompt]:
        """Take the prompts whose rows fit the cache beside the others, if all reach the limit."""
        new: list[EncodedPrompt] = []
        if decoding is not None and not self._can_join(decoding):
            return new
        rows, longest = (len(decoding), decoding.longest_prompt) if decoding else (0, 0)
        while (prompt := waiting.first) is not None:
            longest, rows = max(longest, len(prompt)), rows + settings.num_rollouts
            fits = rows * (longest + settings.max_new_tokens) <= self.batch_tokens
            if (new or decoding) and not (fits and self.model.family.can_pack):
                break
            new.append(waiting.take())
        return new

    def _joined(
        self,
        decoding: Decoding | None,
        new: Sequence[EncodedPrompt],
        first: int,
        settings: SamplingSettings,
    ) -> Decoding:
        """Return the rows that are decoded, with those of the new prompts."""
        if not new:
            assert decoding is not None, "a prompt always fits if no other is decoded"
            return decoding
        siblings = settings.num_rollouts
        self.on_token(len(new) * siblings, 0)
        begun = self._begin(new, first, settings)
        if decoding is not None:
            decoding.join(begun)
        return decoding or begun

    def _begin(
        self, prompts: Sequence[EncodedPrompt], first: int, settings: SamplingSettings
    ) -> Decoding:
        """Prefill prompts, of which ``first`` is the number of the first."""
        places = [
            Place(number, prompt.problem_id, k)
            for number, prompt in enumerate(prompts, start=first)
            for k in range(settings.num_rollouts)
        ]
        noise = np.stack([sampling_noise(settings, one.problem_id, one.sibling) for one in places])
        prefilled = self._prefill(prompts, settings.max_new_tokens)
        return Decoding.begin(places, prefilled, torch.from_numpy(noise).to(self.model.device))

    def _decode(
        self, decoding: Decoding, enough: int, settings: SamplingSettings
    ) -> Iterator[tuple[int, Rollout]]:
        """Add tokens until at most ``enough`` rows go on; yield the responses that end."""
        ends = torch.tensor(self.model.eos_token_ids, dtype=torch.long, device=self.model.device)
        rows, step = len(decoding), 0
        while len(decoding) > enough or step == 0:
            ids = self._draw(decoding.hidden, decoding.next_uniforms(), settings)
            decoding.append(ids, ends)
            step += 1
            self.on_token(rows, step)
            if decoding.is_at_limit or step % self.check_every == 0:
                for place, response in decoding.take_ended():
                    yield place.prompt, self._rollout(place, response)
                if not len(decoding):
                    return
            mask = decoding.add_column()
            inputs = self.model.family.decode_inputs(
                decoding.last_tokens(), mask, decoding.positions
            )
            decoding.take_hidden(self._forward(inputs, decoding.cache))

    def _rollout(self, place: Place, ids: Sequence[int]) -> Rollout:
        """Return a response without the tokens after its first end."""
        ends = set(self.model.eos_token_ids)
        end = next((n + 1 for n, token in enumerate(ids) if token in ends), len(ids))
        reason = "stop" if ids[end - 1] in ends else "length"
        return Rollout(place.problem_id, place.sibling, tuple(ids[:end]), reason)

    def _prefill(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> Prefilled:
        device = self.model.device
        inputs = self.model.family.prefill_inputs(prompts)
        limit = inputs["input_ids"].shape[1] + max_new_tokens
        text_config = self.model.model.config.get_text_config()
        cache = SamplingCache(text_config, self.model.compute_dtype, limit)
        moved = {name: tensor.to(device) for name, tensor in inputs.items()}
        return Prefilled(
            cache=cache,
            hidden=self._forward(moved, cache),
            mask=moved["attention_mask"].bool(),
            positions=torch.tensor([prompt.next_position for prompt in prompts], device=device),
            lengths=[len(prompt) for prompt in prompts],
        )

    def _forward(self, inputs: dict[str, Tensor], cache: SamplingCache) -> Float[Tensor, "B H"]:
        """Return the hidden states of the last column; the cache grows by the given tokens.

        A model that does not know the cache's argument ignores it and continues from one token
        alone: it samples wrong text without an error. So the cache's growth is checked every time.

        Raises:
            ModelError: The cache did not grow by the tokens that were given.
        """
        expected = cache.get_seq_length() + inputs["input_ids"].shape[1]
        given: dict[str, Any] = {**inputs, self.cache_argument: cache}
        output = self.model.base(**given, use_cache=True)
        if cache.get_seq_length() != expected:
            raise ModelError(
                f"the key-value cache holds {cache.get_seq_length()} tokens after a forward that "
                f"should make them {expected}: {type(self.model.base).__name__} of transformers "
                f"{transformers.__version__} did not use its argument {self.cache_argument!r}; "
                "install the versions of requirements/, or sample with sampling.engine=vllm"
            )
        return output.last_hidden_state[:, -1]

    def _draw(
        self,
        hidden: Float[Tensor, "B H"],
        uniforms: Float[Tensor, " B"],
        settings: SamplingSettings,
    ) -> Int[Tensor, " B"]:
        # Float32 for every precision of the forward: bfloat16 logits near 16 are multiples of 1/8.
        with torch.autocast(hidden.device.type, enabled=False):
            room = hidden.new_empty(len(hidden), len(self.model.head), dtype=torch.float32)
            logits = write_logits(hidden, self.model.head, room)
        logits.masked_fill_(self.suppressed, -torch.inf)
        if 0 < settings.top_k < logits.shape[-1]:
            smallest = logits.topk(settings.top_k, dim=-1).values[:, -1:]
            logits.masked_fill_(logits < smallest, -torch.inf)
        return draw_tokens(logits, uniforms, settings.temperature, settings.top_p)


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return the name of the key-value cache among the arguments of a model's forward.

    transformers renamed ``past_key_values`` to ``cache`` in 5.24.

    Raises:
        ModelError: The forward takes neither name.
    """
    parameters = inspect.signature(forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise ModelError(
        f"{getattr(forward, '__qualname__', forward)} of transformers {transformers.__version__} "
        "takes no argument 'cache' or 'past_key_values', so it cannot be sampled from; install the "
        "versions of requirements/, or sample with sampling.engine=vllm"
    )
