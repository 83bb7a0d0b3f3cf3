"""Five epochs of scoring the same problems under both views, with and without the vision cache.

Rollouts are new in each epoch, as in a run; images repeat. Both arms give the same numbers, which
the sum of the log-probs shows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Arm
from benchmarks.scales import Scale
from benchmarks.subjects import make_responses, make_subjects
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.vision_cache import cache_vision

EPOCHS = 5
CACHE_BYTES = 2 * 10**9


def scoring(*, with_cache: bool) -> Callable[[Scale, str], Arm]:
    """Return the builder of an arm."""

    def build(scale: Scale, device: str) -> Arm:
        # Shorter responses, so that five epochs take no longer than the other phases.
        scale = dataclasses.replace(scale, response=max(1, scale.response // 4))
        subjects = make_subjects(scale, device)
        teacher = LocalTeacher(subjects.teacher, batch_tokens=scale.budget)
        cache = cache_vision(subjects.teacher, CACHE_BYTES) if with_cache else None

        def run() -> dict[str, Any]:
            total = 0.0
            for epoch in range(EPOCHS):
                responses = make_responses(scale, seed=epoch)
                scores = teacher.score(subjects.prompts, subjects.pixelated, responses)
                assert scores.degraded_logprobs is not None
                for logprobs in [*scores.original_logprobs, *scores.degraded_logprobs]:
                    total += logprobs.double().sum().item()
            gain = f"sum of log-probs {total:.10g}"
            if cache is not None:
                gain += f", {cache.num_bytes / 1e6:,.1f} MB kept, {cache.hits} images found"
            return {"gain": gain}

        return Arm(run=run)

    return build


ARMS = {"no cache": scoring(with_cache=False), "vision cache": scoring(with_cache=True)}
