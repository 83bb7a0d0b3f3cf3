"""Policy gradients: losses of sampled log-probs, without a tokens-by-vocabulary tensor.

Letters in shapes: B rollouts, N tokens, H hidden width, V head rows, c tokens of a part of a chunk.
Arithmetic is float32, or float64 where an input is float64.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vaopd.objective.chunks import plan_chunks
from vaopd.objective.walk import check_ids, log_softmax_, shared_vocabulary, walk

TokenLoss = Callable[[Tensor, slice], Tensor]
"""Maps log-probs of some tokens, and their places among all tokens, to the loss of each."""

REWARD_EPSILON = 1e-4
"""Added to the standard deviation of rewards, as in TRL; the paper has none."""


def group_advantage(
    rewards: Float[Tensor, " B"], problem_ids: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return how much better each response's reward is than those of its siblings.

    Section 4.1.2 of Shao et al. 2024 (arXiv:2402.03300), with the sample standard deviation (K - 1)
    as in TRL::

        A[k] = (r[k] - mean) / (std + 1e-4)    over the K siblings of a problem

    Siblings of equal reward have advantage 0: the problem teaches nothing.

    Args:
        rewards: One for each rollout.
        problem_ids: Number of each rollout's problem, from 0.
    """
    values = rewards.double()

    def total(per_rollout: Tensor) -> Tensor:
        sums = values.new_zeros(len(values)).index_add(0, problem_ids, per_rollout)
        return sums[problem_ids]

    count = total(torch.ones_like(values))
    gap = values - total(values) / count
    deviation = (total(gap.square()) / (count - 1).clamp(min=1)).sqrt()
    return (gap / (deviation + REWARD_EPSILON)).to(rewards.dtype)


def clipped_surrogate(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    *,
    clip: float,
) -> Float[Tensor, " N"]:
    """Return the clipped policy loss of each token.

    The objective of PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7), to be minimised::

        -min(r A, clamp(r, 1 - clip, 1 + clip) A),    r = exp(logprob - old_logprob)
    """
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def sampled_kl(
    logprobs: Float[Tensor, " N"], other_logprobs: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return the low-variance estimate of KL(p || other) at tokens that were sampled from p.

    Estimator k3 of Schulman 2020 ("Approximating KL Divergence"); at least 0, and 0 where both are
    equal::

        exp(d) - d - 1,    d = other_logprob - logprob
    """
    gap = other_logprobs - logprobs
    return gap.exp() - gap - 1


def weighted_token_loss(
    hidden: Float[Tensor, "N H"],
    head: Float[Tensor, "V H"],
    ids: Int[Tensor, " N"],
    token_weights: Float[Tensor, " N"],
    loss_of: TokenLoss,
    *,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the weighted sum of a loss of each token's log-prob, and the NLL of each, in nats.

    For losses that depend on the distribution only through the sampled token, such as policy
    gradients. With f for ``loss_of`` and z for the logits::

        loss = sum_n c[n] f(log p[n, ids[n]]),    d f / d z[j] = f' (1[j = id] - p[j])

    f' is taken by automatic differentiation of one number for each token.

    Args:
        hidden: Last hidden states of the student that predict the ids; differentiable.
        head: Weights of its language-model head; differentiable.
        ids: The sampled tokens.
        token_weights: Weight of each token, a constant.
        loss_of: Differentiable in the log-probs; the loss of a token depends on it alone.
        vocab_size: Ids that exist; head rows from here on are padding. None means all rows.
        chunk_size: Tokens in memory at a time; None fits `chunks.CHUNK_BYTES`.

    Raises:
        AlignmentError: An id lies outside [0, vocab_size).
        ConfigError: ``vocab_size`` or ``chunk_size`` does not fit the head.
    """
    vocabulary = shared_vocabulary(vocab_size, len(head))
    plan = plan_chunks(vocabulary, chunk_size, hidden, head, num_buffers=1)
    check_ids(ids, vocabulary)
    labels, scratch = ids.long()[:, None], plan.scratch(hidden)

    def measure(tokens: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        places = range(tokens.start, tokens.stop, len(scratch))
        losses, nlls = [], []
        for start, part in zip(places, logits.split(len(scratch)), strict=True):
            own = slice(start, start + len(part))
            total = log_softmax_(part, scratch[: len(part)])
            logprobs = part.gather(-1, labels[own]).squeeze(-1)
            loss, slope = _with_slope(logprobs, own, loss_of)
            torch.div(scratch[: len(part)], -total, out=part)
            part.scatter_add_(-1, labels[own], torch.ones_like(part[:, :1])).mul_(slope[:, None])
            losses.append(loss)
            nlls.append(-logprobs)
        return torch.cat(losses), torch.cat(nlls)

    return walk(hidden, head, token_weights, measure, plan)


def _with_slope(
    logprobs: Float[Tensor, " c"], tokens: slice, loss_of: TokenLoss
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return the loss of each token and its derivative by the token's log-prob."""
    # The walk is a function of autograd, in which gradients are off.
    with torch.enable_grad():
        leaf = logprobs.detach().clone().requires_grad_()
        loss = loss_of(leaf, tokens)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), slope
