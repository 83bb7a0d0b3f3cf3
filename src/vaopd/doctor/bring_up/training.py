"""Whole steps: a short run that is continued after a kill, and the memory of long responses."""

import gc
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vaopd.config import RunConfig, load_config
from vaopd.distributed.world import World
from vaopd.doctor.bring_up.bench import Bench, Finding
from vaopd.doctor.estimate import PHASES, Lengths, estimate
from vaopd.methods import make_method
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.teacher.local import load_teacher
from vaopd.training.callbacks import Callback
from vaopd.training.pipeline import Pipeline
from vaopd.training.run import train
from vaopd.training.step import Step
from vaopd.training.student import load_student, make_optimizer

STEPS = 3
MIB = 2**20


class CopyAtCheckpoint(Callback):
    """Copies the run folder as a kill after a checkpoint would leave it."""

    def __init__(self, run: Path, copy: Path, step: int) -> None:
        self.run, self.copy, self.step = run, copy, step

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Copy at the step."""
        if step == self.step:
            shutil.copytree(self.run, self.copy)


def quickstart(bench: Bench) -> Finding:
    """Train three steps of the quickstart, continue a copy after the second, compare the third."""
    config = load_config(
        "quickstart",
        [
            "data.validation=drawn:validation?count=4&seed=7",
            "data.train=drawn:train?count=64&seed=7",
            f"training.max_steps={STEPS}",
            "training.problems_per_step=4",
            f"training.save_every={STEPS - 1}",
            "training.validate_every=null",
            f"training.device={bench.device}",
            "validation.pixelated=false",
        ],
    )
    run, copy = bench.folder / "run", bench.folder / "continued"
    train(config, run, console=_quiet(), callbacks=[CopyAtCheckpoint(run, copy, STEPS - 1)])
    train(config, copy, console=_quiet(), resume=True)
    losses, again = _losses(run), _losses(copy)
    difference = abs(losses[-1] - again[-1]) / abs(losses[-1])
    numbers = {"losses": losses, "loss after a resume": again[-1], "difference": difference}
    # The same bits on a CPU; on a GPU another order of a sum may change a sampled token.
    limit = 0.1 if bench.is_gpu else 0.0
    problems = []
    if not difference <= limit:
        problems.append(
            f"the loss of step {STEPS} is {losses[-1]:.6g}, and {again[-1]:.6g} after a resume"
        )
    if len(losses) != STEPS or len(again) != STEPS:
        problems.append(f"{len(losses)} and {len(again)} of {STEPS} steps were recorded")
    summary = f"losses {', '.join(f'{loss:.4f}' for loss in losses)}; {again[-1]:.4f} resumed"
    return Finding(numbers=numbers, summary=summary, problems=problems)


def _losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _quiet() -> Console:
    return Console(file=io.StringIO())


class FixedLengthSampler:
    """Gives responses of one length, as an estimate assumes."""

    def __init__(self, length: int) -> None:
        self.length = length

    def take_weights(self, version: int) -> int:
        """Do nothing: no weights are asked."""
        return 0

    def sleep(self) -> None:
        """Do nothing: it holds nothing."""

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Return ordinary ids, the same for all siblings."""
        ids = tuple(20 + position % 400 for position in range(self.length))
        return [
            [Rollout(p.problem_id, k, ids, "length") for k in range(settings.num_rollouts)]
            for p in prompts
        ]


def step_memory(bench: Bench) -> Finding:
    """Measure the peak memory of a step at two lengths of response, beside the estimate."""
    lengths = (1024, 4096) if bench.is_gpu else (32, 96)
    numbers = {str(length): _measured_step(bench, length) for length in lengths}
    problems, shown = [], []
    for length, found in numbers.items():
        if "peak_mib" in found and found["peak_mib"] > 1.3 * found["estimated_mib"]:
            problems.append(
                f"{length} response tokens took {found['peak_mib']:.0f} MiB, and "
                f"{found['estimated_mib']:.0f} were estimated"
            )
        peak = f"{found['peak_mib']:.0f}" if "peak_mib" in found else "not measured"
        shown.append(
            f"{length} tokens: {found['seconds']:.2f} s, {peak} of "
            f"{found['estimated_mib']:.0f} MiB estimated"
        )
    note = "" if bench.is_gpu else "; torch counts the memory of GPUs only"
    return Finding(numbers=numbers, summary="; ".join(shown) + note, problems=problems)


def _measured_step(bench: Bench, length: int) -> dict[str, float]:
    """Return seconds, peak and estimate of the second step; the first one makes the moments."""
    config = _step_config(bench, length)
    world = World(device=bench.device)
    gc.collect()
    before = torch.cuda.memory_allocated(bench.device) if bench.is_gpu else 0
    student, teacher = load_student(config, world), load_teacher(config, bench.device)
    sampler, method = FixedLengthSampler(length), make_method(config.method)
    pipeline = Pipeline(config, method, student, teacher, sampler, world)
    step = Step(pipeline, make_optimizer(config, student))
    problems = list(DrawnProblems(num_problems=config.training.problems_per_step))
    step.run(problems, 1)
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = bench.seconds(lambda: step.run(problems, 2))
    prompts = [pipeline.encoder.original(problem) for problem in problems]
    longest = max(prompts, key=len)
    image = longest.images[0]
    visual = int((longest.input_ids == student.model.config.image_token_id).sum())
    lengths = Lengths(
        text_tokens=len(longest) - visual,
        image_pixels=image.width * image.height,
        response_tokens=length,
    )
    expected = estimate(config, bench.device, lengths=lengths)
    # The sampler above takes no memory.
    peak = max(expected.total(phase) for phase in PHASES if phase != "sample")
    found = {"seconds": seconds, "estimated_mib": peak / MIB}
    if bench.is_gpu:
        found["peak_mib"] = (torch.cuda.max_memory_allocated(bench.device) - before) / MIB
    return found


def _step_config(bench: Bench, length: int) -> RunConfig:
    """Return the recipe of the bench, or the quickstart, with few problems of one length."""
    config = bench.recipe or load_config("quickstart", [])
    changes: dict[str, dict[str, Any]] = {
        "training": {"problems_per_step": 2, "device": str(bench.device)},
        "sampling": {"max_new_tokens": length, "engine": "transformers"},
    }
    changed = {
        name: getattr(config, name).model_copy(update=values) for name, values in changes.items()
    }
    return config.model_copy(update=changed)
