"""Computes the visual advantage: how much image detail raises the teacher's log-prob of a token.

Letters in shapes: B rollouts, T response tokens (padded); N tokens, H hidden width, V head rows.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vaopd.errors import AlignmentError
from vaopd.objective.divergence import weighted_reverse_kl


def visual_advantage(
    original_logprobs: Float[Tensor, "B T"],
    pixelated_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return the visual advantage of every response token, in nats.

    Implements Eq. 2 of Liu et al. 2026 (arXiv:2605.21924)::

        VA[b,t] = max(0, log p_T(y[b,t] | original) - log p_T(y[b,t] | pixelated))

    A token that the teacher finds more probable without the detail scores 0 and not a negative
    value, because it is not evidence for the use of the detail.

    Args:
        original_logprobs: Teacher log p of each token given the original image.
        pixelated_logprobs: Teacher log p of the same tokens given the pixelated image.
        response_mask: True at response tokens, False at padding.

    Returns:
        Non-negative, without gradient, and 0 at padding.

    Raises:
        AlignmentError: A response token has a non-finite score, which means that the two views
            were not scored over the same tokens.
    """
    return _log_ratio(original_logprobs, pixelated_logprobs, response_mask).clamp(min=0)


def absolute_advantage(
    original_logprobs: Float[Tensor, "B T"],
    pixelated_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return how much the detail changes the teacher's log-prob of each response token, in nats.

    This is not in the paper, whose Eq. 2 counts only gains::

        A[b,t] = | log p_T(y[b,t] | original) - log p_T(y[b,t] | pixelated) |

    A token that the detail makes less probable, such as a misread number, counts as much as a
    token that the detail makes more probable. Arguments and errors are those of
    `visual_advantage`.
    """
    return _log_ratio(original_logprobs, pixelated_logprobs, response_mask).abs()


def signed_advantage(
    original_logprobs: Float[Tensor, "B T"],
    pixelated_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return the log-ratio of Eq. 2 without its clipping, in nats.

    This is not in the paper::

        A[b,t] = log p_T(y[b,t] | original) - log p_T(y[b,t] | pixelated)

    A token that the detail makes less probable lowers the mean of its rollout, and ranks below
    the tokens that do not depend on the image. Arguments and errors are those of
    `visual_advantage`.
    """
    return _log_ratio(original_logprobs, pixelated_logprobs, response_mask)


@torch.no_grad()
def view_divergence(
    original_hidden: Float[Tensor, "N H"],
    pixelated_hidden: Float[Tensor, "N H"],
    head: Float[Tensor, "V H"],
    *,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, " N"]:
    """Return the KL divergence between the teacher's two views at each response position, in nats.

    This is not in the paper, which scores only the sampled token::

        D[n] = sum_j p[n,j] (log p[n,j] - log q[n,j]),  p original view, q pixelated, j < vocab_size

    If the student misreads a number, the teacher finds its token improbable under both views, and
    the advantage of Eq. 2 is near 0. The divergence is large there, because the detail decides
    which token is correct. It uses the same chunked walk as the loss, so no tokens x vocabulary
    tensor is allocated.

    Args:
        original_hidden: The teacher's last hidden states that predict the tokens, original view.
        pixelated_hidden: The same positions, pixelated view.
        head: Weights of the teacher's language-model head.
        vocab_size: Ids that exist; head rows from here on are padding. None means all rows.
        chunk_size: Tokens of a chunk; None means as many as `vaopd.objective.chunks.CHUNK_BYTES`
            allows.

    Returns:
        Non-negative, without gradient; exactly 0 where the views are equal.

    Raises:
        ConfigError: ``vocab_size`` or ``chunk_size`` does not fit the head.
    """
    weights = original_hidden.new_ones(len(original_hidden))
    _, divergence = weighted_reverse_kl(
        original_hidden,
        head,
        pixelated_hidden,
        head,
        weights,
        vocab_size=vocab_size,
        chunk_size=chunk_size,
    )
    # Rounding can give small negative values such as -1e-9.
    return divergence.clamp(min=0)


def _log_ratio(original: Tensor, pixelated: Tensor, response_mask: Tensor) -> Tensor:
    """Return original minus pixelated log-prob, without gradient and 0 at padding.

    Raises:
        AlignmentError: A response token has a non-finite score.
    """
    gain = (original - pixelated).detach()
    bad = response_mask & ~gain.isfinite()
    if bad.any():
        row, position = bad.nonzero()[0].tolist()
        raise AlignmentError(
            f"teacher score is not finite at rollout {row}, response token {position}; "
            "check that both views keep the same number of image tokens"
        )
    return gain.masked_fill(~response_mask, 0.0)


def rollout_advantage(
    advantage: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Return the mean visual advantage of every rollout, in nats.

    Implements the first half of Eq. 3 of Liu et al. 2026 (arXiv:2605.21924)::

        abar[b] = 1/T[b] sum_t VA[b,t]

    over all T[b] valid tokens, including those with advantage 0.

    Args:
        advantage: Result of `visual_advantage`; anything at padding.
        response_mask: True at response tokens, False at padding.

    Returns:
        A tensor without gradient; 0 for an empty response.
    """
    total = advantage.detach().masked_fill(~response_mask, 0.0).sum(-1, dtype=torch.float64)
    lengths = response_mask.sum(-1).clamp(min=1)
    return (total / lengths).to(advantage.dtype)
