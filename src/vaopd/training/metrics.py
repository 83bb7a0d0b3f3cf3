"""Builds the metrics row of a step and its rollout rows for the report."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from vaopd.evaluation.validation import token_texts
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.papo import LARGEST_KL
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.objective.advantage import rollout_advantage
from vaopd.objective.concentration import effective_share, relative_share
from vaopd.objective.policy import sampled_kl
from vaopd.pictures import save_picture
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout
from vaopd.training.step_result import StepResult


def step_metrics(
    result: StepResult,
    problems: Sequence[Problem],
    *,
    step: int,
    learning_rate: float,
    is_own_text: bool,
) -> dict[str, Any]:
    """Return one row of ``metrics.jsonl``; docs/metrics.md explains the names and units.

    Numbers that are not finite are left out, because JSON cannot hold them; skipped steps have
    such numbers.
    """
    divergence = torch.cat(result.token_divergence)
    lengths = [len(rollout.response_ids) for rollout in result.rollouts]
    seconds = result.seconds
    row: dict[str, Any] = {
        "step": step,
        "loss": result.loss,
        f"{result.measure}/mean": divergence.mean().item(),
        **weights_of_images(result.weights, result.responses),
        **policy_summary(result),
        "response/length": fmean(lengths),
        "response/tokens": sum(lengths),
        "response/repeated_share": fmean(repeated_share(r.response_ids) for r in result.rollouts),
        "response/same_share": same_share(result.rollouts),
        "response/truncated_share": fmean(r.finish_reason == "length" for r in result.rollouts),
        "gradient_norm": result.gradient_norm,
        **result.gradient_statistics,
        "learning_rate": learning_rate,
        "micro_batch_tokens": result.micro_batch_tokens,
        "rollout/lag": result.lag,
        **{f"time/{phase}": round(value, 4) for phase, value in seconds.items()},
        **{f"beside/{phase}": round(s, 4) for phase, s in result.seconds_beside.items()},
        "tokens_per_second": sum(lengths) / sum(seconds.values()),
    }
    if result.sent_bytes:
        row["push/bytes"] = result.sent_bytes
    if (texts := result.responses.text_only) is not None:
        row["data/text_only_share"] = fmean(texts)
    if result.noise_floor is not None:
        row["va/noise_floor"] = result.noise_floor
    # The student's accuracy is measured only on responses that the student wrote.
    if is_own_text and any(problem.answer is not None for problem in problems):
        grades = [g for g in result.graded.grades if g is not None]
        row["accuracy"] = fmean(g.is_correct for g in grades)
        row["response/unparsed_share"] = fmean(g.extracted is None for g in grades)
    if result.skipped_in_a_row:
        row["skipped_in_a_row"] = result.skipped_in_a_row
    return {key: value for key, value in row.items() if math.isfinite(value)}


def weights_of_images(weights: Weights, responses: StepRollouts) -> dict[str, float]:
    """Return what is said of advantage and weights: of problems with an image; {} without any."""
    seen = responses.has_image
    if not seen.any():
        return {}
    if not seen.all():
        weights, responses = weights.only(seen), responses.with_image()
    return {**advantage_summary(weights), **weight_summary(weights, responses)}


def repeated_share(ids: Sequence[int]) -> float:
    """Return the share of a response's runs of four tokens that occurred before in it."""
    runs = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def same_share(rollouts: Sequence[Rollout]) -> float:
    """Return the share of responses that equal another response to the same problem."""
    counts = Counter((rollout.problem_id, rollout.response_ids) for rollout in rollouts)
    return sum(count for count in counts.values() if count > 1) / len(rollouts)


def advantage_summary(weights: Weights) -> dict[str, float]:
    """Return the mean advantage and the shares of advantage and of tokens in the high group."""
    if weights.advantage is None or weights.high is None:
        return {}
    # Use only positive advantages: the sum of signed advantages can be zero or negative.
    gains = weights.advantage.clamp(min=0)
    mass = gains.sum().clamp(min=1e-12)
    in_high = gains[weights.high]
    num_high = max(1, len(in_high))  # the group is empty at method.high_fraction=0
    return {
        "va/mean": rollout_advantage(weights.advantage, weights.mask).mean().item(),
        "va/high_share": (in_high.sum() / mass).item(),
        "va/high_zero_share": int((in_high == 0).sum()) / num_high,
        "weights/rollout_max": weights.rollout.max().item(),
        "weights/rollout_min": weights.rollout.min().item(),
    }


def weight_summary(weights: Weights, responses: StepRollouts) -> dict[str, float]:
    """Return how unevenly a step's weights lie, and whether longer siblings weigh more."""
    return {
        "weights/effective_share": effective_share(weights.token, weights.mask),
        "weights/relative_share": relative_share(weights.token, responses.uniform),
        "weights/length_correlation": length_correlation(weights.rollout, responses),
    }


def policy_summary(result: StepResult) -> dict[str, float]:
    """Return what a policy gradient's rewards and log-probs say of a step; nothing otherwise."""
    responses, found = result.responses, {}
    if responses.rewards is not None:
        rewards = responses.rewards
        groups = [rewards[responses.problem_ids == i] for i in responses.problem_ids.unique()]
        found["reward/equal_share"] = fmean(bool((one == one[0]).all()) for one in groups)
    if result.measure == "nll":
        logprobs = -torch.cat(result.token_divergence).cpu()
        if responses.reference_logprobs is not None:
            reference = torch.cat(list(responses.reference_logprobs))
            found["kl/reference"] = sampled_kl(logprobs, reference).mean().item()
        if responses.masked_logprobs is not None:
            masked = torch.cat(list(responses.masked_logprobs))
            found["kl/masked"] = sampled_kl(logprobs, masked).clamp(max=LARGEST_KL).mean().item()
        if responses.sampled_logprobs is not None:
            gap = logprobs - torch.cat(list(responses.sampled_logprobs))
            found["rollout/log_ratio"] = gap.abs().mean().item()
    return found


def length_correlation(rollout: Float[Tensor, " B"], responses: StepRollouts) -> float:
    """Return the mean over problems of Spearman's correlation of siblings' weight and length.

    Problems whose siblings all have one weight or one length are left out; not a number if all are.
    """
    lengths = responses.mask.sum(-1)
    found = []
    for problem in responses.problem_ids.unique():
        siblings = responses.problem_ids == problem
        weight, length = rollout[siblings], lengths[siblings]
        if len(weight.unique()) > 1 and len(length.unique()) > 1:
            found.append(float(np.corrcoef(rankdata(weight), rankdata(length))[0, 1]))
    return fmean(found) if found else math.nan


Pictures = dict[str, dict[str, list[str]]]
"""Maps a problem id to the columns ``images`` and ``degraded_images``.

The columns, and ``teacher_images``, hold paths relative to the folder of the row's file.
"""


def problem_pictures(
    problems: Sequence[Problem],
    encoder: PromptEncoder,
    folder: Path,
    *,
    degraded_for: Literal["student", "teacher"] | None,
) -> Pictures:
    """Save the images of every problem, as the models saw them, once, and return their paths.

    A baseline that does not score the degraded view has no ``degraded_images``. Where they are the
    teacher's, a problem with ``teacher_images`` has these as well.
    """

    def saved(images: list[Image.Image]) -> list[str]:
        return [f"images/{save_picture(image, folder / 'images')}" for image in images]

    def of(problem: Problem) -> dict[str, list[str]]:
        seen = problem.for_teacher() if degraded_for == "teacher" else problem
        found = {"images": saved(encoder.original_images(problem))}
        if seen is not problem:
            found["teacher_images"] = saved(encoder.original_images(seen))
        if degraded_for is not None:
            found["degraded_images"] = saved(encoder.degraded_images(seen))
        return found

    return {problem.id: of(problem) for problem in problems}


def rollout_rows(
    result: StepResult,
    problems: Sequence[Problem],
    student: VisionLanguageModel,
    pictures: Pictures,
    *,
    step: int,
) -> list[dict[str, Any]]:
    """Return the rows of ``rollouts/step_NNNNNN.jsonl``: each response, token by token."""
    by_id = {problem.id: problem for problem in problems}
    texts = token_texts(student, result.rollouts)
    rows = []
    for index, rollout in enumerate(result.rollouts):
        verdict = result.graded.grades[index]
        length = len(rollout.response_ids)
        weights = result.weights
        problem = by_id[rollout.problem_id]
        row: dict[str, Any] = {
            "step": step,
            "problem_id": rollout.problem_id,
            "sibling": rollout.sibling,
            "prompt": problem.prompt,
            **pictures[problem.id],
            "answer": problem.answer,
            "response": result.graded.texts[index],
            "is_correct": verdict.is_correct if verdict else None,
            "finish_reason": rollout.finish_reason,
            **(
                {}
                if rollout.weights_version is None
                else {"weights_version": rollout.weights_version}
            ),
            "rollout_weight": weights.rollout[index].item(),
            "token_ids": list(rollout.response_ids),
            "tokens": [texts[i] for i in rollout.response_ids],
            result.measure: _rounded(result.token_divergence[index]),
            "token_weight": _rounded(weights.token[index, :length]),
        }
        has_image = not problem.is_text_only
        if result.scores is not None:
            row["original_logprobs"] = _rounded(result.scores.original_logprobs[index])
            if result.scores.degraded_logprobs is not None and has_image:
                row["degraded_logprobs"] = _rounded(result.scores.degraded_logprobs[index])
        if weights.advantage is not None and weights.high is not None and has_image:
            row["visual_advantage"] = _rounded(weights.advantage[index, :length])
            row["is_high"] = weights.high[index, :length].tolist()
        rows.append(row)
    return rows


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
