"""Reference responses as rollouts, for supervised fine-tuning."""

from collections.abc import Sequence

from vaopd.errors import ProblemError
from vaopd.models.loading import VisionLanguageModel
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout


def check_references(problems: Sequence[Problem]) -> None:
    """Check that every problem has a reference response.

    Raises:
        ProblemError: Some have none; says how many, and which is the first.
    """
    without = [problem.id for problem in problems if not problem.references]
    if without:
        raise ProblemError(
            f"{len(without)} of {len(problems)} problems have no reference response, which "
            f"method.name=sft needs, the first: {without[0]}; add a 'references' column or choose "
            "another method"
        )


def reference_rollouts(problem: Problem, model: VisionLanguageModel) -> list[Rollout]:
    """Return a problem's reference responses as rollouts, for supervised fine-tuning.

    Raises:
        ProblemError: The problem has no reference response.
    """
    check_references([problem])
    tokenizer = model.tokenizer
    rollouts = []
    for sibling, text in enumerate(problem.references):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rollouts.append(Rollout(problem.id, sibling, tuple(ids), "stop"))
    return rollouts
