"""Draws tokens from logits by one uniform number each.

B rows, V vocabulary, M ids that may be drawn.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float, top_p: float
) -> Int[Tensor, " B"]:
    """Return one id for each row by inverting the cumulative nucleus distribution.

    The nucleus is the smallest set of most likely ids with mass of at least ``top_p``. One uniform
    number decides a token, so a row needs one number for each position and not V of them.

    Args:
        logits: Unscaled; ``-inf`` is never drawn.
        uniforms: In [0, 1).
        temperature: 0 takes the most likely id.
        top_p: In (0, 1].
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = _candidates((logits.double() / temperature).softmax(-1), top_p)
    values = _descending(probabilities)
    cumulative = values.cumsum(-1)
    # An id is in the nucleus if the mass before it is below top_p. The mass of all possible ids
    # may round to less than 1, and impossible ids must stay outside nevertheless.
    inside = ((cumulative - values) < top_p) & (values > 0)
    last = inside.sum(-1, keepdim=True) - 1
    mass = cumulative.gather(-1, last)
    chosen = torch.searchsorted(cumulative, uniforms.double()[:, None] * mass, right=True)
    column = _at_rank(probabilities, values, torch.minimum(chosen, last))
    return column if ids is None else ids.gather(-1, column[:, None])[:, 0]


def _candidates(
    probabilities: Float[Tensor, "B V"], top_p: float
) -> tuple[Float[Tensor, "B M"], Int[Tensor, "B M"] | None]:
    """Return the probabilities that may be in the nucleus, and their ids; None means all ids.

    All ids below ``(1 - top_p) / V`` have less than ``1 - top_p`` together, so the nucleus is full
    before the first of them. In a trained model nearly all ids are below it, and sorting a large
    vocabulary takes longer than the forward of a small model.
    """
    size = probabilities.shape[-1]
    # Half of the bound leaves far more room than the rounding of float64 sums needs.
    possible = probabilities >= 0.5 * (1 - top_p) / size
    count = int(possible.sum(-1).max())
    if count >= size // 2:
        return probabilities, None
    ids = probabilities.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    return probabilities.gather(-1, ids), ids


def _descending(values: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Return each row's values, the largest first."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    # On a CPU torch also sorts indices, one by one; numpy sorts values by vector instructions.
    return torch.from_numpy(np.sort(values.detach().numpy())).flip(-1)


def _at_rank(
    probabilities: Float[Tensor, "B M"], values: Float[Tensor, "B M"], rank: Int[Tensor, "B 1"]
) -> Int[Tensor, " B"]:
    """Return the column of each row that a stable descending sort would put at a rank.

    Half-precision logits are often equal, and rows must not depend on the batch.
    """
    value = values.gather(-1, rank)
    before = (values > value).sum(-1, keepdim=True)
    is_equal = probabilities == value
    return (is_equal & (is_equal.cumsum(-1) == rank - before + 1)).int().argmax(-1)
