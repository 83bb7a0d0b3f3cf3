"""On-policy distillation with uniform weights: the baseline (Agarwal et al. 2024; Eq. 1)."""

from vaopd.config.methods import OpdOptions
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.distillation import Distillation
from vaopd.methods.va_opd import token_advantage, weigh_evenly
from vaopd.teacher.teacher import TeacherScores


class Opd(Distillation[OpdOptions]):
    """Every token of a response weighs the same, and so does every response of a problem."""

    Options = OpdOptions

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return uniform weights, without the tokens that ``method.drop`` names."""
        uniform = batch.uniform
        if self.options.drop == "none":
            return Weights(token=uniform, rollout=uniform.sum(-1), mask=batch.mask)
        advantage = token_advantage(self.options.advantage, batch, scores)
        return weigh_evenly(self.options, batch, advantage, uniform.sum(-1))
