"""Random models, sharp enough that images and positions matter, and rollouts that are fixed."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import yaml

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.distributed.world import World
from vaopd.methods import make_method
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.teacher.local import LocalTeacher
from vaopd.training.pipeline import Pipeline
from vaopd.training.step import Step
from vaopd.training.student import make_optimizer

LENGTHS = ((5, 1, 9), (4, 11, 6))
"""Of the siblings of two problems."""

SEED = 11
RECIPE = {
    "student": {"model": "tiny:new-student"},
    "teacher": {"model": "tiny:new-teacher-s"},
    "data": {"train": "drawn:train?count=8", "min_pixels": 1024, "max_pixels": 1048576},
    "sampling": {"num_rollouts": 3, "max_new_tokens": 6},
    "validation": {"num_samples": 1},
    "training": {"problems_per_step": 2, "max_steps": 2, "learning_rate": 1e-3},
}


def sharp_model(name: str, seed: int) -> VisionLanguageModel:
    """Draw weights of unit gain: at the default 0.02 every token looks like every other."""
    cpu = torch.device("cpu")
    model = load_model(name, device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, weight in model.model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            elif parameter.endswith("bias"):
                weight.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(scope="session")
def sharp_student() -> VisionLanguageModel:
    return sharp_model("tiny:new-student", 1)


@pytest.fixture(scope="session")
def teacher() -> LocalTeacher:
    return LocalTeacher(sharp_model("tiny:new-teacher-s", 2), batch_tokens=16384)


@pytest.fixture
def student(sharp_student: VisionLanguageModel) -> VisionLanguageModel:
    """A fresh copy: steps change it."""
    return copy.deepcopy(sharp_student)


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return list(DrawnProblems(num_problems=2))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    def make(*overrides: str) -> RunConfig:
        values = yaml.safe_load(yaml.safe_dump(RECIPE))
        return parse_config(parse_overrides(overrides, values))

    return make


class FixedSampler:
    """Gives the same ragged responses whatever the student thinks."""

    def __init__(self, lengths: Sequence[Sequence[int]] = LENGTHS) -> None:
        self.lengths = lengths

    def take_weights(self, version: int) -> None:
        """Nothing: no weights are asked."""

    def sleep(self) -> None:
        """Nothing: it holds nothing."""

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Return ordinary ids, other ones for each rollout."""
        generator = torch.Generator().manual_seed(SEED)
        return [
            [
                Rollout(
                    prompt.problem_id,
                    sibling,
                    tuple(torch.randint(0, 500, (length,), generator=generator).tolist()),
                    "length",
                )
                for sibling, length in enumerate(siblings)
            ]
            for prompt, siblings in zip(prompts, self.lengths, strict=True)
        ]


@pytest.fixture
def make_step(
    sharp_student: VisionLanguageModel, teacher: LocalTeacher, make_config: Callable
) -> Callable[..., Step]:
    """Return a step on a fresh copy of the student, with responses that do not depend on it."""

    def make(*overrides: str, teacher: LocalTeacher | None = teacher) -> Step:
        config = make_config(*overrides)
        fresh = copy.deepcopy(sharp_student)
        is_sft = config.method.name == "sft"
        optimizer = make_optimizer(config, fresh)
        method, scorer = make_method(config.method), None if is_sft else teacher
        pipeline = Pipeline(config, method, fresh, scorer, FixedSampler(), World())
        return Step(pipeline, optimizer)

    return make


@pytest.fixture
def encoder(sharp_student: VisionLanguageModel, make_config: Callable) -> PromptEncoder:
    config = make_config()
    return PromptEncoder(sharp_student, config.data, config.view)
