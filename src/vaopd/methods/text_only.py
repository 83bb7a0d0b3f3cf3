"""Weights of steps in which some problems have no image, and so no visual advantage."""

import torch
from torch import Tensor

from vaopd.methods.base import Method, StepRollouts, Weights
from vaopd.teacher.teacher import TeacherScores


def weigh(method: Method, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
    """Return the weights of a step, uniform for the responses to problems without an image.

    A method that compares two views gets the others alone, so their weights are those that they
    have in a step without text. What is read of text is 0: its advantage and ``constants``.
    """
    seen = batch.has_image
    if method.needs.views < 2 or bool(seen.all()):
        return method.weigh(batch, scores)
    uniform = batch.uniform
    if not seen.any():
        return Weights(token=uniform, rollout=uniform.sum(-1), mask=batch.mask)
    found = method.weigh(batch.with_image(), None if scores is None else scores.only(seen))

    def placed(values: Tensor, others: Tensor) -> Tensor:
        # Without the text the longest response may be shorter.
        whole = others.clone()
        whole[seen, : values.shape[-1]] = values
        return whole

    rollout = uniform.sum(-1)
    rollout[seen] = found.rollout
    nothing = torch.zeros(batch.mask.shape)
    return Weights(
        token=placed(found.token, uniform),
        rollout=rollout,
        mask=batch.mask,
        advantage=None if found.advantage is None else placed(found.advantage, nothing),
        high=None if found.high is None else placed(found.high, torch.zeros_like(batch.mask)),
        constants={name: placed(values, nothing) for name, values in found.constants.items()},
    )
