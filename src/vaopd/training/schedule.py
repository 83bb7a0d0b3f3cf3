"""Computes the number of steps of a run, and the problems and learning rate of each step."""

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
    """Return the problems of a step (the first step is 1); every epoch is shuffled again.

    The result depends only on (seed, step), so a resumed run gets the same problems as an
    uninterrupted one.
    """
    size = training.problems_per_step
    epoch, batch = divmod(step - 1, len(problems) // size)
    order = list(range(len(problems)))
    random.Random(f"vaopd order {training.seed} {epoch}").shuffle(order)
    return [problems[i] for i in order[batch * size : (batch + 1) * size]]


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step (the first is 1): linear warm-up, then half a cosine.

    With the paper's 655 steps and 5 % warm-up, the rate rises for 32 steps.
    """
    warmup = int(training.warmup_fraction * steps)
    peak, floor = training.learning_rate, training.final_learning_rate_fraction
    if step <= warmup:
        return peak * step / warmup
    # Step warmup + 1 has the peak rate, so the rate of the last step is above zero.
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def is_due(every: int | None, step: int) -> bool:
    """Return whether an action that is done every ``every`` steps is done after this step."""
    return every is not None and step % every == 0
