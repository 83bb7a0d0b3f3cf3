"""Peaks of the real phases of a step, for comparison with what ``vaopd doctor`` expects."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.devices import pick_device
from vaopd.distributed.world import World
from vaopd.doctor.bring_up.training import FixedLengthSampler
from vaopd.doctor.estimate import Estimate, Lengths, estimate
from vaopd.doctor.trace import LiveBytes
from vaopd.methods import make_method
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import load_teacher
from vaopd.training.pipeline import Pipeline
from vaopd.training.step import Step
from vaopd.training.student import load_student, make_optimizer

RECIPE = (
    "student.model=tiny:student",
    "teacher.model=tiny:teacher-m",
    "data.train=drawn:train?count=8",
    "data.min_pixels=1024",
    "data.max_pixels=1048576",
)


def real_config(*overrides: str) -> RunConfig:
    return parse_config(parse_overrides((*RECIPE, *overrides)))


@dataclass(frozen=True)
class Peaks:
    expected: Estimate
    measured: dict[str, int]

    def error(self, phase: str) -> float:
        """Return by what share the estimate is above the measured peak."""
        return self.expected.total(phase) / self.measured[phase] - 1


def measure(*overrides: str) -> Peaks:
    """Run each phase once and count the bytes that live, beside weights and moments."""
    config = real_config(*overrides)
    device = pick_device("cpu")
    student, teacher = load_student(config, World(device=device)), load_teacher(config, device)
    optimizer = make_optimizer(config, student)
    method, sampler = make_method(config.method), FixedLengthSampler(config.sampling.max_new_tokens)
    step = Step(Pipeline(config, method, student, teacher, sampler, World()), optimizer)
    count = config.training.problems_per_step
    problems = list(DrawnProblems(num_problems=count))
    step.run(problems, 1)  # makes the moments
    resident = sum(
        t.untyped_storage().nbytes()
        for t in {
            t.untyped_storage().data_ptr(): t
            for model in (student.model, teacher.model.model)
            for t in model.parameters()
        }.values()
    )
    resident += sum(
        v.numel() * v.element_size()
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, torch.Tensor)
    )
    peaks: dict[str, int] = {}

    def counted(phase: str, work: Callable[[], None]) -> None:
        with LiveBytes() as live:
            work()
        peaks[phase] = resident + live.peak

    prompts = [step.pipeline.encoder.original(problem) for problem in problems]
    sampler = TransformersSampler(student, batch_tokens=config.sampling.batch_tokens)
    settings = SamplingSettings(
        num_rollouts=config.sampling.num_rollouts,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_new_tokens=config.sampling.max_new_tokens,
        seed=1,
        stream="doctor",
    )
    counted("sample", lambda: sampler.sample(prompts, settings) and None)
    update = step.apply_gradient
    hidden = {}

    def score(*arguments, **options):
        with LiveBytes() as live:
            result = type(teacher).score(teacher, *arguments, **options)
        peaks["score"] = resident + live.peak
        hidden["bytes"] = sum(h.numel() * h.element_size() for h in result.hidden)
        return result

    teacher.score = score  # type: ignore[method-assign]
    accumulate = step.accumulate

    def train(*arguments):
        with LiveBytes() as live:
            result = accumulate(*arguments)
        peaks["train"] = resident + live.peak + hidden["bytes"]
        return result

    step.accumulate = train  # type: ignore[method-assign]

    def apply(*arguments):
        gradients = sum(
            p.grad.numel() * p.grad.element_size()
            for p in student.model.parameters()
            if p.grad is not None
        )
        with LiveBytes() as live:
            result = update(*arguments)
        peaks["update"] = resident + gradients + live.peak
        return result

    step.apply_gradient = apply  # type: ignore[method-assign]
    step.run(problems, 2)
    prompt = max(len(p) for p in prompts)
    side = student.model.config.vision_config.patch_size * 2
    pixels = problems[0].load_images()[0]
    area = pixels.width * pixels.height
    lengths = Lengths(text_tokens=prompt - area // side**2, image_pixels=area)
    return Peaks(estimate(config, device, lengths=lengths), peaks)
