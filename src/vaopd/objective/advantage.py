"""Visual advantage: what the detail of the image is worth to the teacher, token by token.

Letters in shapes: B rollouts, T response tokens (padded).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vaopd.errors import AlignmentError


def visual_advantage(
    original_logprobs: Float[Tensor, "B T"],
    pixelated_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return the visual advantage of every response token, in nats.

    Implements Eq. 2 of Liu et al. 2026 (arXiv:2605.21924)::

        VA[b,t] = max(0, log p_T(y[b,t] | original) - log p_T(y[b,t] | pixelated))

    A token the teacher finds likelier without the detail scores 0, not negative:
    it says nothing about what the detail is worth.

    Args:
        original_logprobs: Teacher log p of each token given the original image.
        pixelated_logprobs: The same tokens given the pixelated image.
        response_mask: True at response tokens, False at padding.

    Returns:
        Non-negative, without gradient, and 0 at padding.

    Raises:
        AlignmentError: A response token has a non-finite score, which means the
            two views were not scored over the same tokens.
    """
    gain = (original_logprobs - pixelated_logprobs).detach()
    bad = response_mask & ~gain.isfinite()
    if bad.any():
        row, position = bad.nonzero()[0].tolist()
        raise AlignmentError(
            f"teacher score is not finite at rollout {row}, response token {position}; "
            "check that both views keep the same number of image tokens"
        )
    return gain.clamp(min=0).masked_fill(~response_mask, 0.0)


def rollout_advantage(
    advantage: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Return the mean visual advantage of every rollout, in nats.

    Implements the first half of Eq. 3 of Liu et al. 2026 (arXiv:2605.21924)::

        abar[b] = 1/T[b] sum_t VA[b,t]

    over all T[b] valid tokens: those that scored 0 count.

    Args:
        advantage: Result of `visual_advantage`; anything at padding.
        response_mask: True at response tokens, False at padding.

    Returns:
        Without gradient, and 0 for an empty response.
    """
    total = advantage.detach().masked_fill(~response_mask, 0.0).sum(-1, dtype=torch.float64)
    lengths = response_mask.sum(-1).clamp(min=1)
    return (total / lengths).to(advantage.dtype)
