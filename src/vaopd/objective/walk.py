"""Computes per-token losses chunk by chunk; all per-token losses use this walk.

The logits of one chunk are computed, used and overwritten, so no tokens-by-vocabulary tensor is
allocated. Letters in shapes: N tokens, H hidden width, V head rows. Arithmetic is float32, or
float64 if an input is float64; autocast does not change it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vaopd.errors import AlignmentError, ConfigError
from vaopd.objective.chunks import ChunkPlan

CAST_BYTES = 8 * 2**20
"""Bytes of the block of head rows that is held in working precision at the same time."""


Measure = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Maps tokens and their student logits to (loss, reported number) of each token.

It overwrites the logits with the gradient of each token's loss.
"""


def walk(
    hidden: Tensor, head: Tensor, weights: Tensor, measure: Measure, plan: ChunkPlan
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss with its graph, and the reported number of each token."""
    if not torch.is_grad_enabled():
        # Inside forward, the grad mode is always off. Only here is it known that gradients are not
        # needed; they are two thirds of the student's computation.
        hidden, head = hidden.detach(), head.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkWalk.apply(hidden, head, weights.detach(), measure, plan)  # pyright: ignore[reportReturnType]


class _ChunkWalk(torch.autograd.Function):
    """Computes value and gradients of a weighted per-token loss in one walk over the tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, weights: Tensor, measure: Measure, plan: ChunkPlan
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = (hidden.dtype, head.dtype)
        to_hidden, to_head = (
            tensor.new_zeros(tensor.shape, dtype=plan.dtype) if needed else None
            for tensor, needed in zip((hidden, head), ctx.needs_input_grad[:2], strict=True)
        )
        weights, used_head = weights.to(plan.dtype), head[: plan.vocabulary]
        losses, reported = torch.zeros_like(weights), torch.zeros_like(weights)
        buffer = plan.buffer(hidden)
        for tokens in plan.chunks(len(hidden)):
            logits = write_logits(hidden[tokens], used_head, buffer)
            losses[tokens], reported[tokens] = measure(tokens, logits)
            gradient = logits.mul_(weights[tokens, None])
            if to_hidden is not None:
                _add_hidden_gradient_(to_hidden[tokens], gradient, used_head, hidden.dtype)
            if to_head is not None:
                _add_head_gradient_(
                    to_head[: plan.vocabulary], gradient, hidden[tokens], head.dtype
                )
        ctx.gradients = (to_hidden, to_head)
        ctx.mark_non_differentiable(reported)
        return (weights * losses).sum(), reported

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by once_differentiable
        ctx: Any, scale: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        if scale is None:
            return (None,) * 5
        if ctx.gradients is None:
            raise RuntimeError(
                "this loss was already differentiated and its gradients were given away; "
                "call the loss function again for a second backward"
            )
        # Scale in place and drop our reference: a copy of the head's gradient would double the
        # peak, and autograd uses a gradient as `.grad` without a copy only if no other reference
        # to it exists.
        gradients, ctx.gradients = ctx.gradients, None
        to_hidden, to_head = (
            None if gradient is None else _narrowed_(gradient.mul_(scale), dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return to_hidden, to_head, None, None, None


def log_softmax_(logits: Tensor, scratch: Tensor) -> Tensor:
    """Turn logits into log-probabilities in place.

    Writes unnormalised probabilities to ``scratch`` and returns their sum for each row.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    total = torch.exp(logits, out=scratch).sum(-1, keepdim=True)
    logits.sub_(total.log())
    return total


def write_logits(hidden: Tensor, head: Tensor, buffer: Tensor) -> Tensor:
    """Write ``hidden @ head.T`` to the first rows of the buffer and return these rows."""
    logits = buffer[: len(hidden)]
    if _on_tensor_cores(logits.dtype, hidden.dtype, head):
        # Half-precision factors with float32 products and sums: the same result as the upcast
        # below, except for the order of the sum.
        return torch.mm(hidden, head.T, out_dtype=logits.dtype, out=logits)
    wide = hidden.to(logits.dtype)
    for rows, block in _wide_blocks(head, logits.dtype):
        torch.mm(wide, block.T, out=logits[:, rows])
    return logits


def _add_hidden_gradient_(
    target: Tensor, gradient: Tensor, head: Tensor, hidden_dtype: torch.dtype
) -> None:
    """Add ``gradient @ head`` to the gradient of one chunk's hidden states."""
    if _on_tensor_cores(target.dtype, hidden_dtype, head):
        torch.addmm(target, gradient.to(head.dtype), head, out_dtype=target.dtype, out=target)
        return
    for rows, block in _wide_blocks(head, target.dtype):
        target.addmm_(gradient[:, rows], block)


def _add_head_gradient_(
    target: Tensor, gradient: Tensor, hidden: Tensor, head_dtype: torch.dtype
) -> None:
    """Add ``gradient.T @ hidden`` to the gradient of the used head rows."""
    if hidden.dtype == head_dtype and _on_tensor_cores(target.dtype, head_dtype, hidden):
        narrow = gradient.to(hidden.dtype)
        torch.addmm(target, narrow.T, hidden, out_dtype=target.dtype, out=target)
        return
    target.addmm_(gradient.T, hidden.to(target.dtype))


def _on_tensor_cores(working: torch.dtype, hidden_dtype: torch.dtype, matrix: Tensor) -> bool:
    """Return whether half-precision products with float32 sums are available."""
    is_half = matrix.dtype in (torch.bfloat16, torch.float16)
    same = matrix.dtype == hidden_dtype
    return matrix.is_cuda and is_half and same and working == torch.float32


def _wide_blocks(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of head rows in the working dtype.

    A head that already has this dtype is one block. Any other head is converted block by block,
    because a whole copy in the wider dtype can use more than a gigabyte.
    """
    row_bytes = head.shape[1] * dtype.itemsize
    step = len(head) if head.dtype == dtype else max(1, CAST_BYTES // row_bytes)
    for start in range(0, len(head), step):
        rows = slice(start, min(start + step, len(head)))
        yield rows, head[rows].to(dtype)


def _narrowed_(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the contiguous matrix rounded to ``dtype``, in the same memory.

    A second buffer would add half of the largest tensor of the step to the peak. Row r of the
    result ends at byte 2 (r+1) H, and row r of the source starts at byte 4 r H. So writing from
    front to back never overwrites a row that is not read yet. Each block is first rounded in a
    temporary tensor, because the first block overlaps itself. The result keeps the wide storage
    in memory.
    """
    if wide.dtype == dtype:
        return wide
    narrow = wide.view(-1).view(dtype)[: wide.numel()].view(wide.shape)
    step = max(1, CAST_BYTES // max(1, wide.shape[1] * wide.element_size()))
    for start in range(0, len(wide), step):
        rows = slice(start, start + step)
        narrow[rows] = wide[rows].to(dtype)
    return narrow


def shared_vocabulary(vocab_size: int | None, *head_rows: int) -> int:
    """Return the number of ids to normalise over, after checking that the heads have them."""
    if vocab_size is None:
        if len(set(head_rows)) > 1:
            raise ConfigError(
                f"student and teacher heads have {head_rows[0]} and {head_rows[1]} rows; "
                "give vocab_size, the number of token ids the two share "
                "(the length of the tokenizer)"
            )
        return head_rows[0]
    if not 1 <= vocab_size <= min(head_rows):
        raise ConfigError(
            f"vocab_size is {vocab_size}, expected 1 to {min(head_rows)}, the rows of the "
            "smaller head; give the number of token ids the models share"
        )
    return vocab_size


def check_ids(ids: Tensor, vocabulary: int) -> None:
    """Raise an error if an id is outside the vocabulary."""
    outside = (ids < 0) | (ids >= vocabulary)
    if outside.any():
        position = int(outside.nonzero()[0])
        raise AlignmentError(
            f"token {position} has id {int(ids[position])}, expected 0 to {vocabulary - 1}; "
            "check that both models use this tokenizer and that the sampler never draws "
            "padding rows of the head"
        )
