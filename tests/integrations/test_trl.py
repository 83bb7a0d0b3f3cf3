"""VAOPDTrainer: the same step in transformers' Trainer, with the options that TRL's users know."""

import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen3VLForConditionalGeneration
from trl import DistillationConfig

from vaopd.config import parse_config
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, ProblemError
from vaopd.integrations.trl import (
    HARMLESS,
    READ,
    VAOPDConfig,
    VAOPDTrainer,
    only_of_trl,
    problem_of,
)
from vaopd.methods import make_method
from vaopd.models.loading import load_model
from vaopd.problems.reading import reading_rules
from vaopd.problems.sources import load_problems
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.training.pipeline import Pipeline
from vaopd.training.step import Step

# transformers deprecates names that TRL 1.16 still sets.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

PROBLEMS = load_problems("drawn:train?count=4")
ROWS = [
    {
        "prompt": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": ""},
                    {"type": "text", "text": problem.prompt.replace("<image>", "")},
                ],
            }
        ],
        "images": [{"bytes": problem.images[0], "path": None}],
        "answer": problem.answer,
    }
    for problem in PROBLEMS
]


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., VAOPDConfig]:
    def make(**options: Any) -> VAOPDConfig:
        given: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"), "max_steps": 1, "num_generations": 2,
            "per_device_train_batch_size": 2, "max_completion_length": 12, "learning_rate": 6e-4,
            "bf16": False, "use_cpu": True, "logging_steps": 1.0, "report_to": [],
            "shuffle_dataset": True, "data": {"min_pixels": 1024}, "save_strategy": "no",
            "gradient_checkpointing": False,
        }  # fmt: skip
        return VAOPDConfig(**(given | options))

    return make


@pytest.fixture
def make_trainer(make_args: Callable[..., VAOPDConfig]) -> Callable[..., VAOPDTrainer]:
    def make(peft_config: Any = None, **options: Any) -> VAOPDTrainer:
        return VAOPDTrainer(
            "tiny:student",
            "tiny:teacher-s",
            make_args(**options),
            Dataset.from_list(ROWS),
            peft_config=peft_config,
        )

    return make


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_our_own_step(make_trainer: Callable[..., VAOPDTrainer]):
    trainer = make_trainer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer_and_scheduler(1)
    loss = trainer.training_step(trainer.model, {"rows": ROWS[:2]})

    def loaded(name: str) -> Any:
        return load_model(
            name, device=torch.device("cpu"), dtype=torch.float32, compute_dtype=torch.float32
        )

    config = parse_config(
        {
            "student": {"model": "tiny:student"},
            "teacher": {"model": "tiny:teacher-s"},
            "data": {"train": "-", "min_pixels": 1024},
            "sampling": {
                "num_rollouts": 2, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 12,
            },
        }
    )  # fmt: skip
    student = loaded("tiny:student")
    sampler = TransformersSampler(student, batch_tokens=config.sampling.batch_tokens)
    teacher = LocalTeacher(loaded("tiny:teacher-s"), batch_tokens=config.teacher.batch_tokens)
    method = make_method(config.method)
    pipeline = Pipeline(config, method, student, teacher, sampler, World())
    step = Step(pipeline, torch.optim.SGD(student.model.parameters()))
    own = step.accumulate_gradient([problem_of(row) for row in ROWS[:2]], 1)
    assert loss.item() == pytest.approx(own.loss)
    ours, theirs = gradients(student.model), gradients(trainer.model)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, msg=name)


def test_the_example_of_the_docs_trains_and_logs_what_a_run_logs(
    make_trainer: Callable[..., VAOPDTrainer], tmp_path: Path
):
    trainer = make_trainer(max_steps=2)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    assert trainer.train().global_step == 2
    first = trainer.state.log_history[0]
    assert {"loss", "grad_norm", "va/mean", "kl/mean", "weights/relative_share"} <= first.keys()
    assert first["step"] == 1
    after = trainer.model.state_dict()
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_accumulated_prompts_have_the_gradient_of_one_batch(
    make_trainer: Callable[..., VAOPDTrainer],
):
    class Stop(Exception):
        pass

    found = []
    for size, parts in ((2, 1), (1, 2)):
        trainer = make_trainer(per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        # The noise is keyed by the call; here both ways must get the same.
        accumulate = trainer.vaopd_step.accumulate_gradient

        def same_noise(
            problems: Any, number: int, accumulate: Any = accumulate, **more: Any
        ) -> Any:
            return accumulate(problems, 1, **more)

        trainer.vaopd_step.accumulate_gradient = same_noise  # type: ignore[method-assign]

        def keep(*_: Any, trainer: VAOPDTrainer = trainer) -> None:
            found.append(gradients(trainer.model))
            raise Stop

        trainer.create_optimizer_and_scheduler(1)
        trainer.optimizer.step = keep  # type: ignore[method-assign]
        trainer.args.max_grad_norm = 0.0
        with pytest.raises(Stop):
            trainer.train()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_adapters_are_all_that_is_trained(
    make_trainer: Callable[..., VAOPDTrainer], tmp_path: Path
):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(lora)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= set(trained)
    # What is saved is a plain model with the adapters merged, which transformers loads.
    trainer.save_model(str(tmp_path / "saved"))
    saved = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "saved")
    merged = dict(saved.named_parameters())
    name = next(n for n in before if n.endswith("q_proj.base_layer.weight"))
    assert not torch.equal(merged[name.replace(".base_layer", "")], before[name])
    with pytest.raises(ConfigError, match="cannot be resumed"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "saved"))


def test_every_option_of_trl_is_known():
    # A new minor of TRL may add, rename or drop options: decide for each whether it is read.
    assert set(READ | HARMLESS) <= only_of_trl()
    assert only_of_trl() == {
        "model_init_kwargs", "trust_remote_code", "teacher_model_name_or_path",
        "teacher_model_revision", "teacher_model_init_kwargs", "disable_dropout",
        "max_completion_length", "ds3_gather_for_generation", "shuffle_dataset",
        "pad_to_multiple_of", "temperature", "top_p", "top_k", "min_p", "generation_kwargs",
        "chat_template_kwargs", "repetition_penalty", "cache_implementation", "use_vllm",
        "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode",
        "vllm_structured_outputs_regex", "vllm_server_base_url", "vllm_server_host",
        "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
        "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
        "beta", "max_tool_calling_iterations", "log_completions", "num_completions_to_print",
        "log_unique_prompts",
    }  # fmt: skip
    assert {"temperature", "num_generations"} <= {one.name for one in fields(VAOPDConfig)}


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_vllm", True), ("top_k", 5), ("shuffle_dataset", False), ("model_init_kwargs", {"a": 1})],
)
def test_an_option_that_is_not_read_is_an_error(
    make_args: Callable[..., VAOPDConfig], option: str, value: Any
):
    with pytest.raises(ConfigError, match=rf"{option} is .*, which VAOPDTrainer does not read"):
        make_args(**{option: value})


@pytest.mark.parametrize(
    ("beta", "expected"), [(1.0, ("reverse", 0.5)), (0.0, ("forward", 0.5)), (0.3, ("jsd", 0.3))]
)
def test_beta_means_what_it_means_in_trl(
    make_args: Callable[..., VAOPDConfig], beta: float, expected: tuple
):
    method: Any = make_args(beta=beta).recipe("tiny:student", "tiny:teacher-s").method
    assert (method.divergence, method.beta) == expected
    assert DistillationConfig.__dataclass_fields__["beta"].default == 1.0


def test_a_method_is_a_name_or_a_section(make_args: Callable[..., VAOPDConfig]):
    section = {"name": "opd", "target": "contrast"}
    config = make_args(method=section).recipe("tiny:student", "tiny:teacher-s")
    assert (config.method.name, config.method.target) == ("opd", "contrast")  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="unknown key"):
        make_args(method={"name": "opd", "targt": "contrast"}).recipe("a", "b")


def test_what_cannot_be_trained_is_said_before_anything_is_loaded(
    make_args: Callable[..., VAOPDConfig],
):
    with pytest.raises(ConfigError, match="there is no teacher"):
        VAOPDTrainer("tiny:student", None, make_args(), Dataset.from_list(ROWS))
    with pytest.raises(ConfigError, match="there is no train_dataset"):
        VAOPDTrainer("tiny:student", "tiny:teacher-s", make_args())
    rewarded = make_args(method="grpo", temperature=1.0, top_p=1.0)
    with pytest.raises(ConfigError, match="method is 'grpo', which learns from rewards and no"):
        VAOPDTrainer("tiny:student", "tiny:teacher-s", rewarded, Dataset.from_list(ROWS))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is it?", "image": Image.new("RGB", (40, 30), "white")},
        {"prompt": "<image>What is it?", "images": [png()]},
        {"prompt": [{"role": "user", "content": "What is it?"}], "images": [{"bytes": png()}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.new("RGB", (40, 30), "white")},
                        {"type": "text", "text": "What is it?"},
                    ],
                },
                {"role": "assistant", "content": "A page."},
            ]
        },
    ],
    ids=["image beside", "placeholder", "messages and images", "image in its part"],
)
def test_rows_as_people_keep_them_are_one_problem(row: dict[str, Any]):
    problem = problem_of(row)
    assert problem.prompt == "<image>What is it?"
    assert problem.load_images()[0].size == (40, 30)
    assert problem.id == problem_of(row).id


@pytest.mark.parametrize("name", ["teacher_images", "teacher_image"])
def test_a_row_may_have_an_image_for_the_teacher(name: str):
    row = {"prompt": "What is it?", "image": png()}
    problem = problem_of(row | {name: Image.new("RGB", (80, 60))})
    assert problem.for_teacher().load_images()[0].size == (80, 60)
    assert problem.load_images()[0].size == (40, 30)


def test_a_row_without_a_question_or_an_image_is_one_sentence():
    with pytest.raises(ProblemError, match="the row has no question"):
        problem_of({"image": png()})
    with pytest.raises(ProblemError, match="has no image"):
        problem_of({"prompt": "What is it?"})
    with pytest.raises(ProblemError, match=r"'missing\.png', which cannot be read"):
        problem_of({"prompt": "What is it?", "image": "missing.png"})


def test_the_data_section_names_columns_and_adds_texts(make_args: Callable[..., VAOPDConfig]):
    data = {"columns": {"question": "text", "image": "figure"}, "prompt_suffix": "Box it."}
    config = make_args(data=data).recipe("tiny:student", "tiny:teacher-s")
    row = {"text": "What is it?", "figure": Image.new("RGB", (40, 30)), "answer": "5"}
    problem = problem_of(row, reading_rules(config.data))
    assert (problem.prompt, problem.answer) == ("<image>What is it?\nBox it.", "5")
    with pytest.raises(ConfigError, match="maps image to the column figure, which train_dataset"):
        problem_of({"text": "What is it?", "picture": png()}, reading_rules(config.data))
