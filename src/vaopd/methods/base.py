"""The interface of a method: what it needs, how it weighs a step, what it minimises.

Sampling, scoring, forwards and the update are the same for all methods. B rollouts of a step,
T longest response, N response tokens of a micro-batch, H hidden width, V rows of a head.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vaopd.config import MethodOptions, Needs
from vaopd.objective.divergence import weighted_reverse_kl
from vaopd.objective.weights import high_group, uniform_token_weights
from vaopd.teacher.teacher import TeacherScores

OptionsT = TypeVar("OptionsT", bound=MethodOptions)
KeptT = TypeVar("KeptT")


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """Token weights of a step, and the advantage that they came from."""

    token: Float[Tensor, "B T"]
    """Weight of each token's term in the loss, which is averaged over problems afterwards."""

    rollout: Float[Tensor, " B"]
    mask: Bool[Tensor, "B T"]
    advantage: Float[Tensor, "B T"] | None = None
    high: Bool[Tensor, "B T"] | None = None
    constants: Mapping[str, Float[Tensor, "B T"]] = field(default_factory=dict)
    """Other numbers of each token that the method's own ``loss`` reads, by name."""

    def only(self, rollouts: Bool[Tensor, " B"]) -> "Weights":
        """Return the weights of some of the rollouts, as wide as the longest of them."""
        longest = int(self.mask[rollouts].sum(-1).max())
        advantage, high = self.advantage, self.high
        return Weights(
            token=self.token[rollouts, :longest],
            rollout=self.rollout[rollouts],
            mask=self.mask[rollouts, :longest],
            advantage=None if advantage is None else advantage[rollouts, :longest],
            high=None if high is None else high[rollouts, :longest],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class StepRollouts:
    """The responses of a whole step, of all processes, as a method sees them.

    Rollouts are numbered through: all siblings of the first problem, then of the second, ...
    """

    responses: Sequence[Sequence[Int[Tensor, " _"]]]
    """Token ids by problem and sibling."""

    keys: Sequence[str]
    """A text for each rollout that decides ties, so that the choice does not depend on the order
    or the padding of the rollouts."""

    student_entropy: Sequence[Float[Tensor, " _"]] | None = None
    """Entropy of the student's own distribution at each token, nats at temperature 1,
    one entry for each rollout; where ``needs.student_entropy``."""

    rewards: Float[Tensor, " B"] | None = None
    """1 for a right response, 0 for a wrong one; where ``needs.rewards``."""

    sampled_logprobs: Sequence[Float[Tensor, " _"]] | None = None
    """Log-prob of each token when it was sampled, nats, where ``needs.sampled_logprobs``; none if
    the student itself sampled, whose log-probs before the update they are."""

    reference_logprobs: Sequence[Float[Tensor, " _"]] | None = None
    """Log-prob of each token under the student before training, nats; where
    ``needs.reference_logprobs``."""

    masked_logprobs: Sequence[Float[Tensor, " _"]] | None = None
    """Log-prob of each token under the student before this update, with patches of the image
    black, nats; where ``needs.mask``."""

    text_only: Sequence[bool] | None = None
    """Whether each problem has no image; none = all have one, because a recipe asks for that. Where
    ``needs.views`` is 2, a method does not get the responses to such problems."""

    @cached_property
    def has_image(self) -> Bool[Tensor, " B"]:
        """Whether each rollout answers a question about an image."""
        groups = zip(self.responses, self.text_only or [False] * len(self.responses), strict=True)
        return torch.tensor([not is_text for group, is_text in groups for _ in group])

    def with_image(self) -> "StepRollouts":
        """Return the rollouts of the problems that have an image; there must be one."""
        seen = self.has_image.tolist()

        def kept(values: Sequence[KeptT] | None) -> list[KeptT] | None:
            if values is None:
                return None
            return [one for one, has in zip(values, seen, strict=True) if has]

        texts = self.text_only or [False] * len(self.responses)
        return StepRollouts(
            responses=[
                one for one, is_text in zip(self.responses, texts, strict=True) if not is_text
            ],
            keys=[key for key, has in zip(self.keys, seen, strict=True) if has],
            student_entropy=kept(self.student_entropy),
            rewards=None if self.rewards is None else self.rewards[self.has_image],
            sampled_logprobs=kept(self.sampled_logprobs),
            reference_logprobs=kept(self.reference_logprobs),
            masked_logprobs=kept(self.masked_logprobs),
        )

    @cached_property
    def mask(self) -> Bool[Tensor, "B T"]:
        """True at response tokens, False at padding."""
        lengths = torch.tensor([len(ids) for group in self.responses for ids in group])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    @cached_property
    def problem_ids(self) -> Int[Tensor, " B"]:
        """Number of each rollout's problem; siblings share one."""
        return torch.tensor([i for i, group in enumerate(self.responses) for _ in group])

    @cached_property
    def uniform(self) -> Float[Tensor, "B T"]:
        """Weights of plain on-policy distillation (Eq. 1)."""
        return uniform_token_weights(self.mask, self.problem_ids)

    def pad(self, parts: Sequence[Tensor]) -> Float[Tensor, "B T"]:
        """Return values of each rollout's tokens side by side, 0 at padding."""
        padded = torch.zeros(self.mask.shape)
        padded[self.mask] = torch.cat([part.float().cpu() for part in parts])
        return padded

    def spread(self, rollout: Float[Tensor, " B"]) -> Float[Tensor, "B T"]:
        """Return token weights that share each rollout's weight evenly among its tokens."""
        return rollout[:, None] * self.mask / self.mask.sum(-1, keepdim=True).clamp(min=1)

    def permute(self, rollout: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the values of each problem's rollouts in a random order that the keys decide.

        Empty responses keep theirs.
        """
        mixed = rollout.clone()
        present = self.mask.any(-1)
        for problem in self.problem_ids.unique():
            siblings = ((self.problem_ids == problem) & present).nonzero()[:, 0].tolist()
            # Two orders that do not depend on the places of the siblings in the step.
            source, place = (
                sorted(siblings, key=lambda i, side=side: seed_of(f"{side}\x00{self.keys[i]}"))
                for side in ("source", "place")
            )
            mixed[place] = rollout[source]
        return mixed

    def top(
        self, values: Float[Tensor, "B T"], fraction: float, *, purpose: str = ""
    ) -> Bool[Tensor, "B T"]:
        """Return the tokens of largest value in each response; keys decide among equal values.

        Args:
            values: One for each token.
            fraction: Share of each response's tokens, in [0, 1]; rounded up to whole tokens.
            purpose: Choices of different purpose break their ties independently.
        """
        group = torch.zeros_like(self.mask)
        for row, (length, key) in enumerate(
            zip(self.mask.sum(-1).tolist(), self.keys, strict=True)
        ):
            seed = seed_of(f"{purpose}\x00{key}" if purpose else key)
            group[row, :length] = high_group(
                values[row : row + 1, :length],
                self.mask[row : row + 1, :length],
                high_fraction=fraction,
                generator=torch.Generator().manual_seed(seed),
            )[0]
        return group


@dataclass(frozen=True, eq=False, kw_only=True)
class StudentStates:
    """A micro-batch of the student's forward, with gradient."""

    hidden: Float[Tensor, "N H"]
    """Last hidden states that predict the response tokens."""

    head: Float[Tensor, "V H"]
    targets: Int[Tensor, " N"]
    """Ids of the response tokens."""

    vocab_size: int
    """Ids that the tokenizer has; rows of a head after them are padding."""

    constants: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    """``Weights.constants`` of the response tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherStates:
    """The teacher's hidden states of the same tokens, without gradient; original view."""

    hidden: Float[Tensor, "N Ht"]
    head: Float[Tensor, "Vt Ht"]
    degraded_hidden: Float[Tensor, "N Ht"] | None = None
    """The same with the degraded image, where ``needs.degraded_hidden``."""


class Method(ABC, Generic[OptionsT]):
    """What a method decides; see docs/methods.md for one of your own."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """Section ``method`` of a recipe for this method; its ``needs`` say what is scored."""

    measure: ClassVar[Literal["kl", "nll"]] = "kl"
    """What ``loss`` measures at a token: its name in metrics and records."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @property
    def needs(self) -> Needs:
        """What is sampled and scored for this method."""
        return self.options.needs

    @abstractmethod
    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return the weights of a whole step; they are final before the first gradient.

        Args:
            batch: Responses of all processes.
            scores: The teacher's log-probs of them; none where ``needs.views`` is 0.
        """

    def loss(
        self,
        student: StudentStates,
        teacher: TeacherStates | None,
        token_weights: Float[Tensor, " N"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        """Return the sum of weight times measure, and the measure of each token in nats.

        The default is the reverse KL to the teacher over the whole vocabulary (Eq. 1 and 6).
        """
        assert teacher is not None, "a method with needs.views=0 has a loss of its own"
        return weighted_reverse_kl(
            student.hidden,
            student.head,
            teacher.hidden,
            teacher.head,
            token_weights,
            vocab_size=student.vocab_size,
        )


def seed_of(key: str) -> int:
    """Return a seed computed from a text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
