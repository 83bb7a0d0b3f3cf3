"""Runs that are resumed to more steps than they were made for."""

from vaopd.config import TrainingConfig
from vaopd.errors import ConfigError
from vaopd.training.schedule import learning_rate, total_steps

LENGTH_KEYS = {"epochs", "max_steps"}
"""Keys of ``training`` that a resumed run may raise."""


def extension(
    saved: TrainingConfig, training: TrainingConfig, num_problems: int, done: int
) -> str | None:
    """Return what more steps do to the learning rate, as a sentence; None if the length stays.

    The schedule is a function of the number of steps, so an extended run is not the run that the
    longer recipe would have given: its rate leaves the old curve for a place on the new one.

    Args:
        saved: As the run was made, or extended last.
        training: As it is resumed.
        num_problems: In ``data.train``.
        done: Steps that the run goes on from.

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
