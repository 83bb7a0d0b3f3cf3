"""Measures gradients of a step's rollouts under other weights; none of them is applied."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.models.sharding import whole


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of all parameters; none where a parameter was not used."""

    parts: Sequence[Tensor | None]

    @classmethod
    def taken_from(cls, parameters: Sequence[torch.nn.Parameter]) -> "Gradient":
        """Return the parameters' gradients, which they lose."""
        taken = cls([parameter.grad for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
        return taken

    def dot(self, other: "Gradient") -> float:
        """Return the inner product with another gradient."""
        pairs = zip(self.parts, other.parts, strict=True)
        # Shards of one process are a part of the sum, which `whole` completes.
        sums = [whole((a * b).sum()).double() for a, b in pairs if a is not None and b is not None]
        return float(torch.stack(sums).sum()) if sums else 0.0

    @property
    def norm(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(self.dot(self))


def gradient_statistics(
    token: Float[Tensor, "B T"],
    uniform: Float[Tensor, "B T"],
    problem_ids: Sequence[int] | Tensor,
    gradient_of: Callable[[Tensor], Gradient],
) -> dict[str, float]:
    """Return how a step's gradient compares with uniform weights, and its signal and noise.

    The mean gradient of one half of the problems is a, that of the other half b. They are
    independent, so over many steps::

        signal  a . b          the squared norm of the expected gradient
        noise   |a - b|^2 / 4  the variance of the step's gradient (a + b) / 2

    A single step's values vary much: average signal and noise over steps before you divide them.

    Args:
        token: The step's weights.
        uniform: Those of plain on-policy distillation.
        problem_ids: Number of each rollout's problem, from 0; even and odd ones are the halves.
        gradient_of: Returns the gradient of the loss with some weights, summed over processes.

    Returns:
        ``gradient/uniform_ratio``, ``gradient/uniform_cosine``; with two problems or more
        ``gradient/signal`` and ``gradient/noise``.
    """
    numbers = torch.as_tensor(problem_ids)
    is_odd = (numbers % 2 == 1)[:, None]
    num_problems, num_odd = int(numbers.max()) + 1, (int(numbers.max()) + 1) // 2
    plain = gradient_of(uniform)
    even, odd = gradient_of(token * ~is_odd), gradient_of(token * is_odd)
    even_squared, odd_squared, product = even.dot(even), odd.dot(odd), even.dot(odd)
    # The step's gradient is the sum of both, each divided by the number of all problems.
    norm = math.sqrt(even_squared + odd_squared + 2 * product)
    along = even.dot(plain) + odd.dot(plain)
    found = {
        "gradient/uniform_ratio": norm / plain.norm if plain.norm else math.nan,
        "gradient/uniform_cosine": along / (norm * plain.norm) if norm * plain.norm else math.nan,
    }
    if num_odd:
        a, b = num_problems / (num_problems - num_odd), num_problems / num_odd
        difference = a * a * even_squared + b * b * odd_squared - 2 * a * b * product
        found |= {"gradient/signal": a * b * product, "gradient/noise": difference / 4}
    return found
