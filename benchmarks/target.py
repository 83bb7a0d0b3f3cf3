"""The target of the loss: the teacher's distribution, and the contrast between its two views.

The same loss as in the phase ``loss``. The contrast makes a third tensor of logits for each chunk,
from hidden states of the degraded view.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.loss import make_inputs
from benchmarks.measure import Arm
from benchmarks.scales import TINY, LossSize, Scale
from benchmarks.subjects import compute_dtype
from vaopd.objective.divergence import weighted_divergence
from vaopd.objective.target import Target


def _builder(strength: float) -> Callable[[Scale, str], Arm]:
    def build(scale: Scale, device: str) -> Arm:
        work = _work(scale.loss, strength, device)
        operations = counted_operations(scale.loss, has_contrast=strength > 0)
        return Arm(
            run=lambda: {"loss": work(), "operations": operations},
            warm_up=_work(TINY.loss, strength, device),
        )

    return build


def _work(size: LossSize, strength: float, device: str) -> Callable[[], float]:
    """Return a function that computes loss and gradients once and returns the loss."""
    dtype = compute_dtype(device)
    hidden, head, seen, teacher_head, weights = make_inputs(size, dtype, device)
    unseen = None
    if strength:
        generator = torch.Generator(device).manual_seed(1)
        unseen = torch.empty_like(seen).normal_(generator=generator)
    target = Target(hidden=seen, head=teacher_head, degraded_hidden=unseen, contrast=strength)

    def run() -> float:
        loss, _ = weighted_divergence(hidden, head, target, weights)
        loss.backward()
        return loss.item()

    return run


def counted_operations(size: LossSize, *, has_contrast: bool) -> int:
    """Return the matrix-product operations: three products of the student, one for each view."""
    student = 2 * size.tokens * size.vocabulary * size.student_width
    view = 2 * size.tokens * size.vocabulary * size.teacher_width
    return 3 * student + view * (2 if has_contrast else 1)


ARMS: dict[str, Any] = {"teacher": _builder(0.0), "contrast": _builder(1.0)}
