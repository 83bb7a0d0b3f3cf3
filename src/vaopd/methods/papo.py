"""Perception-aware policy optimization (Wang et al. 2025, arXiv:2507.06448): GRPO and a view.

N response tokens of a micro-batch.
"""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from vaopd.config.methods import PapoOptions
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.grpo import RewardPolicy
from vaopd.objective.policy import sampled_kl
from vaopd.teacher.teacher import TeacherScores

LARGEST_KL = 10.0
"""Nats; a token's KL between the views counts at most this much, as in the released code. The term
is made larger, so without a limit the loss would have none."""


class Papo(RewardPolicy[PapoOptions]):
    """A policy gradient that also moves the student away from what it says without the image.

    The loss of each token is that of GRPO, and with g for ``method.perception_coefficient`` and h
    for ``method.entropy_coefficient``::

        - g min(exp(m) - m - 1, 10) - h log p,    m = log p with the masked image - log p

    As in the released code (``RECOMPUTE_AUG_LOG_PROBS=False``) the log-probs with the masked image
    are constants from before the update. So the second part of its double entropy loss, on the
    masked image, has no gradient, and is left out.
    """

    Options = PapoOptions

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return GRPO's weights, with the log-probs of the masked image beside."""
        weights = super().weigh(batch, scores)
        if batch.masked_logprobs is None:
            return weights
        masked = {"masked": batch.pad(batch.masked_logprobs)}
        return replace(weights, constants={**weights.constants, **masked})

    def token_loss(
        self, constants: Mapping[str, Tensor], logprobs: Float[Tensor, " c"], tokens: slice
    ) -> Float[Tensor, " c"]:
        """Return the loss of some tokens by their log-probs."""
        options = self.options
        loss = super().token_loss(constants, logprobs, tokens)
        if "masked" in constants:
            gap = sampled_kl(logprobs, constants["masked"][tokens]).clamp(max=LARGEST_KL)
            loss = loss - options.perception_coefficient * gap
        if options.entropy_coefficient:
            loss = loss - options.entropy_coefficient * logprobs
        return loss
