"""Reference responses as rollouts, for supervised fine-tuning."""

from vaopd.errors import ProblemError
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.checks import without_reference
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout


def reference_rollouts(problem: Problem, model: VisionLanguageModel) -> list[Rollout]:
    """Return a problem's reference responses as rollouts, for supervised fine-tuning.

    Raises:
        ProblemError: The problem has no reference response.
    """
    for row in without_reference([problem]):
        raise ProblemError(row.reason)
    tokenizer = model.tokenizer
    rollouts = []
    for sibling, text in enumerate(problem.references):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rollouts.append(Rollout(problem.id, sibling, tuple(ids), "stop"))
    return rollouts
