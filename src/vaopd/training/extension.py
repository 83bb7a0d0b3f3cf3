"""Checks runs that are resumed with more steps than they were started with."""

from vaopd.config import TrainingConfig
from vaopd.errors import ConfigError
from vaopd.training.schedule import learning_rate, total_steps

LENGTH_KEYS = {"epochs", "max_steps"}
"""Keys of ``training`` that a resumed run may raise."""


def extension(
    saved: TrainingConfig, training: TrainingConfig, num_problems: int, done: int
) -> str | None:
    """Return a sentence about the change of the learning rate; ``None`` if the length stays.

    The schedule depends on the number of steps. So an extended run differs from a run that had the
    longer recipe from its start: its learning rate jumps from the old curve to the new one.

    Args:
        saved: Options with which the run was started or last extended.
        training: Options with which the run is resumed.
        num_problems: Number of problems in ``data.train``.
        done: Number of steps that the run has already taken.

    Raises:
        ConfigError: The run would become shorter.
    """
    before, after = total_steps(saved, num_problems), total_steps(training, num_problems)
    if after < before:
        raise ConfigError(
            f"training.max_steps={training.max_steps} and training.epochs={training.epochs} give "
            f"{after} steps, but the run was made for {before}; a run can be extended and not "
            "shortened, so resume with the values it was made with or higher ones"
        )
    if after == before or done == 0:
        return None
    old, new = learning_rate(saved, done, before), learning_rate(training, done + 1, after)
    return (
        f"extended from {before} to {after} steps: the schedule is computed for {after}, so the "
        f"learning rate goes from {old:.2e} at step {done} to {new:.2e} at step {done + 1}"
    )
