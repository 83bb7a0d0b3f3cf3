"""Sampling with a transformers model: the prompt is prefilled once for all siblings.

B decoding rows, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from vaopd.errors import ModelError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.walk import write_logits
from vaopd.rollouts.sampler import Rollout, SamplingSettings, sampling_noise

ROOM = 64
"""Smallest free space, in tokens, that a full cache layer gets when it is enlarged."""

CHECK_EVERY = 16
"""Tokens between two looks at which rows have ended, on a GPU: each look waits for the GPU."""


class RoomyLayer(DynamicLayer):
    """A cache layer with free space at its end: a new token is written without copying the rest.

    The layer of transformers copies the whole cache for every token. Both hold the same numbers
    in the same order, so all results are the same.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one forward's keys and values; see ``transformers.Cache.update``."""
        start = self.get_seq_length()
        if start == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None  # there were tokens before
        end = start + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            size = max(end, min(self.limit, end + max(ROOM, end // 4)))
            self.room = (_enlarged(self.keys, size), _enlarged(self.values, size))
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows, some perhaps several times; the copies have no free space yet."""
        super().reorder_cache(beam_idx)
        self.room = None


def _enlarged(states: Tensor, length: int) -> Tensor:
    larger = states.new_empty(*states.shape[:-2], length, states.shape[-1])
    larger[..., : states.shape[-2], :] = states
    return larger


class SamplingCache(DynamicCache):
    """Keys and values at the precision of the forward, with free space for new tokens.

    Under autocast the rotary embedding returns float32 keys: twice the memory, and attention
    would convert the whole cache again for every token.

    Args:
        config: Of the text model.
        dtype: Precision of the forward.
        limit: Tokens of the longest possible row; no layer takes more space.
    """

    def __init__(self, config: Any, dtype: torch.dtype, limit: int) -> None:
        super().__init__(config=config)
        self.dtype = dtype
        # Sliding and recurrent layers are not replaced, because they do not grow.
        self.layers = [
            RoomyLayer(limit) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append one forward's keys and values; see ``transformers.Cache.update``."""
        keys, values = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(keys, values, *args, **kwargs)

    def take_rows(self, rows: Int[Tensor, " B"]) -> None:
        """Keep the cache of these rows, some perhaps several times."""
        # This method is meant for beam search; it is the one that layers of every kind have.
        self.reorder_cache(rows)  # pyright: ignore[reportArgumentType]  # any integers will do


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
        rollouts: list[list[Rollout]] = []
        # Responses of the processes differ in length, so decoding must not use collectives.
        with self.model.whole_model():
            for groups in self.stream(prompts, settings):
                rollouts += groups
                progress(len(groups) * settings.num_rollouts)
        return rollouts

    def stream(
        self, prompts: Iterable[EncodedPrompt], settings: SamplingSettings
    ) -> Iterator[list[list[Rollout]]]:
        """Yield the responses of a few prompts at a time, as many as are decoded together.

        Prompts are taken from the iterable as they are needed, so a large set is never encoded
        as a whole.
        """
        was_training = self.model.model.training
        for chunk in self._chunks(prompts, settings):
            self.model.model.eval()
            # Around each batch and not around the loop: the caller's code runs between batches.
            with torch.no_grad(), self.model.autocast():
                groups = self._sample_batch(chunk, settings)
            self.model.model.train(was_training)
            yield groups

    def _chunks(
        self, prompts: Iterable[EncodedPrompt], settings: SamplingSettings
    ) -> Iterator[list[EncodedPrompt]]:
        """Yield chunks of prompts whose rows fit the key-value cache if all reach the limit."""
        chunk: list[EncodedPrompt] = []
        for prompt in prompts:
            longest = max(len(p) for p in [*chunk, prompt]) + settings.max_new_tokens
            rows = (len(chunk) + 1) * settings.num_rollouts
            if chunk and (not self.model.family.can_pack or rows * longest > self.batch_tokens):
                yield chunk
                chunk = []
            chunk.append(prompt)
        if chunk:
            yield chunk

    def _sample_batch(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        siblings, device = settings.num_rollouts, self.model.device
        self.on_token(len(prompts) * siblings, 0)
        noise = np.stack(
            [sampling_noise(settings, p.problem_id, k) for p in prompts for k in range(siblings)]
        )
        uniforms = torch.from_numpy(noise).to(device)
        inputs = self.model.family.prefill_inputs(prompts)
        cache, hidden = self._prefill(inputs, settings.max_new_tokens)
        owners = torch.arange(len(prompts), device=device).repeat_interleave(siblings)
        cache.take_rows(owners)
        hidden = hidden[owners]
        mask = inputs["attention_mask"].bool().to(device)[owners]
        first = torch.tensor([prompt.next_position for prompt in prompts], device=device)
        positions = first[owners]
        ends = torch.tensor(self.model.eos_token_ids, device=device)

        rows = torch.arange(len(noise), device=device)
        alive = torch.ones(len(noise), dtype=torch.bool, device=device)
        tokens = torch.full(noise.shape, -1, device=device)
        for step in range(settings.max_new_tokens):
            ids = self._draw(hidden, uniforms[rows, step], settings)
            tokens[rows, step] = ids
            self.on_token(len(tokens), step + 1)
            if step + 1 == settings.max_new_tokens:
                break
            alive = alive & ~torch.isin(ids, ends)
            if (step + 1) % self.check_every == 0:
                kept = alive.nonzero()[:, 0]
                if not len(kept):
                    break
                if len(kept) < len(rows):
                    # Finished rows leave the batch, so that they cost no time.
                    cache.take_rows(kept)
                    rows, ids, mask, positions = rows[kept], ids[kept], mask[kept], positions[kept]
                    alive = alive[kept]
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            inputs = self.model.family.decode_inputs(ids, mask, positions)
            hidden = self._forward(inputs, cache)
            positions = positions + 1
        return self._collect(prompts, tokens.tolist(), siblings, set(ends.tolist()))

    def _prefill(
        self, inputs: dict[str, Tensor], max_new_tokens: int
    ) -> tuple[SamplingCache, Float[Tensor, "B H"]]:
        text_config = self.model.model.config.get_text_config()
        limit = inputs["input_ids"].shape[1] + max_new_tokens
        cache = SamplingCache(text_config, self.model.compute_dtype, limit)
        moved = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return cache, self._forward(moved, cache)

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

    def _collect(
        self,
        prompts: Sequence[EncodedPrompt],
        tokens: list[list[int]],
        siblings: int,
        ends: set[int],
    ) -> list[list[Rollout]]:
        rollouts: list[list[Rollout]] = []
        for index, prompt in enumerate(prompts):
            group = []
            for sibling in range(siblings):
                row = tokens[index * siblings + sibling]
                # Between two looks a finished row gets more tokens, which do not count.
                end = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
                ids = tuple(token for token in row[:end] if token >= 0)
                reason = "stop" if ids and ids[-1] in ends else "length"
                group.append(Rollout(prompt.problem_id, sibling, ids, reason))
            rollouts.append(group)
        return rollouts


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


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float, top_p: float
) -> Int[Tensor, " B"]:
    """Return one id for each row by inverting the cumulative nucleus distribution.

    The nucleus is the smallest set of most likely ids with mass of at least ``top_p``. One uniform
    number decides a token, so a row needs one number for each position and not V of them.

    Args:
        logits: Unscaled; ``-inf`` is never drawn.
        uniforms: In [0, 1).
        temperature: 0 takes the most likely id.
        top_p: In (0, 1].
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = _candidates((logits.double() / temperature).softmax(-1), top_p)
    values = _descending(probabilities)
    cumulative = values.cumsum(-1)
    # An id is in the nucleus if the mass before it is below top_p. The mass of all possible ids
    # may round to less than 1, and impossible ids must stay outside nevertheless.
    inside = ((cumulative - values) < top_p) & (values > 0)
    last = inside.sum(-1, keepdim=True) - 1
    mass = cumulative.gather(-1, last)
    chosen = torch.searchsorted(cumulative, uniforms.double()[:, None] * mass, right=True)
    column = _at_rank(probabilities, values, torch.minimum(chosen, last))
    return column if ids is None else ids.gather(-1, column[:, None])[:, 0]


def _candidates(
    probabilities: Float[Tensor, "B V"], top_p: float
) -> tuple[Float[Tensor, "B M"], Int[Tensor, "B M"] | None]:
    """Return the probabilities that may be in the nucleus, and their ids; None means all ids.

    All ids below ``(1 - top_p) / V`` have less than ``1 - top_p`` together, so the nucleus is full
    before the first of them. In a trained model nearly all ids are below it, and sorting a large
    vocabulary takes longer than the forward of a small model.
    """
    size = probabilities.shape[-1]
    # Half of the bound leaves far more room than the rounding of float64 sums needs.
    possible = probabilities >= 0.5 * (1 - top_p) / size
    count = int(possible.sum(-1).max())
    if count >= size // 2:
        return probabilities, None
    ids = probabilities.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    return probabilities.gather(-1, ids), ids


def _descending(values: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Return each row's values, the largest first."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    # On a CPU torch also sorts indices, one by one; numpy sorts values by vector instructions.
    return torch.from_numpy(np.sort(values.detach().numpy())).flip(-1)


def _at_rank(
    probabilities: Float[Tensor, "B M"], values: Float[Tensor, "B M"], rank: Int[Tensor, "B 1"]
) -> Int[Tensor, " B"]:
    """Return the column of each row that a stable descending sort would put at a rank.

    Half-precision logits are often equal, and rows must not depend on the batch.
    """
    value = values.gather(-1, rank)
    before = (values > value).sum(-1, keepdim=True)
    is_equal = probabilities == value
    return (is_equal & (is_equal.cumsum(-1) == rank - before + 1)).int().argmax(-1)
