"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300): rewards, no teacher.

N response tokens of a micro-batch.
"""

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from vaopd.config.methods import GrpoOptions, PolicyOptions
from vaopd.methods.base import Method, StepRollouts, StudentStates, TeacherStates, Weights
from vaopd.objective.policy import (
    clipped_surrogate,
    group_advantage,
    sampled_kl,
    weighted_token_loss,
)
from vaopd.teacher.teacher import TeacherScores

PolicyT = TypeVar("PolicyT", bound=PolicyOptions)


class RewardPolicy(Method[PolicyT]):
    """A response that is better than its siblings becomes more probable, a worse one less.

    The loss of the paper's Eq. 3, which is TRL's with ``loss_type="grpo"``: the mean over the
    tokens of a response, then over the responses, then over the problems, of::

        -min(r A, clamp(r, 1 - clip, 1 + clip) A) + b (exp(d) - d - 1)

    A is `group_advantage`; r the ratio of a token's probability to that when it was sampled; d the
    log-prob under the student before training minus that of the student; b is
    ``method.reference_coefficient``. A step makes one update, so r is 1 unless another program
    sampled, and its gradient is that of log-probs.
    """

    measure = "nll"

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return uniform weights, with the advantage of each response at its tokens."""
        assert batch.rewards is not None, "needs.rewards is true"
        advantage = group_advantage(batch.rewards, batch.problem_ids)
        constants = {"advantage": advantage[:, None] * batch.mask}
        if batch.sampled_logprobs is not None:
            constants["sampled"] = batch.pad(batch.sampled_logprobs)
        if batch.reference_logprobs is not None:
            constants["reference"] = batch.pad(batch.reference_logprobs)
        uniform = batch.uniform
        return Weights(token=uniform, rollout=uniform.sum(-1), mask=batch.mask, constants=constants)

    def loss(
        self,
        student: StudentStates,
        teacher: TeacherStates | None,
        token_weights: Float[Tensor, " N"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        """Return the sum of weight times loss, and the negative log-likelihood of each token."""
        return weighted_token_loss(
            student.hidden,
            student.head,
            student.targets,
            token_weights,
            partial(self.token_loss, student.constants),
            vocab_size=student.vocab_size,
        )

    def token_loss(
        self, constants: Mapping[str, Tensor], logprobs: Float[Tensor, " c"], tokens: slice
    ) -> Float[Tensor, " c"]:
        """Return the loss of some tokens by their log-probs."""
        sampled = constants["sampled"][tokens] if "sampled" in constants else logprobs.detach()
        loss = clipped_surrogate(
            logprobs, sampled, constants["advantage"][tokens], clip=self.options.clip
        )
        if "reference" in constants:
            gap = sampled_kl(logprobs, constants["reference"][tokens])
            loss = loss + self.options.reference_coefficient * gap
        return loss


class Grpo(RewardPolicy[GrpoOptions]):
    """The policy gradient by rewards and nothing else."""

    Options = GrpoOptions
