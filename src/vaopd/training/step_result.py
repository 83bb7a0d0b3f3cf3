"""The results of one update."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vaopd.methods.base import StepRollouts, Weights
from vaopd.rollouts.sampler import Rollout
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.grading import GradedResponses


@dataclass(frozen=True, eq=False, kw_only=True)
class StepResult:
    """The results of one update."""

    loss: float
    token_divergence: list[Float[Tensor, " _"]]
    """The quantity that the method minimises at each response token, in nats, by rollout."""

    measure: Literal["kl", "nll"]
    """Kind of ``token_divergence``: a divergence to the target, or a negative log-likelihood."""

    micro_batch_tokens: int
    """Token budget of a forward that fit into memory."""

    weights: Weights
    responses: StepRollouts
    """The responses as the method weighed them."""

    rollouts: list[Rollout]
    graded: GradedResponses
    """Texts and grades of the rollouts."""

    scores: TeacherScores | None
    gradient_norm: float = math.nan
    """Before clipping; not a number until the gradient is applied."""

    uniform_norm: float | None = None
    """Norm that the gradient is scaled to, where the method asks for it."""

    skipped_in_a_row: int = 0
    """Skipped steps up to this one, whose loss or gradient was not finite or whose loss a spike."""

    lag: int = 0
    """Number of updates between the weights that sampled and those that were trained."""

    gradient_statistics: dict[str, float] = field(default_factory=dict)
    """Metrics of `gradient_statistics`, at the steps at which they are measured."""

    noise_floor: float | None = None
    """Mean difference, in nats, of two scores of the original view; only of the first step."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase; their sum is the time of the step."""

    seconds_beside: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of the work for this step that was done during the previous step."""

    sent_bytes: int = 0
    """Weights that the sampler got in this step."""
