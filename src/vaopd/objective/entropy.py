"""Entropy of a model's next-token distribution, without a tokens-by-vocabulary tensor."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.objective.divergence import weighted_reverse_kl


@torch.no_grad()
def token_entropy(
    hidden: Float[Tensor, "N H"], head: Float[Tensor, "V H"], *, vocab_size: int
) -> Float[Tensor, " N"]:
    """Return the entropy of the distribution that each hidden state predicts, in nats.

    With V for ``vocab_size`` and U for the uniform distribution over the ids that exist::

        H(p) = -sum_j p[j] log p[j] = log V - KL(p || U)

    Args:
        hidden: Last hidden states; N of them.
        head: Weights of the language-model head.
        vocab_size: Ids that exist; head rows from here on are padding.
    """
    uniform = hidden.new_zeros(len(hidden), 1), head.new_zeros(len(head), 1)
    weights = torch.zeros(len(hidden), device=hidden.device)
    _, divergence = weighted_reverse_kl(hidden, head, *uniform, weights, vocab_size=vocab_size)
    # Rounding may leave -1e-6.
    return (math.log(vocab_size) - divergence).clamp(min=0)
