"""The two numbers that the method rests on: its loss, and the log-probs of tokens."""

from typing import Any

import torch
from torch import Tensor

from vaopd.config import DataConfig, ViewConfig
from vaopd.devices import pick_dtype
from vaopd.doctor.bring_up.bench import Bench, Finding, beyond, relative_error
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.divergence import weighted_reverse_kl
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import score_view

TINY_STUDENT = "tiny:student"
DATA = DataConfig(train="", min_pixels=1024)


def objective(bench: Bench) -> Finding:
    """Compare the loss and its gradients with float64 on the CPU, from the same rounded inputs."""
    tokens, width, rows = (512, 1024, 32_768) if bench.is_gpu else (48, 64, 1024)
    dtype = pick_dtype("auto", bench.device)
    # Logits of deviation 3, and a teacher that differs from the student by as much again.
    hidden, other = (bench.random(tokens, width, seed=n).to(dtype) for n in (1, 2))
    head, other_head = (
        bench.random(rows, width, seed=n, scale=3 * width**-0.5).to(dtype) for n in (3, 4)
    )
    weights = bench.random(tokens, seed=5).abs()
    exact = _plain_loss(hidden, head, other, other_head, weights)
    leaves = [t.to(bench.device).requires_grad_() for t in (hidden, head)]
    fixed = [t.to(bench.device) for t in (other, other_head, weights)]
    loss, _ = weighted_reverse_kl(*leaves, *fixed)
    loss.backward()
    found = [loss, *(leaf.grad for leaf in leaves)]
    names = ("loss", "gradient of the states", "gradient of the head")
    numbers = {
        name: relative_error(mine, theirs)
        for name, mine, theirs in zip(names, found, exact, strict=True)
        if mine is not None
    }
    gradient = 1e-4 if dtype == torch.float32 else 0.02
    limits = {"loss": 1e-4, names[1]: gradient, names[2]: gradient}
    summary = f"loss off by {numbers['loss']:.1e}, gradients by {max(numbers.values()):.1e}"
    return Finding(
        numbers={**numbers, "dtype": str(dtype).removeprefix("torch.")},
        summary=summary,
        problems=beyond(numbers, limits),
    )


def _plain_loss(
    hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor, weights: Tensor
) -> list[Tensor]:
    """Return sum_n c[n] KL(p[n] || q[n]) and its gradients, written as in Eq. 1 and 6."""
    leaves = [t.double().requires_grad_() for t in (hidden, head)]
    p = (leaves[0] @ leaves[1].T).log_softmax(-1)
    q = (other.double() @ other_head.double().T).log_softmax(-1)
    loss = (weights.double() * (p.exp() * (p - q)).sum(-1)).sum()
    return [loss, *torch.autograd.grad(loss, leaves)]


def packed_logprobs(bench: Bench) -> Finding:
    """Compare the log-probs of packed siblings with those of plain rows, in bfloat16."""
    precise = tiny_model(bench, torch.float32)
    half = tiny_model(bench, torch.bfloat16)
    prompts = tiny_prompts(half, 4)
    responses = _responses(half, prompts)
    forms = {
        "packed": (half, True),
        "plain": (half, False),
        "packed float32": (precise, True),
        "plain float32": (precise, False),
    }
    moved = {}
    for name, (model, share) in forms.items():
        found = score_view(model, prompts, responses, budget_tokens=8192, share_prefix=share)[1]
        moved[name] = torch.cat(found).double().cpu()
    difference = (moved["packed"] - moved["plain"]).abs()
    numbers: dict[str, Any] = {
        "tokens": len(difference),
        "mean difference": difference.mean().item(),
        "largest difference": difference.max().item(),
        "mean rounding of bfloat16": (moved["plain"] - moved["plain float32"]).abs().mean().item(),
        "largest difference in float32": (
            (moved["packed float32"] - moved["plain float32"]).abs().max().item()
        ),
        "rank agreement": _rank_agreement(moved["packed"], moved["plain"]),
    }
    limits = {"mean difference": 0.05, "largest difference in float32": 5e-3}
    problems = beyond(numbers, limits)
    if not numbers["rank agreement"] >= 0.98:
        problems.append(f"rank agreement is {numbers['rank agreement']:.3f}, below 0.98")
    summary = (
        f"{numbers['mean difference']:.4f} nats apart on average, {difference.max():.3f} at most, "
        f"ranks agree {numbers['rank agreement']:.4f}"
    )
    return Finding(numbers=numbers, summary=summary, problems=problems)


def _rank_agreement(first: Tensor, second: Tensor) -> float:
    """Return Spearman's correlation of numbers without ties."""
    ranks = torch.stack([numbers.argsort().argsort().double() for numbers in (first, second)])
    return torch.corrcoef(ranks)[0, 1].item()


def tiny_model(bench: Bench, compute_dtype: torch.dtype) -> VisionLanguageModel:
    """Return the trained tiny student with float32 weights, as the student of a run."""
    return load_model(
        TINY_STUDENT, device=bench.device, dtype=torch.float32, compute_dtype=compute_dtype
    )


def tiny_prompts(model: VisionLanguageModel, count: int) -> list[EncodedPrompt]:
    """Return prompts that the tiny student knows."""
    encoder = PromptEncoder(model, DATA, ViewConfig())
    return [encoder.original(problem) for problem in DrawnProblems(num_problems=count, seed=7)]


def _responses(model: VisionLanguageModel, prompts: list[EncodedPrompt]) -> list[list[Tensor]]:
    settings = SamplingSettings(
        num_rollouts=3, temperature=1.0, top_p=1.0, max_new_tokens=64, seed=1, stream="bring-up"
    )
    groups = TransformersSampler(model).sample(prompts, settings)
    return [[torch.tensor(r.response_ids) for r in group] for group in groups]
