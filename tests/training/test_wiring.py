"""What a recipe says arrives where it is used: in views, sampler, weights, optimizer and model."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.weights import high_group, rollout_weights, token_weights
from vaopd.problems.problem import Problem
from vaopd.records import read_rows
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.training.run import train
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult
from vaopd.views import degrade, fit_pixel_budget, reduced

# --- views ------------------------------------------------------------------------------------

MIN_PIXELS = 200 * 200
"""Above the area of a drawn figure, so the budget changes its size."""


def encoder_of(student: VisionLanguageModel, config: RunConfig, **view: object) -> PromptEncoder:
    data = config.data.model_copy(update={"min_pixels": MIN_PIXELS})
    return PromptEncoder(student, data, config.view.model_copy(update=view))


def fit(image: Any) -> Any:
    return fit_pixel_budget(image, MIN_PIXELS, 1048576)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("budget", lambda image: degrade(fit(image), "pixelate", 0.2)),
        ("native", lambda image: fit(degrade(image, "pixelate", 0.2))),
    ],
)
def test_the_image_is_degraded_after_the_budget_or_at_its_own_size(
    sharp_student: VisionLanguageModel,
    make_config: Callable[..., RunConfig],
    problems: list[Problem],
    stage: str,
    expected: Callable[[Any], Any],
):
    encoder = encoder_of(sharp_student, make_config(), stage=stage, ratio=0.2)
    (found,) = encoder.degraded_images(problems[0])
    (image,) = problems[0].load_images()
    assert found.tobytes() == expected(image).tobytes()


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("budget", lambda image: reduced(fit(image), 0.5)),
        ("native", lambda image: reduced(image, 0.5)),
    ],
)
def test_the_small_probe_is_made_after_the_budget_or_at_the_images_own_size(
    sharp_student: VisionLanguageModel,
    make_config: Callable[..., RunConfig],
    problems: list[Problem],
    stage: str,
    expected: Callable[[Any], Any],
):
    encoder = encoder_of(sharp_student, make_config(), stage=stage, ratio=0.5, probe="small")
    _, found = encoder.both(problems[0])
    (image,) = problems[0].load_images()
    plain = sharp_student.family.encode(problems[0], [expected(image)])
    pixels = [prompt.image_inputs["pixel_values"] for prompt in (found, plain)]
    torch.testing.assert_close(pixels[0], pixels[1], rtol=0, atol=0)


# --- sampling ---------------------------------------------------------------------------------


class AskedSampler:
    """Remembers how it was asked."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.asked: list[SamplingSettings] = []

    def take_weights(self, version: int) -> None:
        """Nothing: the sampler has none."""

    def sleep(self) -> None:
        """Nothing: the sampler holds nothing."""

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Pass on what is asked."""
        self.asked.append(settings)
        return self.sampler.sample(prompts, settings)


@pytest.fixture
def asked(make_step: Callable[..., Step], problems: list[Problem]) -> list[SamplingSettings]:
    """Return how the rollouts of two steps are asked for."""
    step = make_step(
        "sampling.num_rollouts=3",
        "sampling.temperature=0.6",
        "sampling.top_p=0.8",
        "sampling.max_new_tokens=7",
        "training.seed=9",
    )
    sampler = AskedSampler(step.pipeline.sampler)
    step.pipeline.sampler = sampler
    step.run(problems, 1)
    step.run(problems, 2)
    return sampler.asked


def test_rollouts_are_sampled_as_the_recipe_says(asked: list[SamplingSettings]):
    expected = SamplingSettings(
        num_rollouts=3, temperature=0.6, top_p=0.8, max_new_tokens=7, seed=9, stream=""
    )
    assert replace(asked[0], stream="", weights_version=0) == expected


def test_every_step_has_sampling_noise_of_its_own(asked: list[SamplingSettings]):
    assert asked[0].stream != asked[1].stream


# --- weights ----------------------------------------------------------------------------------


def expected_weights(result: StepResult, **changes: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return rollout weights, token weights and high group of a step by the plain functions.

    With the paper's values where none is given, for siblings of two problems.
    """
    advantage, mask = result.weights.advantage, result.weights.mask
    assert advantage is not None and result.weights.high is not None
    of_rollouts = {"temperature", "epsilon", "deviation_floor"}
    rollout = rollout_weights(
        advantage,
        mask,
        [rollout.problem_id for rollout in result.rollouts],
        **{name: value for name, value in changes.items() if name in of_rollouts},
    )
    fraction = changes.get("high_fraction", 0.2)
    token = token_weights(
        advantage,
        mask,
        rollout,
        # Ties are drawn by lot, and so not repeated here.
        high=result.weights.high,
        **{k: v for k, v in changes.items() if k not in (*of_rollouts, "high_fraction")},
    )
    return rollout, token, high_group(advantage, mask, high_fraction=fraction)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("rollout_temperature", 3.0, "temperature"),
        ("epsilon", 0.05, "epsilon"),
        ("deviation_floor", 0.4, "deviation_floor"),
        ("minimum_advantage", 40.0, "minimum_advantage"),
        ("high_mass", 0.8, "high_mass"),
        ("high_fraction", 0.6, "high_fraction"),
    ],
)
def test_weights_of_a_step_follow_the_keys_of_the_method(
    make_step: Callable[..., Step], problems: list[Problem], key: str, value: float, name: str
):
    result = make_step(f"method.{key}={value}").run(problems, 1)
    rollout, token, high = expected_weights(result, **{name: value})
    assert result.weights.high is not None
    torch.testing.assert_close(result.weights.rollout, rollout)
    torch.testing.assert_close(result.weights.token, token)
    assert result.weights.high.sum(-1).equal(high.sum(-1))
    # The value matters here, or a key that is not passed on would not be seen.
    usual = expected_weights(result)
    found = (result.weights.rollout, result.weights.token, result.weights.high.sum(-1))
    other = (usual[0], usual[1], usual[2].sum(-1))
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(found, other, strict=True))


# --- the update -------------------------------------------------------------------------------


def test_label_smoothing_mixes_the_mean_over_all_ids_into_the_loss(
    make_step: Callable[..., Step], problems: list[Problem]
):
    # The loss is linear in the smoothing: (1 - s) NLL + s mean over ids of the NLL.
    losses = [
        make_step("method.name=sft", f"method.label_smoothing={s}").run(problems, 1).loss
        for s in (0.0, 0.2, 0.4)
    ]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert abs(losses[1] - losses[0]) > 0.01


def test_gradients_are_made_in_training_mode(
    make_step: Callable[..., Step], problems: list[Problem]
):
    # A model that comes from a folder is in evaluation mode, where checkpointing and dropout
    # do nothing.
    step = make_step("method.name=sft")
    step.student.model.eval()
    modes = []
    step.student.model.model.register_forward_pre_hook(
        lambda module, inputs: modes.append((torch.is_grad_enabled(), module.training))
    )
    step.run(problems, 1)
    assert modes == [(True, True)]


def test_the_first_update_is_as_large_as_the_logged_learning_rate(
    make_config: Callable[..., RunConfig], tmp_path: Path
):
    config = make_config(
        "method.name=sft",
        "training.learning_rate=1e-3",
        "training.warmup_fraction=1",
        "training.weight_decay=0",
        "training.max_steps=4",
        "training.save_every=1",
        "training.keep_checkpoints=null",
    )
    train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    cpu = torch.device("cpu")
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    first = load_model("tiny:new-student", device=cpu, seed=config.training.seed, **options)
    old = first.model.state_dict()
    new = load_file(tmp_path / "run/checkpoints/step_000001/model.safetensors")
    # AdamW's first update is the rate times the gradient's sign.
    change = max(float((value - old[name]).abs().max()) for name, value in new.items())
    rate = read_rows(tmp_path / "run/metrics.jsonl")[0]["learning_rate"]
    assert rate == pytest.approx(0.25e-3)
    assert change == pytest.approx(rate, rel=1e-2)
