"""Visual-advantage on-policy distillation (Liu et al. 2026, arXiv 2605.21924) and its ablations.

B rollouts of a step, T longest response.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vaopd.config.methods import (
    DropOptions,
    RolloutOnlyOptions,
    RolloutOptions,
    TokenOnlyOptions,
    TokenOptions,
    VaOpdOptions,
    WeightOptions,
)
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.distillation import Distillation
from vaopd.objective.advantage import (
    absolute_advantage,
    rollout_advantage,
    signed_advantage,
    visual_advantage,
)
from vaopd.objective.concentration import lift, temper
from vaopd.objective.weights import (
    rollout_weights,
    sibling_softmax,
    token_weights,
    without_tokens,
)
from vaopd.teacher.teacher import TeacherScores


class VaOpd(Distillation[VaOpdOptions]):
    """Siblings that look weigh more (Eq. 3-4), and so do tokens that need the image (Eq. 5-6)."""

    Options = VaOpdOptions

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return the paper's weights."""
        advantage = token_advantage(self.options.advantage, batch, scores)
        rollout = sibling_weights(self.options, batch, advantage)
        return weigh_tokens(self.options, batch, advantage, rollout)


class TokenOnly(Distillation[TokenOnlyOptions]):
    """The ablation in which all siblings weigh the same."""

    Options = TokenOnlyOptions

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return weights by token groups alone (Eq. 5-6)."""
        advantage = token_advantage(self.options.advantage, batch, scores)
        return weigh_tokens(self.options, batch, advantage, batch.uniform.sum(-1))


class RolloutOnly(Distillation[RolloutOnlyOptions]):
    """The ablation in which all tokens of a response weigh the same."""

    Options = RolloutOnlyOptions

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return weights by siblings alone (Eq. 3-4)."""
        advantage = token_advantage(self.options.advantage, batch, scores)
        rollout = sibling_weights(self.options, batch, advantage)
        _, rollout = adjusted(self.options, batch, batch.spread(rollout), rollout)
        return weigh_evenly(self.options, batch, advantage, rollout)


def token_advantage(
    name: str, batch: StepRollouts, scores: TeacherScores | None
) -> Float[Tensor, "B T"]:
    """Return the advantage that ``method.advantage`` names, nats, 0 at padding."""
    assert scores is not None, "needs.views is 2, so the teacher scored both views"
    if name == "view_divergence":
        assert scores.view_divergence is not None, "needs.view_divergence is true"
        return batch.pad(scores.view_divergence)
    assert scores.degraded_logprobs is not None, "needs.views is 2"
    measures = {
        "sampled": visual_advantage,
        "absolute": absolute_advantage,
        "signed": signed_advantage,
    }
    original, degraded = batch.pad(scores.original_logprobs), batch.pad(scores.degraded_logprobs)
    return measures[name](original, degraded, batch.mask)


def sibling_weights(
    options: RolloutOptions, batch: StepRollouts, advantage: Float[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Return a weight for each rollout by the advantage of its siblings (Eq. 3-4)."""
    scale = {
        "temperature": options.rollout_temperature,
        "epsilon": options.epsilon,
        "deviation_floor": options.deviation_floor,
    }
    if options.rollout_score == "mean":
        rollout = rollout_weights(advantage, batch.mask, batch.problem_ids, **scale)
    else:
        score = advantage.double().sum(-1)
        if options.rollout_score == "top":
            high = batch.top(advantage, options.high_fraction)
            score = rollout_advantage(advantage.double(), high)
        weights = sibling_softmax(score, batch.mask.any(-1), batch.problem_ids, **scale)
        rollout = weights.to(advantage.dtype)
    return batch.permute(rollout) if options.shuffled else rollout


def weigh_tokens(
    options: TokenOptions,
    batch: StepRollouts,
    advantage: Float[Tensor, "B T"],
    rollout: Float[Tensor, " B"],
) -> Weights:
    """Return weights in which the high group of each response carries its share (Eq. 5-6)."""
    high = high_tokens(options, batch, advantage)
    token = token_weights(
        advantage,
        batch.mask,
        rollout,
        high_fraction=options.high_fraction,
        high_mass=options.high_mass,
        minimum_advantage=options.minimum_advantage,
        high=high,
    )
    token, rollout = adjusted(options, batch, token, rollout)
    token = drop_tokens(options, batch, advantage, token)
    return Weights(token=token, rollout=rollout, mask=batch.mask, advantage=advantage, high=high)


def high_tokens(
    options: WeightOptions, batch: StepRollouts, advantage: Float[Tensor, "B T"]
) -> Bool[Tensor, "B T"]:
    """Return the high group of each response, or as many random tokens as a control."""
    if options.shuffled:
        # All values are equal, so the keys decide.
        return batch.top(torch.zeros_like(advantage), options.high_fraction, purpose="shuffled")
    return batch.top(advantage, options.high_fraction)


def adjusted(
    options: WeightOptions,
    batch: StepRollouts,
    token: Float[Tensor, "B T"],
    rollout: Float[Tensor, " B"],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
    """Return the weights after ``method.no_suppress`` and ``method.effective_share``."""
    if not options.no_suppress and options.effective_share is None:
        return token, rollout
    if options.no_suppress:
        token = lift(token, batch.uniform, batch.problem_ids)
    if options.effective_share is not None:
        share = options.effective_share
        token = temper(token, batch.uniform, batch.problem_ids, share=share)
    return token, token.sum(-1)


def weigh_evenly(
    options: DropOptions,
    batch: StepRollouts,
    advantage: Float[Tensor, "B T"],
    rollout: Float[Tensor, " B"],
) -> Weights:
    """Return weights that share each rollout's weight evenly; the high group is not used."""
    high = batch.top(advantage, options.high_fraction)
    token = drop_tokens(options, batch, advantage, batch.spread(rollout))
    return Weights(token=token, rollout=rollout, mask=batch.mask, advantage=advantage, high=high)


def drop_tokens(
    options: DropOptions,
    batch: StepRollouts,
    advantage: Float[Tensor, "B T"],
    token: Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return the weights without the tokens that ``method.drop`` names (Fig. 2b)."""
    if options.drop == "none":
        return token
    sign = {"highest": 1.0, "random": 0.0, "lowest": -1.0}[options.drop]
    # Ties of their own: the tokens that a tie puts first must not be those that chance drops.
    return without_tokens(token, batch.top(sign * advantage, options.drop_fraction, purpose="drop"))
