"""Scores of the student's responses by the student itself, without gradient: entropy, log-probs."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import MicroBatch, response_hidden_states, split_by_rollout
from vaopd.objective.divergence import sampled_logprobs
from vaopd.objective.entropy import token_entropy


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

    def measure(hidden: Tensor, micro: MicroBatch) -> Tensor:
        return token_entropy(hidden, student.head, vocab_size=student.vocab_size)

    return _by_rollout(student, batches, lengths, measure)


def response_logprobs(
    model: VisionLanguageModel, batches: Iterable[MicroBatch], lengths: list[int]
) -> list[Float[Tensor, " _"]]:
    """Return, by rollout, the log-prob of each response token, in nats at temperature 1.

    Arguments are those of `response_entropy`, for any model.
    """

    def measure(hidden: Tensor, micro: MicroBatch) -> Tensor:
        targets = micro.batch.targets.to(model.device)
        return sampled_logprobs(hidden, model.head, targets, vocab_size=model.vocab_size)

    return _by_rollout(model, batches, lengths, measure)


@torch.no_grad()
def _by_rollout(
    model: VisionLanguageModel,
    batches: Iterable[MicroBatch],
    lengths: list[int],
    measure: Callable[[Tensor, MicroBatch], Tensor],
) -> list[Tensor]:
    found = [torch.zeros(0)] * len(lengths)
    model.model.eval()
    with model.whole_head():
        for micro in batches:
            values = measure(response_hidden_states(model, micro.batch), micro)
            for number, part in split_by_rollout(values.float().cpu(), micro, lengths):
                found[number] = part
    return found
