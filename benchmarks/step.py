"""One whole step, from images to the optimizer: VA-OPD beside OPD."""

from collections.abc import Callable
from typing import Any

from benchmarks.measure import Arm
from benchmarks.scales import Scale
from benchmarks.subjects import make_subjects
from benchmarks.update import make_step


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


ARMS = {"VA-OPD": whole_step("va_opd"), "OPD": whole_step("opd")}
