"""Computes the entropy of the student's distribution at its tokens, a weight in some methods."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.models.loading import VisionLanguageModel
from vaopd.models.packing import MicroBatch, response_hidden_states, split_by_rollout
from vaopd.objective.entropy import token_entropy


@torch.no_grad()
def response_entropy(
    student: VisionLanguageModel, batches: Iterable[MicroBatch], lengths: list[int]
) -> list[Float[Tensor, " _"]]:
    """Return, by rollout, the entropy of the distribution that predicts each response token.

    The unit is nats, at temperature 1. It costs one forward of the student without gradient and
    without dropout, as in sampling.

    Args:
        student: The student with the weights that sampled.
        batches: Forwards that cover every response once.
        lengths: Number of tokens of each response.
    """
    entropy = [torch.zeros(0)] * len(lengths)
    student.model.eval()
    with student.whole_head():
        for micro in batches:
            hidden = response_hidden_states(student, micro.batch)
            values = token_entropy(hidden, student.head, vocab_size=student.vocab_size)
            for number, part in split_by_rollout(values.float().cpu(), micro, lengths):
                entropy[number] = part
    return entropy
