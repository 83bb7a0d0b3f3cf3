"""One whole step, from images to the optimizer: VA-OPD beside OPD, and OPD by TRL's trainer.

The arm of TRL does what its trainer does in a step: images to inputs, ``generate`` on a row for
each sibling, the teacher's scores, its loss, backward, optimizer. Its data loader, its collation
and its logging are left out, in its favour.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Arm
from benchmarks.scales import Scale
from benchmarks.subjects import make_config, make_subjects
from benchmarks.update import make_step, make_trl_trainer, trl_gradient


def whole_step(method: str) -> Callable[[Scale, str], Arm]:
    """Return the builder of the product's own step by a method."""

    def build(scale: Scale, device: str) -> Arm:
        subjects = make_subjects(scale, device)
        step = make_step(scale, subjects, method=method)

        def run(number: int, problems: int) -> dict[str, Any]:
            result = step.run(subjects.problems[:problems], number)
            tokens = sum(len(rollout.response_ids) for rollout in result.rollouts)
            return {"loss": result.loss, "phase_seconds": result.seconds, "tokens": tokens}

        return Arm(
            run=lambda: run(2, scale.problems),
            warm_up=lambda: run(1, 1),
            share=1 / scale.problems,
        )

    return build


def trl_whole_step(scale: Scale, device: str) -> Arm:
    """Return a whole step of OPD by TRL's trainer, on the same problems and as many tokens."""
    # Here, because they need pydantic, without which our own arms run as well.
    from benchmarks.sampling import generate
    from vaopd.models.prompt_encoder import PromptEncoder

    subjects = make_subjects(scale, device)
    trainer = make_trl_trainer(scale, subjects, device)
    encoder = PromptEncoder(subjects.student, make_config(scale).data, make_config(scale).view)

    def run(problems: int) -> dict[str, Any]:
        prompts = [encoder.original(problem) for problem in subjects.problems[:problems]]
        repeated = [prompt for prompt in prompts for _ in range(scale.siblings)]
        ids = generate(subjects.student, repeated, scale)
        responses = [list(group) for group in ids.cpu().split(scale.siblings)]
        loss = trl_gradient(trainer, scale, subjects, responses)
        torch.nn.utils.clip_grad_norm_(subjects.student.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "tokens": ids.numel()}

    return Arm(run=lambda: run(scale.problems), warm_up=lambda: run(1), share=1 / scale.problems)


ARMS = {
    "VA-OPD": whole_step("va_opd"),
    "OPD": whole_step("opd"),
    "trl, OPD (one view)": trl_whole_step,
}
