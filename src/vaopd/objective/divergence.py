"""Per-token losses and scores from hidden states, without a tokens-by-vocabulary tensor.

Every function walks over chunks of tokens: the logits of one chunk are made, used and
overwritten. Letters in shapes: N tokens, H hidden width (s student, t teacher), V head rows.
Arithmetic is float32, or float64 where an input is float64, whatever autocast says.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vaopd.errors import AlignmentError, ConfigError
from vaopd.objective.chunks import Plan, plan_chunks

CAST_BYTES = 8 * 2**20
"""Bytes of the block of head rows that is converted to working precision at a time."""


Measure = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Maps tokens and their student logits to (loss, number to report) of each token.

It overwrites the logits with the gradient of each token's loss.
"""


def sampled_logprobs(
    hidden: Float[Tensor, "N H"],
    head: Float[Tensor, "V H"],
    ids: Int[Tensor, " N"],
    *,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, " N"]:
    """Return the log-probability of each id, in nats, at temperature 1.

    This is the log p_T(y_t | ...) of Eq. 2 of Liu et al. 2026 (arXiv:2605.21924)::

        log p[n] = z[n, ids[n]] - log sum_{j < vocab_size} exp z[n, j],    z = hidden @ head.T

    Args:
        hidden: Last hidden states at the positions that predict the ids.
        head: Weights of the language-model head.
        ids: The sampled tokens.
        vocab_size: Ids that exist; head rows from here on are padding. None means all rows.
        chunk_size: Tokens in memory at a time; None fits `chunks.CHUNK_BYTES`.

    Returns:
        Float32 (float64 for float64 inputs), without gradient.

    Raises:
        AlignmentError: An id lies outside [0, vocab_size): another tokenizer wrote it, or the
            sampler drew a padding row.
        ConfigError: ``vocab_size`` or ``chunk_size`` does not fit the head.
    """
    hidden, head = hidden.detach(), head.detach()
    vocabulary = _shared_vocabulary(vocab_size, len(head))
    plan = plan_chunks(vocabulary, chunk_size, hidden, head, num_buffers=1)
    _check_ids(ids, vocabulary)
    result = torch.empty(len(ids), dtype=plan.dtype, device=hidden.device)
    buffer = plan.buffer(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        for tokens in plan.chunks(len(ids)):
            logits = _write_logits(hidden[tokens], head[:vocabulary], buffer)
            logits.sub_(logits.amax(-1, keepdim=True))
            chosen = logits.gather(-1, ids[tokens, None].long()).squeeze(-1)
            result[tokens] = chosen - logits.exp_().sum(-1).log_()
    return result


def weighted_reverse_kl(
    student_hidden: Float[Tensor, "N Hs"],
    student_head: Float[Tensor, "Vs Hs"],
    teacher_hidden: Float[Tensor, "N Ht"],
    teacher_head: Float[Tensor, "Vt Ht"],
    token_weights: Float[Tensor, " N"],
    *,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the weighted sum of reverse KL over the tokens, and the KL of each, in nats.

    With the weights c of `token_weights` this is Eq. 6 of Liu et al. 2026 (arXiv:2605.21924),
    with those of `uniform_token_weights` Eq. 1, in both cases summed over problems::

        KL[n] = sum_j p[n,j] (log p[n,j] - log q[n,j]),   p student, q teacher, j < vocab_size
        loss  = sum_n c[n] KL[n]

    The gradient, d KL / d z[j] = p[j] (log p[j] - log q[j] - KL) for a student logit z[j], is
    made in the same walk as the value, so nothing is computed twice and backward only scales.
    The teacher and the weights are constants. Backward runs once for each call.

    Args:
        student_hidden: Last hidden states of the student at the positions that predict the
            tokens; differentiable.
        student_head: Weights of its language-model head; differentiable.
        teacher_hidden: The teacher's hidden states at the same positions, original view.
        teacher_head: Weights of the teacher's head.
        token_weights: Weight of each token; a weight of 0 leaves the KL reported only.
        vocab_size: Ids both models share; head rows from here on are left out before the
            normalisation and get zero gradient. None means all rows of equal heads.
        chunk_size: Tokens in memory at a time; None fits `chunks.CHUNK_BYTES`.

    Returns:
        The loss, with gradient, and the KL of each token, without.

    Raises:
        ConfigError: The heads differ in rows and ``vocab_size`` is None, or an option does not
            fit the heads.
    """
    vocabulary = _shared_vocabulary(vocab_size, len(student_head), len(teacher_head))
    tensors = (student_hidden, student_head, teacher_hidden, teacher_head)
    plan = plan_chunks(vocabulary, chunk_size, *tensors, num_buffers=2)
    measure = _reverse_kl(teacher_hidden.detach(), teacher_head.detach()[:vocabulary], plan)
    return _walk(student_hidden, student_head, token_weights, measure, plan)


def weighted_cross_entropy(
    student_hidden: Float[Tensor, "N H"],
    student_head: Float[Tensor, "V H"],
    ids: Int[Tensor, " N"],
    token_weights: Float[Tensor, " N"],
    *,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the weighted sum of cross-entropy over the tokens, and the NLL of each, in nats.

    For supervised fine-tuning. With e for ``label_smoothing`` and V for ``vocab_size``::

        NLL[n] = -log p[n, ids[n]]
        loss   = sum_n c[n] ((1 - e) NLL[n] - e/V sum_j log p[n,j])

    Args:
        student_hidden: Last hidden states at the positions that predict the ids; differentiable.
        student_head: Weights of the language-model head; differentiable.
        ids: The tokens to learn.
        token_weights: Weight of each token, a constant.
        vocab_size: Ids that exist; head rows from here on get no probability and no gradient.
        label_smoothing: Share of the target that is spread over all ids, in [0, 1].
        chunk_size: Tokens in memory at a time; None fits `chunks.CHUNK_BYTES`.

    Returns:
        The loss, with gradient, and the NLL of each token, not smoothed, without.

    Raises:
        AlignmentError: An id lies outside [0, vocab_size).
        ConfigError: An option is out of its range.
    """
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(
            f"label_smoothing is {label_smoothing}, expected a share between 0 and 1; "
            "0 switches it off"
        )
    vocabulary = _shared_vocabulary(vocab_size, len(student_head))
    plan = plan_chunks(vocabulary, chunk_size, student_hidden, student_head, num_buffers=1)
    _check_ids(ids, vocabulary)
    measure = _cross_entropy(ids.long(), label_smoothing, plan.scratch(student_hidden))
    return _walk(student_hidden, student_head, token_weights, measure, plan)


def _reverse_kl(teacher_hidden: Tensor, teacher_head: Tensor, plan: Plan) -> Measure:
    """Return the measure of KL(student || teacher)."""
    buffer, scratch = plan.buffer(teacher_hidden), plan.scratch(teacher_hidden)

    def measure(tokens: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        teacher = _write_logits(teacher_hidden[tokens], teacher_head, buffer)
        parts = zip(logits.split(len(scratch)), teacher.split(len(scratch)), strict=True)
        kl = torch.cat([_kl_and_gradient_(*part, scratch) for part in parts])
        return kl, kl

    return measure


def _kl_and_gradient_(student: Tensor, teacher: Tensor, scratch: Tensor) -> Float[Tensor, " c"]:
    """Return the KL of a few tokens; their student logits become its gradient."""
    scratch = scratch[: len(student)]
    _log_softmax_(teacher, scratch)
    probabilities = scratch.div_(_log_softmax_(student, scratch))
    log_ratio = torch.sub(student, teacher, out=teacher)
    kl = torch.mul(probabilities, log_ratio, out=student).sum(-1)
    torch.mul(probabilities, log_ratio.sub_(kl[:, None]), out=student)
    return kl


def _cross_entropy(ids: Tensor, smoothing: float, scratch: Tensor) -> Measure:
    """Return the measure of cross-entropy."""

    def measure(tokens: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(logits.split(len(scratch)), ids[tokens].split(len(scratch)), strict=True)
        pairs = [_nll_and_gradient_(*part, smoothing, scratch) for part in parts]
        losses, nlls = zip(*pairs, strict=True)
        return torch.cat(losses), torch.cat(nlls)

    return measure


def _nll_and_gradient_(
    logits: Tensor, ids: Tensor, smoothing: float, scratch: Tensor
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return smoothed and plain NLL of a few tokens; their logits become the loss's gradient."""
    scratch, labels = scratch[: len(logits)], ids[:, None]
    total = _log_softmax_(logits, scratch)
    nll = -logits.gather(-1, labels).squeeze(-1)
    loss = (1 - smoothing) * nll - smoothing * logits.mean(-1)
    torch.div(scratch, total, out=logits).sub_(smoothing / logits.shape[-1])
    logits.scatter_add_(-1, labels, torch.full_like(logits[:, :1], smoothing - 1))
    return loss, nll


def _walk(
    hidden: Tensor, head: Tensor, weights: Tensor, measure: Measure, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss with its graph, and the reported number of each token."""
    if not torch.is_grad_enabled():
        # Inside forward the grad mode is always off, so only this place can see that gradients
        # are not needed; they are two thirds of the student's work.
        hidden, head = hidden.detach(), head.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkWalk.apply(hidden, head, weights.detach(), measure, plan)  # pyright: ignore[reportReturnType]


class _ChunkWalk(torch.autograd.Function):
    """Value and gradients of a weighted per-token loss in one walk over the tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, weights: Tensor, measure: Measure, plan: Plan
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
            logits = _write_logits(hidden[tokens], used_head, buffer)
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
        # Scaled in place without keeping a reference: a copy of the head's gradient would double
        # the peak, and autograd uses a gradient as `.grad` only if it has no other reference.
        gradients, ctx.gradients = ctx.gradients, None
        to_hidden, to_head = (
            None if gradient is None else _narrowed_(gradient.mul_(scale), dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return to_hidden, to_head, None, None, None


def _log_softmax_(logits: Tensor, scratch: Tensor) -> Tensor:
    """Turn logits into log-probabilities in place.

    Leaves unnormalised probabilities in ``scratch`` and returns what they sum to, row by row.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    total = torch.exp(logits, out=scratch).sum(-1, keepdim=True)
    logits.sub_(total.log())
    return total


def _write_logits(hidden: Tensor, head: Tensor, buffer: Tensor) -> Tensor:
    """Write ``hidden @ head.T`` to the front rows of the buffer and return them."""
    logits = buffer[: len(hidden)]
    if _on_tensor_cores(logits.dtype, hidden.dtype, head):
        # Half-precision factors with float32 products and sums: exactly the upcast result
        # below, up to the order of the sum.
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

    A head of that dtype is one block. Otherwise blocks avoid a whole copy in the wider dtype,
    which has over a gigabyte for a large vocabulary.
    """
    row_bytes = head.shape[1] * dtype.itemsize
    step = len(head) if head.dtype == dtype else max(1, CAST_BYTES // row_bytes)
    for start in range(0, len(head), step):
        rows = slice(start, min(start + step, len(head)))
        yield rows, head[rows].to(dtype)


def _narrowed_(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the contiguous matrix rounded to ``dtype``, in the same memory.

    A second buffer would add half of the largest tensor of the step to its peak. Row r of the
    result ends at byte 2 (r+1) H, where row r of the source starts at 4 r H, so writing front
    to back never touches a row that is still to be read; each block is rounded aside first
    because the first one overlaps itself. The result keeps the wide storage alive.
    """
    if wide.dtype == dtype:
        return wide
    narrow = wide.view(-1).view(dtype)[: wide.numel()].view(wide.shape)
    step = max(1, CAST_BYTES // max(1, wide.shape[1] * wide.element_size()))
    for start in range(0, len(wide), step):
        rows = slice(start, start + step)
        narrow[rows] = wide[rows].to(dtype)
    return narrow


def _shared_vocabulary(vocab_size: int | None, *head_rows: int) -> int:
    """Return the number of ids to normalise over, checked against the heads."""
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


def _check_ids(ids: Tensor, vocabulary: int) -> None:
    """Raise if an id is not in the vocabulary."""
    outside = (ids < 0) | (ids >= vocabulary)
    if outside.any():
        position = int(outside.nonzero()[0])
        raise AlignmentError(
            f"token {position} has id {int(ids[position])}, expected 0 to {vocabulary - 1}; "
            "check that both models use this tokenizer and that the sampler never draws "
            "padding rows of the head"
        )
