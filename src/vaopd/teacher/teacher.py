"""The interface of a teacher, in this process or on a server.

B rollouts, H hidden width, V rows of the head.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vaopd.models.prompts import EncodedPrompt

Responses = Sequence[Sequence[Int[Tensor, " _"]]]
"""Token ids by problem and sibling."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherScores:
    """The teacher's scores of a step, one entry for each rollout, without gradient.

    Rollouts are numbered through: all siblings of the first problem, then of the second, ...
    """

    hidden: list[Float[Tensor, "_ H"]]
    """Last hidden states that predict the tokens, original view; empty if not requested."""

    original_logprobs: list[Float[Tensor, " _"]]
    """Log-prob of each sampled token with the image, nats at temperature 1."""

    degraded_logprobs: list[Float[Tensor, " _"]] | None
    """The same with the degraded image; None if that view was not requested."""

    degraded_hidden: list[Float[Tensor, "_ H"]] | None = None
    """Last hidden states that predict the tokens, degraded view; where asked for."""

    view_divergence: list[Float[Tensor, " _"]] | None = None
    """KL from the original to the degraded view at each position, nats; None if not requested."""

    def only(self, rollouts: Bool[Tensor, " B"]) -> "TeacherScores":
        """Return the scores of some of the rollouts."""
        numbers = rollouts.nonzero()[:, 0].tolist()
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return TeacherScores(
            **{name: rows and [rows[n] for n in numbers] for name, rows in parts.items()}
        )

    @staticmethod
    def joined(
        first: "TeacherScores", second: "TeacherScores", places: Sequence[int]
    ) -> "TeacherScores":
        """Return the scores of two calls together; both have the same kinds of scores.

        Args:
            first: Scores of some rollouts.
            second: Scores of the others.
            places: Number of each rollout of the first call, then of the second.
        """
        order = sorted(range(len(places)), key=places.__getitem__)
        parts: dict[str, Any] = {}
        for name in (one.name for one in fields(first)):
            rows, more = getattr(first, name), getattr(second, name)
            parts[name] = rows and [[*rows, *more][n] for n in order]
        return TeacherScores(**parts)


@runtime_checkable
class Teacher(Protocol):
    """A frozen model that scores responses, in this process or on servers."""

    batch_tokens: int
    """Padded tokens in one scoring forward."""

    share_prefix: bool
    """Whether siblings are packed after one copy of prompt and image."""

    @property
    def name(self) -> str:
        """As written in a recipe."""
        ...

    @property
    def head(self) -> Float[Tensor, "V H"]:
        """Weight of the language-model head, on the trainer's device."""
        ...

    def whole_head(self) -> AbstractContextManager:
        """Return the context in which ``head`` can be used; a sharded head is gathered in it."""
        ...

    def score(
        self,
        originals: Sequence[EncodedPrompt],
        degraded: Sequence[EncodedPrompt] | None,
        responses: Responses,
        *,
        with_hidden: bool = True,
        with_divergence: bool = False,
        with_degraded_hidden: bool = False,
    ) -> TeacherScores:
        """Return log-probs, and hidden states if wanted, of every response token.

        Args:
            originals: Prompts with the image.
            degraded: The same prompts with the degraded image, if that view is wanted.
            responses: Token ids by problem and sibling.
            with_hidden: Return the hidden states, which the loss needs and a measure does not.
            with_divergence: Also compare the views over the whole vocabulary; needs both.
            with_degraded_hidden: Also return the hidden states of the degraded view; needs both.

        Raises:
            AlignmentError: The model's log-prob of a token is not finite.
            EngineError: A teacher's server does not answer, or refuses.
        """
        ...

    def close(self) -> None:
        """Close connections; the teacher must not be used again."""
        ...
