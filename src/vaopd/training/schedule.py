"""Which problems a step takes, and at which learning rate."""

import math
import random
from collections.abc import Sequence

from vaopd.config import TrainingConfig
from vaopd.errors import ConfigError
from vaopd.problems.problem import Problem


def total_steps(training: TrainingConfig, num_problems: int) -> int:
    """Return the number of updates of a run; an epoch's incomplete last batch is dropped.

    Raises:
        ConfigError: There are fewer problems than one step needs.
    """
    per_epoch = num_problems // training.problems_per_step
    if per_epoch == 0:
        raise ConfigError(
            f"training.problems_per_step is {training.problems_per_step}, but data.train has only "
            f"{num_problems} problems; lower it to at most {num_problems}"
        )
    steps = training.epochs * per_epoch
    return steps if training.max_steps is None else min(steps, training.max_steps)


def problems_of_step(
    problems: Sequence[Problem], step: int, training: TrainingConfig
) -> list[Problem]:
    """Return the batch of a step (the first is 1), shuffled anew in every epoch.

    A function of (seed, step) alone, so a resumed run sees what the uninterrupted one would.
    """
    size = training.problems_per_step
    epoch, batch = divmod(step - 1, len(problems) // size)
    order = list(range(len(problems)))
    random.Random(f"vaopd order {training.seed} {epoch}").shuffle(order)
    return [problems[i] for i in order[batch * size : (batch + 1) * size]]


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Return the rate of a step (the first is 1): linear warm-up, then half a cosine.

    The paper's 655 steps with 5 % warm-up rise for 32 steps.
    """
    warmup = int(training.warmup_fraction * steps)
    peak, floor = training.learning_rate, training.final_learning_rate_fraction
    if step <= warmup:
        return peak * step / warmup
    # Step warmup + 1 is the first at the peak, so the last one still learns.
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def is_due(every: int | None, step: int) -> bool:
    """Return whether something that is done every so many steps is done after this one."""
    return every is not None and step % every == 0
