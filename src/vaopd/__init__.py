"""On-policy distillation of vision-language models by visual advantage.

The names below are the stable Python API; torch is loaded when the first one that needs it is used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "pixelate": "vaopd.views",
    "visual_advantage": "vaopd.objective.advantage",
    "rollout_weights": "vaopd.objective.weights",
    "token_weights": "vaopd.objective.weights",
    "sampled_logprobs": "vaopd.objective.divergence",
    "weighted_reverse_kl": "vaopd.objective.divergence",
    "load_config": "vaopd.config",
    "load_problems": "vaopd.problems.sources",
    "Problem": "vaopd.problems.problem",
    "train": "vaopd.training.run",
    "Callback": "vaopd.training.callbacks",
    "Method": "vaopd.methods.base",
    "StepRollouts": "vaopd.methods.base",
    "Weights": "vaopd.methods.base",
    "MethodOptions": "vaopd.config",
    "Needs": "vaopd.config",
    "TeacherScores": "vaopd.teacher.teacher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vaopd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
