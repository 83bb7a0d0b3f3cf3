"""How unevenly the loss is spread over tokens, and two ways to spread it more evenly.

Letters in shapes: B rollouts, T response tokens (padded). Uniform weights u are those of plain
on-policy distillation; c / u says how many times as much a token weighs. All arithmetic is
float64, results have the weights' dtype.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vaopd.errors import ConfigError

STEPS = 40
"""Bisections; each halves the interval of exponents, so the last ones change nothing."""

LARGEST_EXPONENT = 64.0


def effective_share(weights: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Return the effective sample size of the token weights, as a share of all tokens.

    This is Kish's effective sample size (sum w)^2 / sum w^2 (Kish 1965), divided by the number of
    tokens. It is 1 if all weights are equal. The variance of a step's gradient grows as it falls.
    """
    token = weights[mask].double()
    return (token.sum() ** 2 / (token**2).sum() / len(token)).item()


def relative_share(weights: Float[Tensor, "B T"], uniform: Float[Tensor, "B T"]) -> float:
    """Return the effective share against uniform weights, (sum c)^2 / (sum u sum c^2 / u).

    It is 1 exactly where c is proportional to u, so unlike `effective_share` it does not fall with
    the different lengths of responses. It is the effective sample size of importance weights c / u
    over tokens drawn by u. Tokens without uniform weight are padding and have no weight.
    """
    c, u = weights.double(), uniform.double()
    return (c.sum() ** 2 / (u.sum() * _per_unit(c * c, u).sum())).item()


def lift(
    weights: Float[Tensor, "B T"],
    uniform: Float[Tensor, "B T"],
    problem_ids: Int[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Return weights that push no token down against the others of its problem.

    Every weight below the uniform one becomes the uniform one, and all weights of a problem are
    then divided by the same number, so that the problem keeps its share of the loss::

        m[b,t] = max(c[b,t], u[b,t]),    c'[b,t] = m[b,t] sum c / sum m   over the problem

    Args:
        weights: Non-negative; 0 at padding.
        uniform: Result of `uniform_token_weights` of the same rollouts.
        problem_ids: Number of each rollout's problem, from 0.
    """
    raised = weights.double().maximum(uniform.double())
    return _with_sums_of(weights, raised, problem_ids)


def temper(
    weights: Float[Tensor, "B T"],
    uniform: Float[Tensor, "B T"],
    problem_ids: Int[Tensor, " B"],
    *,
    share: float,
) -> Float[Tensor, "B T"]:
    """Return weights of the same order whose `relative_share` is what the caller asks for.

    One exponent e for the whole step; 0 gives uniform weights, 1 the weights themselves::

        c'[b,t] proportional to u[b,t] (c[b,t] / u[b,t])^e    within each problem

    Each problem keeps its share of the loss. The share falls with e where every problem has a total
    weight of 1, so e is found by bisection, between 0 and 64. Tokens of weight 0 keep it, and
    weights that are proportional to the uniform ones stay as they are; so the nearest share that
    can be had may be another one.

    Args:
        weights: Non-negative; 0 at padding.
        uniform: Result of `uniform_token_weights` of the same rollouts.
        problem_ids: Number of each rollout's problem, from 0.
        share: Wanted `relative_share`, in (0, 1].

    Raises:
        ConfigError: ``share`` is out of its range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}, expected a share above 0 and at most 1")
    u, ratio = uniform.double(), _per_unit(weights.double(), uniform.double())
    # A weight of 0 stays 0 under every exponent, 0 included.
    ratio_or_one = ratio.masked_fill(ratio == 0, 1.0)

    def at(exponent: float) -> Tensor:
        raised = (u * ratio_or_one**exponent).masked_fill(ratio == 0, 0.0)
        return _with_sums_of(weights.double(), raised, problem_ids)

    low, high = 0.0, LARGEST_EXPONENT
    for _ in range(STEPS):
        middle = (low + high) / 2
        if relative_share(at(middle), uniform) > share:
            low = middle
        else:
            high = middle
    return at((low + high) / 2).to(weights.dtype)


def _per_unit(values: Tensor, uniform: Tensor) -> Tensor:
    """Return values divided by the uniform weights, 0 at padding."""
    return (values / uniform.masked_fill(uniform == 0, 1.0)).masked_fill(uniform == 0, 0.0)


def _with_sums_of(weights: Tensor, changed: Tensor, problem_ids: Tensor) -> Tensor:
    """Return the changed weights scaled so that each problem has the sum that it had before."""

    def totals(values: Tensor) -> Tensor:
        sums = values.new_zeros(int(problem_ids.max()) + 1, dtype=changed.dtype)
        return sums.index_add(0, problem_ids, values.double().sum(-1))[problem_ids]

    scale = totals(weights) / totals(changed).clamp(min=1e-300)
    return (changed * scale[:, None]).to(weights.dtype)
