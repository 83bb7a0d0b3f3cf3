"""What saves memory changes no update: adapters, frozen parts, checkpointing, offload, auto."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.distributed.world import World
from vaopd.errors import ConfigError
from vaopd.models.adapters import trained_weights
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem
from vaopd.teacher.local import LocalTeacher
from vaopd.training import student as student_module
from vaopd.training.activation_offload import ActivationOffload
from vaopd.training.checkpoint import load_checkpoint, save_checkpoint
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult
from vaopd.training.student import load_student

LORA = ("student.lora.rank=4",)


@pytest.fixture
def make_lora_step(
    sharp_student: VisionLanguageModel, make_step: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Step]:
    """Return a step whose student has adapters that say something, on the sharp weights."""

    def loaded(*_: Any, **__: Any) -> VisionLanguageModel:
        return copy.deepcopy(sharp_student)

    def make(*overrides: str, **options: Any) -> Step:
        step = make_step(*LORA, *overrides, **options)
        with monkeypatch.context() as patch:
            patch.setattr(student_module, "load_model", loaded)
            step.student = load_student(step.config, World())
        generator = torch.Generator().manual_seed(5)
        for name, parameter in step.student.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02, generator=generator)
        step.optimizer = student_module.make_optimizer(step.config, step.student)
        return step

    return make


def record_gradients(step: Step) -> dict[str, Tensor]:
    """Return a dictionary that the step's update fills with the gradients it is given."""
    gradients: dict[str, Tensor] = {}
    update = step.optimizer.step

    def spy(*arguments: Any) -> Any:
        for name, parameter in step.student.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        return update(*arguments)

    step.optimizer.step = spy  # type: ignore[method-assign]
    return gradients


def after(step: Step, problems: list[Problem]) -> tuple[StepResult, dict[str, Tensor]]:
    result = step.run(problems, 1)
    return result, {n: t.clone() for n, t in trained_weights(step.student.model).items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


class SummedShapes(TorchDispatchMode):
    """Remembers the shapes of what products are added to in place, as gradients are."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.addmm_.default:
            self.shapes.add(tuple(result.shape))
        return result


def head_shape(step: Step) -> tuple[int, int]:
    return step.student.vocab_size, step.student.head.shape[1]


# --- frozen weights ---------------------------------------------------------------------------


def test_a_step_changes_the_adapters_and_makes_no_gradient_of_the_head(
    make_lora_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    step = make_lora_step()
    before = {n: p.clone() for n, p in step.student.model.named_parameters()}
    gradients = record_gradients(step)
    with SummedShapes() as summed:
        step.run(problems, 1)
    assert head_shape(step) not in summed.shapes
    assert gradients.keys() == trained_weights(step.student.model).keys()
    for name, parameter in step.student.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora_" not in name), name


def test_a_trained_head_does_get_its_gradient(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    # The counterpart of the test above: what it watches is on the way of an ordinary step.
    step = make_step()
    with SummedShapes() as summed:
        step.run(problems, 1)
    assert head_shape(step) in summed.shapes


def test_packed_siblings_give_the_adapters_the_gradients_of_plain_rows(
    make_lora_step: Callable, problems: list[Problem]
):
    packed = record_gradients(step := make_lora_step("student.lora.vision=adapters"))
    step.run(problems, 1)
    plain = record_gradients(
        step := make_lora_step("student.lora.vision=adapters", "training.share_prefix=false")
    )
    step.run(problems, 1)
    assert any(".visual." in name for name in packed)
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, plain[name], rtol=2e-3, atol=2e-6)


def test_training_the_language_model_leaves_the_vision_tower_as_it_is(
    make_step: Callable, sharp_student: VisionLanguageModel, problems: list[Problem]
):
    from vaopd.models.adapters import choose_trainable

    step = make_step("student.train=language")
    choose_trainable(step.student.model, step.config.student)
    step.optimizer = student_module.make_optimizer(step.config, step.student)
    step.run(problems, 1)
    old = dict(sharp_student.model.named_parameters())
    for name, parameter in step.student.model.named_parameters():
        assert torch.equal(parameter, old[name]) == (".visual." in name), name


def test_dropout_of_adapters_is_drawn_by_seed_and_step(
    make_lora_step: Callable, problems: list[Problem]
):
    def losses(*overrides: str, drawn_before: int = 3) -> tuple[float, float]:
        step = make_lora_step("student.lora.dropout=0.3", *overrides)
        torch.rand(drawn_before)
        return step.run(problems, 1).loss, step.run(problems, 2).loss

    first = losses()
    assert first == losses(drawn_before=8)
    assert first[0] != losses("training.seed=7")[0]
    assert first[0] != make_lora_step().run(problems, 1).loss


# --- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "student.gradient_checkpointing=true",
        "student.activation_offload=true",
        "teacher.park_hidden=true",
    ],
)
def test_a_setting_that_saves_memory_gives_the_same_bits(
    make_lora_step: Callable, sharp_student: VisionLanguageModel, teacher: LocalTeacher,
    problems: list[Problem], override: str,
):  # fmt: skip
    plain, weights = after(make_lora_step(), problems)
    scorer = LocalTeacher(
        teacher.model, batch_tokens=16384, park_hidden=override.startswith("teacher")
    )
    saved, others = after(make_lora_step(override, teacher=scorer), problems)
    assert saved.loss == plain.loss
    assert saved.gradient_norm == plain.gradient_norm
    assert same_bits(weights, others)


@pytest.mark.parametrize("overrides", [(), ("student.gradient_checkpointing=true",)])
def test_offload_moves_activations_and_leaves_weights(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
):  # fmt: skip
    from vaopd.training import step as step_module

    made: list[ActivationOffload] = []
    packed: list[tuple[int, bool]] = []

    class Spy(ActivationOffload):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            made.append(self)

        def pack(self, tensor: Tensor) -> Any:
            saved = super().pack(tensor)
            if not isinstance(saved, Tensor):
                assert saved[1].data_ptr() != tensor.data_ptr()
                packed.append((tensor.numel() * 4, tensor.data_ptr() in self.weights))
            return saved

    monkeypatch.setattr(step_module, "ActivationOffload", Spy)
    monkeypatch.setattr("vaopd.training.activation_offload.MIN_BYTES", 1024)
    make_step("student.activation_offload=true", *overrides).run(problems, 1)
    assert made and made[0].num_bytes > 10_000
    assert packed and not any(is_weight for _, is_weight in packed)


def test_parked_states_are_another_copy_in_main_memory():
    from vaopd.teacher.local import parked

    states = torch.randn(5, 3)
    copied = parked(states)
    assert torch.equal(copied, states)
    assert copied.data_ptr() != states.data_ptr()
    assert copied.device.type == "cpu"


# --- micro-batches that fit -------------------------------------------------------------------


def limit_memory(step: Step, most: int) -> list[int]:
    """Let forwards with gradient over so many padded tokens fail; return the sizes of all."""
    sizes: list[int] = []
    base = step.student.base
    forward = base.forward

    def limited(*arguments: Any, **inputs: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.append(inputs["input_ids"].numel())
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(*arguments, **inputs)

    base.forward = limited
    return sizes


def test_auto_halves_until_it_fits_and_the_update_is_the_same(
    make_step: Callable, problems: list[Problem]
):
    # Groups of 67 + 15 and 67 + 21 tokens or so: siblings must be parted, after a first forward
    # that fits has left gradients.
    step = make_step("training.micro_batch_tokens=auto")
    whole = record_gradients(step)
    expected = step.run(problems, 1)
    step = make_step("training.micro_batch_tokens=auto")
    longest = max(len(step.pipeline.encoder.original(problem)) for problem in problems)
    limit = longest + 12
    step.micro_batch_tokens = 8 * limit
    sizes = limit_memory(step, limit)
    gradients = record_gradients(step)
    result = step.run(problems, 1)
    assert max(sizes) > limit
    assert result.micro_batch_tokens == limit
    # 8, 4 and 2 times the limit failed or were as large as 4; what is left fits.
    assert sizes[-1] <= limit
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert gradients.keys() == whole.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[name], rtol=2e-3, atol=2e-6)
    # The next step begins with what was found.
    assert step.run(problems, 2).micro_batch_tokens == limit


def test_a_partly_accumulated_gradient_is_dropped(make_step: Callable, problems: list[Problem]):
    step = make_step("training.micro_batch_tokens=auto")
    step.micro_batch_tokens = 128
    plain = make_step("training.micro_batch_tokens=64")
    plain.micro_batch_tokens = 64
    sizes: list[int] = []
    base, forward = step.student.base, step.student.base.forward

    def fail_once(*arguments: Any, **inputs: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.append(1)
            if len(sizes) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(*arguments, **inputs)

    base.forward = fail_once
    first, second = record_gradients(step), record_gradients(plain)
    step.run(problems, 1)
    plain.run(problems, 1)
    assert len(sizes) > 3
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("setting", ["auto", "64"])
def test_what_cannot_be_made_smaller_or_was_asked_for_fails(
    make_step: Callable, problems: list[Problem], setting: str
):
    step = make_step(f"training.micro_batch_tokens={setting}")
    limit_memory(step, 3)
    with pytest.raises(torch.OutOfMemoryError):
        step.run(problems, 1)


# --- 8-bit moments ----------------------------------------------------------------------------


def test_8_bit_moments_take_a_quarter_and_come_back_bit_by_bit(
    make_step: Callable, problems: list[Problem], tmp_path: Path
):
    step = make_step("training.optimizer=adamw8bit")
    step.run(problems, 1)
    size = sum(
        value.numel() * value.element_size()
        for state in step.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 256
    )
    weights = sum(p.numel() for p in step.student.model.parameters())
    # Two bytes a weight, and eight for the small ones (norms, biases) that stay as they are.
    assert 2 * weights < size < 2.6 * weights
    save_checkpoint(tmp_path / "step", step.student, step.optimizer, {"step": 1})
    fresh = make_step("training.optimizer=adamw8bit")
    load_checkpoint(tmp_path / "step", fresh.student, fresh.optimizer)
    step.run(problems, 2)
    fresh.run(problems, 2)
    assert same_bits(step.student.model.state_dict(), fresh.student.model.state_dict())


# --- settings that do not go together ---------------------------------------------------------


def config_of(make_config: Callable[..., RunConfig], *overrides: str) -> RunConfig:
    return make_config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.train=lora"], "student.lora.rank is not set"),
        (["student.train=all", "student.lora.rank=4"], "use student.train=lora"),
        (["student.quantization=4bit"], "quantized weights cannot be trained"),
        (["student.lora.rnk=4"], "did you mean student.lora.rank"),
        (["training.micro_batch_tokens=much"], "training.micro_batch_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    make_config: Callable, overrides: list[str], message: str
):
    with pytest.raises(ConfigError, match=message):
        make_config(*overrides)


def test_rank_zero_has_no_adapter():
    values = parse_overrides(["student.model=x", "data.train=y", "student.lora.rank=0"])
    assert not parse_config(values).student.has_adapters


def test_quantized_training_without_a_gpu_is_refused(make_config: Callable):
    config = make_config("student.quantization=4bit", "student.lora.rank=4")
    with pytest.raises(ConfigError, match="trains on a CUDA device only, and this is cpu"):
        load_student(config, World())


def test_without_bitsandbytes_the_8_bit_optimizer_is_refused(
    make_step: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(student_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes; install vaopd\[quantize\]"):
        make_step("training.optimizer=adamw8bit")
