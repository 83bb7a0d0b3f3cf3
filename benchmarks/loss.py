"""The loss alone: ours, the plain formula, TRL's chunked divergence and Liger's fused one.

The weighted reverse KL from hidden states and heads, forward and backward, all weights 1/N. Each
arm also says how far its value and gradients are from the float64 formula at a small size.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Arm, NotMeasured
from benchmarks.scales import TINY, LossSize, Scale
from benchmarks.subjects import compute_dtype
from vaopd.objective.divergence import weighted_reverse_kl

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss of vaopd."""
    return weighted_reverse_kl(student_hidden, student_head, teacher_hidden, teacher_head, weights)[
        0
    ]


def plain(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss from whole logits, at least in float32, by autograd."""
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    student = (student_hidden @ student_head.T).to(wide).log_softmax(-1)
    teacher = (teacher_hidden @ teacher_head.T).to(wide).log_softmax(-1)
    return (weights * (student.exp() * (student - teacher)).sum(-1)).sum()


def trl(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss from TRL's per-token reverse KL (its ``beta`` of 1)."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        student_hidden, student_head, None, teacher_hidden, teacher_head, None, 1.0
    )
    return (weights * divergence).sum()


def liger(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return Liger's fused linear JSD at ``beta`` 1, reverse KL averaged over the tokens."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    # Its compiled form needs a GPU or a C++ compiler; the arithmetic is the same.
    fused = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=student_hidden.is_cuda
    )
    labels = torch.zeros(len(student_hidden), dtype=torch.long, device=student_hidden.device)
    result = fused(student_hidden, student_head, teacher_hidden, teacher_head, labels)
    return result * weights.sum()


def _builder(name: str, loss: Loss, package: str | None = None) -> Callable[[Scale, str], Arm]:
    def build(scale: Scale, device: str) -> Arm:
        if package is not None and importlib.util.find_spec(package) is None:
            raise NotMeasured(f"no {package}")
        dtype = compute_dtype(device)
        inputs = make_inputs(scale.loss, dtype, device)

        operations = counted_operations(scale.loss)[name]
        errors: dict[str, float] = {}

        def run() -> dict[str, Any]:
            value = loss(*inputs)
            value.backward()
            return {"loss": value.item(), "errors": errors, "operations": operations}

        return Arm(run=run, warm_up=lambda: errors.update(agreement(loss, dtype, device)))

    return build


def make_inputs(size: LossSize, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return student hidden states and head, the teacher's, and weights that sum to one."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, width: int, scale: float) -> Tensor:
        result = torch.empty(rows, width, dtype=dtype, device=device)
        return result.normal_(0, scale, generator=generator)

    inputs = []
    for width in (size.student_width, size.teacher_width):
        inputs.append(normal(size.tokens, width, 1.0))
        inputs.append(normal(size.vocabulary, width, 2 / width**0.5))
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    inputs.append(torch.full((size.tokens,), 1 / size.tokens, device=device))
    return inputs


def agreement(loss: Loss, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return the error of value and gradients relative to the float64 formula's largest entry."""
    inputs = make_inputs(TINY.loss, dtype, device)
    exact = [tensor.detach().double() for tensor in inputs]
    for tensor in exact[:2]:
        tensor.requires_grad_()
    results = []
    for function, tensors in ((loss, inputs), (plain, exact)):
        value = function(*tensors)
        value.backward()
        results.append([value.detach(), tensors[0].grad, tensors[1].grad])
    names = ("value", "hidden gradient", "head gradient")
    return {
        name: float((got.double() - want).abs().max() / want.abs().max())
        for name, got, want in zip(names, *results, strict=True)
    }


def counted_operations(size: LossSize) -> dict[str, int]:
    """Return the matrix-product operations that each arm needs at least.

    Two operations for each multiplication and addition. Logits of both models once, and the two
    gradient products of the student; TRL makes all logits again in its backward pass.
    """
    student = 2 * size.tokens * size.vocabulary * size.student_width
    teacher = 2 * size.tokens * size.vocabulary * size.teacher_width
    once = 3 * student + teacher
    again = once + student + teacher
    return {"ours": once, "plain formula": once, "trl": again, "liger": once}


ARMS = {
    "ours": _builder("ours", ours),
    "plain formula": _builder("plain formula", plain),
    "trl": _builder("trl", trl, "trl"),
    "liger": _builder("liger", liger, "liger_kernel"),
}
