"""Visual-advantage on-policy distillation (Liu et al. 2026, arXiv 2605.21924) and its ablations.

B rollouts of a step, T longest response.
"""

from jaxtyping import Float
from torch import Tensor

from vaopd.config.methods import (
    DropOptions,
    RolloutOnlyOptions,
    RolloutOptions,
    TokenOnlyOptions,
    TokenOptions,
    VaOpdOptions,
)
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.distillation import Distillation
from vaopd.objective.advantage import absolute_advantage, signed_advantage, visual_advantage
from vaopd.objective.weights import rollout_weights, token_weights, without_tokens
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
    return rollout_weights(
        advantage,
        batch.mask,
        batch.problem_ids,
        temperature=options.rollout_temperature,
        epsilon=options.epsilon,
        deviation_floor=options.deviation_floor,
    )


def weigh_tokens(
    options: TokenOptions,
    batch: StepRollouts,
    advantage: Float[Tensor, "B T"],
    rollout: Float[Tensor, " B"],
) -> Weights:
    """Return weights in which the high group of each response carries its share (Eq. 5-6)."""
    high = batch.top(advantage, options.high_fraction)
    token = token_weights(
        advantage,
        batch.mask,
        rollout,
        high_fraction=options.high_fraction,
        high_mass=options.high_mass,
        minimum_advantage=options.minimum_advantage,
        high=high,
    )
    token = drop_tokens(options, batch, advantage, token)
    return Weights(token=token, rollout=rollout, mask=batch.mask, advantage=advantage, high=high)


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
