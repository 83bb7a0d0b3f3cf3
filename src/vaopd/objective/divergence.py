"""Per-token losses and scores from hidden states, without a tokens-by-vocabulary tensor.

Letters in shapes: N tokens, H hidden width (s student, t teacher), V head rows, c tokens of a part
of a chunk. Arithmetic is float32, or float64 where an input is float64, whatever autocast says.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vaopd.errors import ConfigError
from vaopd.objective.chunks import plan_chunks
from vaopd.objective.target import Target
from vaopd.objective.walk import (
    Measure,
    check_ids,
    log_softmax_,
    shared_vocabulary,
    walk,
    write_logits,
)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far the student is from its target."""

    name: Literal["reverse", "forward", "jsd"] = "reverse"
    beta: float = 0.5
    """Of ``jsd``: the share of the target in the mixture, above 0 and below 1."""


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
    vocabulary = shared_vocabulary(vocab_size, len(head))
    plan = plan_chunks(vocabulary, chunk_size, hidden, head, num_buffers=1)
    check_ids(ids, vocabulary)
    result = torch.empty(len(ids), dtype=plan.dtype, device=hidden.device)
    buffer = plan.buffer(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        for tokens in plan.chunks(len(ids)):
            logits = write_logits(hidden[tokens], head[:vocabulary], buffer)
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
    return weighted_divergence(
        student_hidden,
        student_head,
        Target(hidden=teacher_hidden, head=teacher_head),
        token_weights,
        vocab_size=vocab_size,
        chunk_size=chunk_size,
    )


def weighted_divergence(
    student_hidden: Float[Tensor, "N Hs"],
    student_head: Float[Tensor, "Vs Hs"],
    target: Target,
    token_weights: Float[Tensor, " N"],
    *,
    kind: Divergence = Divergence(),
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the weighted sum of a divergence to a target over the tokens, and that of each, nats.

    With p for the student and q for the target, over ids j < vocab_size, and m = b q + (1 - b) p::

        reverse  D[n] = sum_j p (log p - log q),          d D / d z = p (log p - log q - D)
        forward  D[n] = sum_j q (log q - log p),          d D / d z = p - q
        jsd      D[n] = b KL(q || m) + (1 - b) KL(p || m),
                 d D / d z = (1 - b) p (log p - log m - KL(p || m))

    The last is the generalized Jensen-Shannon divergence of Agarwal et al. 2024 (GKD), with b for
    ``beta`` as TRL has it: towards 0 it approaches b times the forward KL, towards 1 the reverse.
    The gradient is made in the same walk as the value. Target and weights are constants.

    Args:
        student_hidden: Last hidden states of the student at the positions that predict the
            tokens; differentiable.
        student_head: Weights of its language-model head; differentiable.
        target: What is learned.
        token_weights: Weight of each token; a weight of 0 leaves the divergence reported only.
        kind: Which divergence.
        vocab_size: Ids both models share; head rows from here on are padding. None means all rows
            of equal heads.
        chunk_size: Tokens in memory at a time; None fits `chunks.CHUNK_BYTES`.

    Returns:
        The loss, with gradient, and the divergence of each token, without.

    Raises:
        ConfigError: The heads differ in rows and ``vocab_size`` is None, or an option does not
            fit the heads.
    """
    vocabulary = shared_vocabulary(vocab_size, len(student_head), len(target.head))
    tensors = (student_hidden, student_head, target.hidden, target.head)
    num_buffers = 3 if target.is_contrast else 2
    plan = plan_chunks(vocabulary, chunk_size, *tensors, num_buffers=num_buffers)
    write_target = target.writer(plan)
    scratch = plan.scratch(target.hidden)
    gradient_ = {"reverse": _reverse_, "forward": _forward_, "jsd": partial(_jsd_, kind.beta)}

    def measure(tokens: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        wanted = write_target(tokens)
        parts = zip(logits.split(len(scratch)), wanted.split(len(scratch)), strict=True)
        found = torch.cat([gradient_[kind.name](*part, scratch[: len(part[0])]) for part in parts])
        return found, found

    return walk(student_hidden, student_head, token_weights, measure, plan)


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
    vocabulary = shared_vocabulary(vocab_size, len(student_head))
    plan = plan_chunks(vocabulary, chunk_size, student_hidden, student_head, num_buffers=1)
    check_ids(ids, vocabulary)
    measure = _cross_entropy(ids.long(), label_smoothing, plan.scratch(student_hidden))
    return walk(student_hidden, student_head, token_weights, measure, plan)


def _reverse_(student: Tensor, teacher: Tensor, scratch: Tensor) -> Float[Tensor, " c"]:
    """Return KL(student || target) of a few tokens; the student's logits become its gradient."""
    log_softmax_(teacher, scratch)
    probabilities = scratch.div_(log_softmax_(student, scratch))
    log_ratio = torch.sub(student, teacher, out=teacher)
    kl = torch.mul(probabilities, log_ratio, out=student).sum(-1)
    torch.mul(probabilities, log_ratio.sub_(kl[:, None]), out=student)
    return kl


def _forward_(student: Tensor, teacher: Tensor, scratch: Tensor) -> Float[Tensor, " c"]:
    """Return KL(target || student) of a few tokens; the student's logits become its gradient."""
    log_softmax_(teacher, scratch)
    probabilities = scratch.div_(log_softmax_(student, scratch))
    log_ratio = torch.sub(teacher, student, out=student)
    wanted = teacher.exp_()
    kl = log_ratio.mul_(wanted).sum(-1)
    torch.sub(probabilities, wanted, out=student)
    return kl


def _jsd_(beta: float, student: Tensor, teacher: Tensor, scratch: Tensor) -> Float[Tensor, " c"]:
    """Return the generalized JSD of a few tokens; the student's logits become its gradient."""
    log_softmax_(teacher, scratch)
    probabilities = scratch.div_(log_softmax_(student, scratch))
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    of_student = student.sub_(mixture)
    of_teacher = torch.sub(teacher, mixture, out=mixture)
    to_teacher = of_teacher.mul_(teacher.exp_()).sum(-1)
    to_student = torch.mul(probabilities, of_student, out=teacher).sum(-1)
    of_student.sub_(to_student[:, None]).mul_(probabilities).mul_(1 - beta)
    return beta * to_teacher + (1 - beta) * to_student


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
    total = log_softmax_(logits, scratch)
    nll = -logits.gather(-1, labels).squeeze(-1)
    loss = (1 - smoothing) * nll - smoothing * logits.mean(-1)
    torch.div(scratch, total, out=logits).sub_(smoothing / logits.shape[-1])
    logits.scatter_add_(-1, labels, torch.full_like(logits[:, :1], smoothing - 1))
    return loss, nll
