"""What the loss and its gradients lose if the factors of its products are rounded.

    python -m benchmarks.precision

Sums are float64, so that only the rounding of the factors is seen: of float32 (24 bits of
mantissa), TF32 (11) and bfloat16 (8), against factors of float64. Random states and heads give
logits of deviation 3, and a teacher that differs from the student by as much again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TOKENS, WIDTH, VOCABULARY = 64, 2048, 32_768
TF32_DROPPED = 13
"""Bits of the 23 of a float32 that TF32 does not have."""


def main() -> None:
    kinds = {"float32": Tensor.float, "TF32": to_tf32, "bfloat16": Tensor.bfloat16}
    inputs = random_inputs()
    exact = loss_and_gradients(*inputs, lambda tensor: tensor)
    print("| factors | loss | gradient of the states | gradient of the head |")
    print("|---|--:|--:|--:|")
    for name, rounded in kinds.items():
        found = loss_and_gradients(*inputs, rounded)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
        print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


def to_tf32(values: Tensor) -> Tensor:
    """Round to the nearest number with 10 bits after the point, as the GPU's units do."""
    bits = values.float().view(torch.int32)
    half = 1 << (TF32_DROPPED - 1)
    return ((bits + half) & ~((1 << TF32_DROPPED) - 1)).view(torch.float32)


def random_inputs() -> tuple[Tensor, ...]:
    """Return states (N, H), head (V, H), the teacher's log-probs (N, V) and weights (N,)."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, head = random(TOKENS, WIDTH), random(VOCABULARY, WIDTH, scale=3 * WIDTH**-0.5)
    teacher = (hidden @ head.T + random(TOKENS, VOCABULARY, scale=3.0)).log_softmax(-1)
    return hidden, head, teacher, random(TOKENS).abs()


def loss_and_gradients(
    hidden: Tensor,
    head: Tensor,
    teacher: Tensor,
    weights: Tensor,
    rounded: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum_n c[n] KL(p[n] || q[n]) and its gradients, with rounded factors of products."""

    def product(one: Tensor, other: Tensor) -> Tensor:
        return rounded(one).double() @ rounded(other).double()

    log_p = product(hidden, head.T).log_softmax(-1)
    differences = log_p - teacher
    divergence = (log_p.exp() * differences).sum(-1, keepdim=True)
    to_logits = weights[:, None] * log_p.exp() * (differences - divergence)
    loss = (weights * divergence[:, 0]).sum()
    return loss, product(to_logits, head), product(to_logits.T, hidden)


if __name__ == "__main__":
    main()
