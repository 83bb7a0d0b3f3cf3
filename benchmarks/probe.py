"""``view.probe=small`` beside the paper's probe, on the shipped teachers and drawn problems.

The responses are the shipped student's own. Rank correlation (Spearman) is over all tokens of all
responses; overlap is the share of the paper's high group that the small probe puts there as well.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Arm, NotMeasured, synchronize
from benchmarks.scales import Scale
from vaopd.config import DataConfig, ViewConfig
from vaopd.models.loading import load_model
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.weights import high_group
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import score_view

HIGH_FRACTION = 0.2
REPEATS = 3


def compared(teacher: str) -> Callable[[Scale, str], Arm]:
    """Return the builder that compares the probes with one of the shipped teachers."""

    def build(scale: Scale, device: str) -> Arm:
        if device == "cuda":
            raise NotMeasured("measured on the CPU; the shipped models are tiny")
        options = {"device": torch.device(device)} | dict.fromkeys(
            ("dtype", "compute_dtype"), torch.float32
        )
        student, model = load_model("tiny:student", **options), load_model(teacher, **options)
        count = 8 if scale.problems < 4 else 64
        data = DataConfig(train="drawn", min_pixels=1024)
        problems = list(DrawnProblems(num_problems=count, seed=7))
        probes = ("full", "small")
        encoders = {p: PromptEncoder(student, data, ViewConfig(probe=p)) for p in probes}
        pairs = {p: [encoders[p].both(problem) for problem in problems] for p in probes}
        originals = [original for original, _ in pairs["full"]]
        degraded = {p: [view for _, view in pairs[p]] for p in probes}
        settings = SamplingSettings(
            num_rollouts=4, temperature=0.7, top_p=0.95, max_new_tokens=96, seed=0, stream="probe"
        )
        groups = TransformersSampler(student).sample(originals, settings)
        responses = [[torch.tensor(r.response_ids) for r in group] for group in groups]

        def score(prompts: list) -> list[torch.Tensor]:
            return score_view(model, prompts, responses, budget_tokens=4096)[1]

        def run() -> dict[str, Any]:
            seen = score(originals)
            advantages, seconds = {}, {probe: [] for probe in probes}
            for _ in range(REPEATS):
                for probe in probes:
                    synchronize(device)
                    started = time.perf_counter()
                    unseen = score(degraded[probe])
                    seconds[probe].append(time.perf_counter() - started)
                    advantages[probe] = [
                        visual_advantage(one[None], two[None], torch.ones(1, len(one)) > 0)[0]
                        for one, two in zip(seen, unseen, strict=True)
                    ]
            full, small = (torch.cat(advantages[probe]) for probe in probes)
            best = {probe: min(seconds[probe]) for probe in probes}
            return {
                "rank_correlation": _rank_correlation(full, small),
                "high_overlap": high_overlap(advantages["full"], advantages["small"]),
                "small_seconds": best["small"],
                "time_ratio": best["small"] / best["full"],
                "tokens": len(full),
            }

        return Arm(run=run, warm_up=lambda: score(degraded["full"]))

    return build


def _rank_correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one.numpy(), two.numpy()).statistic)


def high_overlap(full: list[torch.Tensor], small: list[torch.Tensor]) -> float:
    """Return the share of the high group of the one that the other names as well."""
    both = high = 0
    for one, two in zip(full, small, strict=True):
        mask = torch.ones(1, len(one)) > 0
        first, second = (
            high_group(va[None], mask, high_fraction=HIGH_FRACTION)[0] for va in (one, two)
        )
        both += int((first & second).sum())
        high += int(first.sum())
    return both / high


ARMS = {f"tiny:teacher-{size}": compared(f"tiny:teacher-{size}") for size in "sml"}
