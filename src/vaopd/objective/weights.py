"""Computes from the visual advantage the share of the loss that each token gets.

Letters in shapes: B rollouts, T response tokens (padded). Siblings are the rollouts of one
problem; they may have any places in the batch. All arithmetic is float64, results have the
advantage's dtype, and no result has a gradient.
"""

import math
from collections.abc import Hashable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vaopd.errors import AlignmentError, ConfigError
from vaopd.objective.advantage import rollout_advantage


def rollout_weights(
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    problem_ids: Int[Tensor, " B"] | Sequence[Hashable],
    *,
    temperature: float = 1.0,
    epsilon: float = 1e-6,
    deviation_floor: float = 0.0,
) -> Float[Tensor, " B"]:
    """Return the share of its problem's loss that each rollout gets.

    Implements Eq. 3 and 4 of Liu et al. 2026 (arXiv:2605.21924), with mean and population
    standard deviation over the K siblings of a problem::

        z[k] = (abar[k] - mean) / (std + epsilon)
        w[k] = softmax_k(z[k] / temperature)

    Standardising removes the scale: siblings that differ by numerical noise get the same
    weights as siblings that differ by a nat. ``deviation_floor``, which is not in the paper,
    replaces std by max(std, deviation_floor).

    An empty response gets weight 0 and is not included in mean, std and softmax, so its
    siblings share the whole weight of the problem. A problem with only empty responses has
    weights 0: it does not contribute to the loss.

    Args:
        advantage: Result of `visual_advantage`; values at padding are ignored.
        response_mask: True at response tokens, False at padding.
        problem_ids: The problem of each rollout; siblings have equal ids.
        temperature: tau; large values approach equal weights.
        epsilon: Added to the standard deviation, in nats.
        deviation_floor: Smallest standard deviation to divide by, in nats; 0 in the paper.

    Returns:
        Non-negative; sums to 1 over the rollouts of each problem.

    Raises:
        AlignmentError: The numbers of ids and rollouts differ, or a response token has a
            non-finite advantage.
        ConfigError: An option is out of its range.
    """
    _check_finite(advantage, response_mask)
    weights = sibling_softmax(
        rollout_advantage(advantage.double(), response_mask),
        response_mask.any(-1),
        problem_ids,
        temperature=temperature,
        epsilon=epsilon,
        deviation_floor=deviation_floor,
    )
    return weights.to(advantage.dtype)


def sibling_softmax(
    score: Float[Tensor, " B"],
    present: Bool[Tensor, " B"],
    problem_ids: Int[Tensor, " B"] | Sequence[Hashable],
    *,
    temperature: float = 1.0,
    epsilon: float = 1e-6,
    deviation_floor: float = 0.0,
) -> Float[Tensor, " B"]:
    """Return `rollout_weights` by any score of a rollout in place of its mean advantage.

    Args:
        score: One finite number for each rollout; ignored where it is not present.
        present: Rollouts that have tokens; the others get weight 0.
        problem_ids: The problem of each rollout; siblings have equal ids.
        temperature: tau; large values approach equal weights.
        epsilon: Added to the standard deviation, in the unit of the score.
        deviation_floor: Smallest standard deviation to divide by, in the unit of the score.

    Raises:
        AlignmentError: The numbers of ids and rollouts differ.
        ConfigError: An option is out of its range.
    """
    _check_temperature(temperature)
    _check_nats("epsilon", epsilon)
    _check_nats("deviation_floor", deviation_floor)
    problem = _problem_indices(problem_ids, present)
    score = score.double()
    total = partial(_sibling_totals, problem=problem, present=present)
    count = total(torch.ones_like(score)).clamp(min=1)
    # A shift does not change softmax, so the gap to the best sibling can replace the deviation
    # from the mean: nothing overflows, and equal siblings get exactly equal weights.
    gap = _gap_to_best(score, problem, present)
    variance = total((gap - total(gap) / count).square()) / count
    scale = variance.sqrt().clamp(min=deviation_floor) + epsilon
    z = gap / scale.clamp(min=torch.finfo(torch.float64).tiny)
    share = (z / temperature).exp().masked_fill(~present, 0.0)
    return share / total(share).clamp(min=torch.finfo(torch.float64).tiny)


def _sibling_totals(values: Tensor, problem: Tensor, present: Tensor) -> Tensor:
    """Return for each rollout the sum of the values of its non-empty siblings."""
    sums = values.new_zeros(len(problem))
    return sums.index_add(0, problem, values.masked_fill(~present, 0.0))[problem]


def _gap_to_best(values: Tensor, problem: Tensor, present: Tensor) -> Tensor:
    """Return each value minus that of its best sibling, at most 0; 0 for empty rollouts."""
    lowest = torch.full_like(values, -math.inf)
    known = values.masked_fill(~present, -math.inf)
    best = lowest.scatter_reduce(0, problem, known, "amax")[problem]
    return (values - best).masked_fill(~present, 0.0)


def high_group(
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    high_fraction: float,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B T"]:
    """Return which tokens belong to the high-advantage group of their response.

    Implements the group H of Eq. 5 of Liu et al. 2026 (arXiv:2605.21924): the max(1, ceil(p T))
    tokens with the largest visual advantage, where p is ``high_fraction``. With a fraction of 0
    the group is empty.

    Clipping makes exact zeros common, so equal tokens often compete for places in the group.
    Without a generator the earlier token is chosen, which prefers the first words; with a
    generator the order is random. It draws one number for each cell of the batch, so the choice
    is reproducible only for the same rows in the same layout: call this once for a whole step.

    Args:
        advantage: Result of `visual_advantage`; anything at padding.
        response_mask: True at response tokens, False at padding; may have holes.
        high_fraction: Share of a response's tokens in the group, in [0, 1].
        generator: Source of the order among equal tokens.

    Returns:
        True in the group, False outside and at padding.

    Raises:
        AlignmentError: A response token has a non-finite advantage.
        ConfigError: ``high_fraction`` is outside [0, 1].
    """
    _check_share("high_fraction", high_fraction)
    _check_finite(advantage, response_mask)
    scores = advantage.detach().masked_fill(~response_mask, -math.inf)
    lengths = response_mask.sum(-1, keepdim=True)
    # 0.07 * 100 is 7.000000000000001 in floating point, and its ceiling must still be 7.
    size = (lengths.double() * high_fraction - 1e-9).ceil().clamp(min=1 if high_fraction else 0)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    before = places
    if generator is not None:
        keys = torch.rand(scores.shape, generator=generator, device=generator.device)
        before = keys.to(scores.device).argsort(dim=-1)
    ranked = scores.gather(-1, before).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(before).scatter_(-1, before.gather(-1, ranked), places)
    return (rank < size) & response_mask


def token_weights(
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    rollout_weights: Float[Tensor, " B"],
    *,
    high_fraction: float = 0.2,
    high_mass: float = 0.5,
    minimum_advantage: float = 0.0,
    generator: torch.Generator | None = None,
    high: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Return the share of its problem's loss that each response token gets.

    Implements the coefficients of Eq. 5 and 6 of Liu et al. 2026 (arXiv:2605.21924)::

        c[b,t] = w[b] lambda / |H|            for t in H, the `high_group`
        c[b,t] = w[b] (1 - lambda) / |L|      for t in L, the other response tokens

    If one group has no tokens, the other group gets the whole weight.

    ``minimum_advantage`` is not in the paper. If the advantage of a response adds up to less,
    its weights move towards equal weights, with s = min(1, sum_t VA / minimum_advantage)::

        lambda = s high_mass + (1 - s) |H| / T

    Args:
        advantage: Result of `visual_advantage`; anything at padding.
        response_mask: True at response tokens, False at padding; may have holes.
        rollout_weights: Result of `rollout_weights`.
        high_fraction: p, the share of a response's tokens in the high group, in [0, 1].
        high_mass: lambda, the share of the weight that the high group gets, in [0, 1].
        minimum_advantage: Sum of advantage over a response, in nats, above which lambda is
            exactly ``high_mass``; 0 in the paper.
        generator: Source of the order among equal tokens; None prefers the earlier.
        high: The high group, if the caller has chosen it; otherwise it is chosen here.

    Returns:
        Non-negative, 0 at padding; sums to the rollout's weight over each response.

    Raises:
        AlignmentError: A response token has a non-finite advantage.
        ConfigError: An option is out of its range.
    """
    _check_share("high_mass", high_mass)
    _check_nats("minimum_advantage", minimum_advantage)
    if high is None:
        options = {"high_fraction": high_fraction, "generator": generator}
        high = high_group(advantage, response_mask, **options)
    num_tokens, num_high = response_mask.sum(-1).double(), high.sum(-1).double()
    num_low = num_tokens - num_high
    mass = torch.full_like(num_tokens, high_mass)
    if minimum_advantage > 0:
        found = advantage.detach().double().masked_fill(~response_mask, 0.0).sum(-1)
        trust = (found / minimum_advantage).clamp(0, 1)
        mass = torch.lerp(num_high / num_tokens.clamp(min=1), mass, trust)
    mass = mass.masked_fill(num_low == 0, 1.0).masked_fill(num_high == 0, 0.0)
    per_high = rollout_weights * mass / num_high.clamp(min=1)
    per_low = rollout_weights * (1 - mass) / num_low.clamp(min=1)
    weights = torch.where(high, per_high[:, None], per_low[:, None])
    return weights.masked_fill(~response_mask, 0.0).detach().to(advantage.dtype)


def uniform_token_weights(
    response_mask: Bool[Tensor, "B T"], problem_ids: Int[Tensor, " B"] | Sequence[Hashable]
) -> Float[Tensor, "B T"]:
    """Return the weights of standard on-policy distillation.

    Implements Eq. 1 of Liu et al. 2026 (arXiv:2605.21924): the mean over the tokens of a
    response, then over the responses of a problem::

        c[b,t] = 1 / (K T[b])

    where K is the number of non-empty siblings. This is not the mean over all tokens of the
    batch, in which long responses have more weight.

    Args:
        response_mask: True at response tokens, False at padding; may have holes.
        problem_ids: The problem of each rollout; siblings have equal ids.

    Returns:
        Float32, 0 at padding; sums to 1 over the rollouts of each problem, to 0 if all are
        empty.

    Raises:
        AlignmentError: There are not as many ids as rollouts.
    """
    problem = _problem_indices(problem_ids, response_mask)
    lengths = response_mask.sum(-1).double()
    siblings = lengths.new_zeros(len(problem)).index_add(0, problem, (lengths > 0).double())
    shares = 1 / (siblings[problem] * lengths).clamp(min=1)
    return (response_mask * shares[:, None]).float()


def without_tokens(
    token_weights: Float[Tensor, "B T"], dropped: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return the weights without some tokens; each response keeps its share of the loss.

    For the masking study, Fig. 2b of Liu et al. 2026 (arXiv:2605.21924). The paper does not say
    how the other tokens are weighted. Here they are scaled, so that each response keeps its
    weight::

        c'[b,t] = c[b,t] sum_s c[b,s] / sum_{s not dropped} c[b,s]   where not dropped, else 0

    Args:
        token_weights: Non-negative; 0 at padding.
        dropped: True at tokens to remove. A response that would lose all its weight keeps all
            of its tokens.

    Returns:
        Non-negative; the sum over each response does not change.
    """
    kept = token_weights.double().masked_fill(dropped, 0.0)
    left = kept.sum(-1, keepdim=True)
    scaled = kept * (token_weights.double().sum(-1, keepdim=True) / left)
    return torch.where(left > 0, scaled, token_weights.double()).to(token_weights.dtype)


def _problem_indices(
    problem_ids: Tensor | Sequence[Hashable], response_mask: Tensor
) -> Int[Tensor, " B"]:
    """Return a number in [0, B) for each rollout, equal for siblings."""
    if len(problem_ids) != len(response_mask):
        raise AlignmentError(
            f"there are {len(problem_ids)} problem ids for {len(response_mask)} rollouts; "
            "give the id of the problem once for each rollout"
        )
    if isinstance(problem_ids, Tensor):
        indices = problem_ids.unique(return_inverse=True)[1]
    else:
        known: dict[Hashable, int] = {}
        numbers = [known.setdefault(name, len(known)) for name in problem_ids]
        indices = torch.tensor(numbers, dtype=torch.int64)
    return indices.to(response_mask.device)


def _check_finite(advantage: Tensor, response_mask: Tensor) -> None:
    """Raise an error if a response token has a non-finite advantage."""
    bad = response_mask & ~advantage.isfinite()
    if bad.any():
        row, position = bad.nonzero()[0].tolist()
        raise AlignmentError(
            f"advantage is not finite at rollout {row}, response token {position}; "
            "compute it with visual_advantage over the same response mask"
        )


def _check_temperature(value: float) -> None:
    """Raise an error if the option is not a valid temperature."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"temperature is {value}, expected a finite number above 0; "
            "for equal weights use uniform_token_weights or a large temperature"
        )


def _check_share(name: str, value: float) -> None:
    """Raise an error if the option is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(
            f"{name} is {value}, expected a share between 0 and 1; the paper's values are "
            "high_fraction 0.2 and high_mass 0.5"
        )


def _check_nats(name: str, value: float) -> None:
    """Raise an error if the option is not a finite amount of nats."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(
            f"{name} is {value}, expected a finite number of nats, at least 0; "
            "leave it out for the paper's value"
        )
