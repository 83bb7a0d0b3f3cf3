"""The interface of a sampler, and the noise that it must use."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from vaopd.models.prompts import EncodedPrompt


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response."""

    problem_id: str
    sibling: int
    response_ids: tuple[int, ...]
    """Generated ids up to and including the first end-of-sequence id."""

    finish_reason: Literal["stop", "length"]

    weights_version: int | None = None
    """Number of updates of the weights that sampled it, as reported by the server; None for
    rollouts of the model in memory."""

    logprobs: tuple[float, ...] | None = None
    """Log-prob of each id when it was sampled, nats, by a sampler with weights of its own; None if
    they were not asked for or the model in memory sampled."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Settings of one call that draws responses."""

    num_rollouts: int
    temperature: float
    """0 = greedy."""

    top_p: float
    max_new_tokens: int
    seed: int
    stream: str
    """Names the purpose and step, so that no two steps share noise."""

    top_k: int = 0
    """Number of likeliest tokens that are drawn from; 0 is all."""

    weights_version: int = 0
    """Number of updates of the weights to sample from, for samplers that keep a copy of them."""

    with_logprobs: bool = False
    """Whether samplers that keep a copy of the weights report the log-probs of the samples."""


@runtime_checkable
class Sampler(Protocol):
    """Draws sibling responses to prompts from the current student."""

    def take_weights(self, version: int) -> int:
        """Copy the current weights of the student, which had ``version`` updates, for sampling.

        A collective. Returns how many bytes were copied: 0 for a sampler without a copy.
        """
        ...

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Return ``num_rollouts`` responses for each prompt, in the order of the prompts.

        They come from the weights of the last ``take_weights``.
        """
        ...

    def sleep(self) -> None:
        """Free the memory that only sampling needs, until ``take_weights``; a collective."""
        ...


def sampling_noise(settings: SamplingSettings, problem_id: str, sibling: int) -> np.ndarray:
    """Return one uniform number in [0, 1) for each position of one response.

    It depends only on (seed, stream, problem, sibling, position) and not on the batch of a row,
    so every layout of batches and ranks draws the same tokens.
    """
    key = f"{settings.seed}\x00{settings.stream}\x00{problem_id}\x00{sibling}"
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.random(settings.max_new_tokens)
