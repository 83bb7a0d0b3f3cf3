"""The entropy of the student's own distribution at its tokens, which some methods weigh by."""

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
    """Return the entropy that predicts each response token, nats at temperature 1, by rollout.

    It costs one forward of the student without gradient, with dropout off as in sampling.

    Args:
        student: As it sampled.
        batches: Forwards that cover every response once.
        lengths: Tokens of each response.
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
