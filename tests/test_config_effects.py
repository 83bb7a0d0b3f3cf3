"""Every key of a recipe does something that can be seen.

A key that is in the schema and not read, or read and not passed on, breaks no test of the function
that should get it. Here each key of the schema is changed in a tiny run, and what the key is for
has to change with it.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fake_vllm import fake_python
from PIL import Image
from pydantic import BaseModel
from tests.observed_run import Observed, observe
from tests.teacher_service import TOKEN, serve_model

from vaopd.config import RunConfig
from vaopd.models.loading import load_model
from vaopd.problems.sources import load_problems
from vaopd.records import write_rows
from vaopd.teacher.remote import pool

# --- what can be seen -------------------------------------------------------------------------


def of_rollouts(name: str) -> Callable[[Observed], Any]:
    return lambda seen: [row[name] for row in seen.rollouts]


def of_metrics(name: str) -> Callable[[Observed], Any]:
    return lambda seen: [row.get(name) for row in seen.metrics]


def of_answers(name: str) -> Callable[[Observed], Any]:
    return lambda seen: [row.get(name) for row in seen.answers]


def answered(seen: Observed) -> Any:
    """Tokens of each response, in whatever order the problems came."""
    return {(row["problem_id"], row["sibling"]): row["token_ids"] for row in seen.rollouts}


def error(seen: Observed) -> Any:
    """Whether the run was refused."""
    return bool(seen.error)


def reason(seen: Observed) -> Any:
    """Why the run was refused."""
    return seen.error


def final_weights(seen: Observed) -> Any:
    return seen.files["final/model.safetensors"]


def files(seen: Observed) -> Any:
    return set(seen.files)


def forwards(seen: Observed) -> Any:
    return seen.forwards


def saved_tensors(seen: Observed) -> Any:
    return seen.saved_tensors


def validation(seen: Observed) -> Any:
    return seen.validation


def tracked(seen: Observed) -> Any:
    """Project, name and place that a stand-in for trackio was given."""
    return seen.tracked


def of_push(seen: Observed) -> Any:
    """What the run said about a push to the hub."""
    return [line for line in seen.said if "hub" in line]


def vllm_log(seen: Observed) -> Any:
    return seen.vllm_log


loss, num_steps, lag = of_metrics("loss"), of_metrics("step"), of_metrics("rollout/lag")
tokens, problems = of_rollouts("token_ids"), of_rollouts("problem_id")
advantage, high = of_rollouts("visual_advantage"), of_rollouts("is_high")
token_weight, rollout_weight = of_rollouts("token_weight"), of_rollouts("rollout_weight")
answers = of_answers("token_ids")


# --- which key changes what -------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    value: str
    """Other than the default; as in an override."""

    see: Callable[[Observed], Any]
    """What differs between the run with this value and the run without it."""

    given: tuple[str, ...] = ()
    """Overrides of both runs, where the key has an effect only under some."""


# Neither teacher nor sampling: the cheapest run, for keys that do not ask about the method.
SFT = ("method.name=sft",)
SFT_STEPS = (*SFT, "training.max_steps=2")
# Weights of this size overflow in the second step, which is skipped.
BROKEN = (*SFT_STEPS, "training.learning_rate=1e30")
WILD = (*SFT_STEPS, "training.learning_rate=10", "training.warmup_fraction=0")
SAVES = (*SFT_STEPS, "training.save_every=1")
LORA = (*SFT, "student.lora.rank=2")
HELD_OUT = (*SFT, "data.validation=drawn:validation?count=2")
DEGRADED = ("data.validation=drawn:validation?count=2", "validation.pixelated=true")
BOTH_VIEWS = (*SFT, *DEGRADED)
WITH_TEACHER = (*BOTH_VIEWS, "validation.load_teacher=true")
ONE_A_STEP = ("training.problems_per_step=1",)
TWO_PROBLEMS = ("data.train=drawn:train?count=2",)
VLLM = ("sampling.engine=vllm",)
TRACKED = (*SFT, "tracking.backend=[trackio]")
# Names in braces are filled in by the fixture `places`.
GRPO = ("method.name=grpo", "sampling.temperature=1", "sampling.top_p=1")
PAPO = ("method.name=papo", "sampling.temperature=1", "sampling.top_p=1")
# One of two siblings is right, and vLLM drew its tokens at another probability than ours.
SAID = (*GRPO, *VLLM, *TWO_PROBLEMS, "sampling.vllm.arguments=[--says, '{right}']")
SERVER = ("teacher.addresses=[{server}]",)
DEAD = "['http://127.0.0.1:1']"
SCALED = ("data.min_pixels=40000",)

EFFECTS: dict[str, list[Effect]] = {
    "student.model": [Effect("tiny:new-student", loss)],
    "student.dtype": [Effect("bfloat16", loss)],
    "student.train": [Effect("language", final_weights, SFT)],
    "student.lora.rank": [Effect("2", files, SFT)],
    "student.lora.alpha": [Effect("64", final_weights, LORA)],
    "student.lora.dropout": [Effect("0.5", final_weights, LORA)],
    "student.lora.target_modules": [Effect("[q_proj]", final_weights, LORA)],
    "student.lora.vision": [Effect("full", final_weights, LORA)],
    # It trains on a CUDA device only.
    "student.quantization": [Effect("8bit", error, LORA)],
    "student.gradient_checkpointing": [Effect("true", forwards, SFT)],
    "student.activation_offload": [Effect("true", saved_tensors, SFT)],
    "teacher.model": [Effect("tiny:teacher-m", loss)],
    "teacher.dtype": [Effect("bfloat16", loss)],
    # Random weights cannot be quantized.
    "teacher.quantization": [Effect("8bit", error, ("teacher.model=tiny:new-teacher-s",))],
    "teacher.batch_tokens": [Effect("1", forwards), Effect("1", forwards, SERVER)],
    "teacher.addresses": [Effect(DEAD, error)],
    "teacher.ca_file": [Effect("missing.pem", error, SERVER)],
    "teacher.transfer_dtype": [Effect("bfloat16", loss, SERVER)],
    "teacher.timeout_seconds": [Effect("1e-9", error, SERVER)],
    "teacher.cache_vision_mb": [Effect("10", forwards, ("training.max_steps=2", *TWO_PROBLEMS))],
    "data.train": [Effect("drawn:train?count=8", problems)],
    "data.validation": [Effect("drawn:validation?count=2", files, SFT)],
    "data.columns": [
        Effect(
            "{question: text, image: figure, answer: solution}",
            error,
            ("data.train={named}", *ONE_A_STEP),
        )
    ],
    "data.system_prompt": [Effect("Be brief.", loss), Effect("Be brief.", answers, HELD_OUT)],
    "data.prompt_suffix": [Effect("Be brief.", loss), Effect("Be brief.", answers, HELD_OUT)],
    "data.allow_text_only": [Effect("true", error, ("data.train={text}", *ONE_A_STEP))],
    "data.allow_overlap": [Effect("true", error, (*SFT, "data.validation=drawn:train?count=1"))],
    "data.max_prompt_tokens": [Effect("10", error, SFT)],
    "data.check_images": [
        Effect("false", error, ("data.train={broken}", "training.problems_per_step=1"))
    ],
    "data.on_bad_row": [
        Effect("skip", error, ("data.train={broken}", "training.problems_per_step=1"))
    ],
    "data.min_pixels": [Effect("40000", loss), Effect("40000", answers, HELD_OUT)],
    "data.max_pixels": [Effect("2048", loss)],
    "data.max_stored_pixels": [
        Effect("10", error, ("data.train={broken}", "data.on_bad_row=skip", *ONE_A_STEP))
    ],
    "data.allow_outside": [Effect("true", error, ("data.train={outside}", *ONE_A_STEP))],
    # Without a network: refused for another reason, as an address of this machine.
    "data.allow_urls": [Effect("true", reason, ("data.train={address}", *SFT))],
    "method.name": [
        Effect("token_only", rollout_weight),
        Effect("off_policy_kd", tokens),
    ],
    "method.target": [Effect("contrast", loss), Effect("sharpened", loss)],
    "method.strength": [Effect("0.4", loss, ("method.target=contrast",))],
    "method.floor": [Effect("0.9", loss, ("method.target=contrast",))],
    "method.divergence": [Effect("forward", loss)],
    "method.beta": [Effect("0.2", loss, ("method.divergence=jsd",))],
    "method.advantage": [Effect("view_divergence", advantage)],
    "method.high_fraction": [
        Effect("0.6", high),
        Effect("0.6", token_weight),
        Effect("0.6", validation, ("method.name=opd", *DEGRADED)),
    ],
    "method.high_mass": [Effect("0.9", token_weight)],
    "method.rollout_temperature": [Effect("5", rollout_weight)],
    "method.rollout_score": [Effect("sum", rollout_weight)],
    "method.no_suppress": [Effect("true", token_weight)],
    "method.effective_share": [Effect("0.95", token_weight)],
    "method.shuffled": [Effect("true", high)],
    "method.match_norm": [Effect("true", forwards)],
    "method.epsilon": [Effect("1", rollout_weight)],
    "method.minimum_advantage": [Effect("50", token_weight)],
    "method.deviation_floor": [Effect("5", rollout_weight)],
    "method.drop": [Effect("highest", token_weight)],
    "method.drop_fraction": [Effect("0.6", token_weight, ("method.drop=highest",))],
    "method.label_smoothing": [Effect("0.3", loss, ("method.name=off_policy_kd",))],
    "method.clip": [Effect("0.9", loss, SAID)],
    "method.reference_coefficient": [Effect("0", forwards, GRPO)],
    "method.perception_coefficient": [Effect("0.5", loss, PAPO)],
    "method.entropy_coefficient": [Effect("0.5", loss, PAPO)],
    "method.mask_fraction": [Effect("0.9", loss, PAPO)],
    "method.mask_pixels": [Effect("4", loss, PAPO)],
    "view.name": [Effect("blank", advantage), Effect("blank", validation, WITH_TEACHER)],
    "view.ratio": [Effect("0.5", advantage)],
    "view.stage": [
        Effect("native", advantage, SCALED),
        Effect("native", advantage, (*SCALED, "view.probe=small")),
    ],
    "view.probe": [Effect("small", advantage)],
    "sampling.num_rollouts": [Effect("3", tokens)],
    "sampling.temperature": [Effect("3", tokens)],
    "sampling.top_p": [Effect("0.01", tokens, ("sampling.temperature=3",))],
    "sampling.max_new_tokens": [Effect("3", tokens), Effect("3", answers, HELD_OUT)],
    "sampling.engine": [Effect("vllm", files)],  # auto: tests/rollouts/test_choice.py
    "sampling.vllm.transfer": [Effect("ipc", error, VLLM)],
    "sampling.vllm.python": [Effect("/nowhere", error, VLLM)],
    "sampling.vllm.arguments": [Effect("[--max-model-len, '99']", vllm_log, VLLM)],
    "sampling.vllm.addresses": [Effect(DEAD, error, VLLM)],
    "sampling.vllm.gpus": [Effect("[7]", vllm_log, VLLM)],
    "sampling.vllm.sleep": [Effect("true", vllm_log, VLLM)],
    "sampling.vllm.weights_folder": [Effect("{folder}", vllm_log, VLLM)],
    "sampling.batch_tokens": [Effect("1", forwards), Effect("1", forwards, HELD_OUT)],
    "validation.num_samples": [Effect("2", answers, HELD_OUT)],
    "validation.temperature": [Effect("4", answers, HELD_OUT)],
    "validation.top_p": [Effect("0.01", answers, (*HELD_OUT, "validation.temperature=4"))],
    "validation.pixelated": [Effect("true", validation, HELD_OUT)],
    "validation.load_teacher": [
        Effect("true", validation, BOTH_VIEWS),
        Effect("true", validation, HELD_OUT),
    ],
    "validation.sampled_answers": [Effect("2", validation, HELD_OUT)],
    "validation.seed": [Effect("1", answers, (*HELD_OUT, "validation.temperature=4"))],
    "training.problems_per_step": [Effect("1", problems)],
    "training.epochs": [Effect("2", num_steps, (*SFT, "training.max_steps=null", *TWO_PROBLEMS))],
    "training.max_steps": [Effect("2", num_steps, SFT)],
    "training.learning_rate": [Effect("1e-4", final_weights, SFT)],
    "training.final_learning_rate_fraction": [Effect("0.5", final_weights, SFT_STEPS)],
    "training.warmup_fraction": [Effect("1", final_weights, SFT_STEPS)],
    "training.betas": [Effect("[0.9, 0.5]", final_weights, SFT_STEPS)],
    "training.weight_decay": [Effect("0.5", final_weights, SFT)],
    "training.optimizer": [Effect("adamw8bit", final_weights, SFT_STEPS)],
    "training.max_gradient_norm": [Effect("1e-6", final_weights, SFT)],
    "training.max_skipped_steps": [Effect("1", error, BROKEN)],
    # The first update makes the weights useless, so the loss of the second step is a spike.
    "training.spike_factor": [Effect("null", final_weights, WILD)],
    "training.micro_batch_tokens": [Effect("1", forwards)],
    "training.share_prefix": [
        Effect("false", forwards),
        # The student alone: no teacher scores.
        Effect("false", forwards, ("method.name=off_policy_kd",)),
    ],
    "training.rollout_lag": [Effect("1", lag, (*SERVER, "training.max_steps=2"))],
    "training.seed": [
        Effect("1", problems),
        Effect("1", answered, (*TWO_PROBLEMS, "sampling.temperature=3")),
        Effect("1", loss, ("student.model=tiny:new-student", *SFT, *TWO_PROBLEMS)),
        Effect("1", final_weights, (*LORA, *TWO_PROBLEMS)),
    ],
    "training.save_every": [Effect("1", files, SFT_STEPS)],
    "training.validate_every": [Effect("1", validation, (*HELD_OUT, "training.max_steps=2"))],
    "training.keep_checkpoints": [Effect("1", files, SAVES)],
    "training.keep_every": [Effect("1", files, (*SAVES, "training.keep_checkpoints=1"))],
    "training.gradient_noise_every": [Effect("1", of_metrics("gradient/signal"))],
    "training.log_rollouts_every": [Effect("null", files)],
    "training.device": [Effect("gpu0", error, SFT)],
    # Nothing of torchrun is here.
    "training.parallel": [Effect("ddp", error, SFT)],
    "training.save_dtype": [Effect("bfloat16", final_weights, SFT)],
    # Without a network: the run ends well and says that its push failed.
    "training.push_to_hub": [Effect("somebody/model", of_push, SFT)],
    "tracking.backend": [Effect("[trackio]", tracked, SFT)],
    "tracking.project": [Effect("other", tracked, TRACKED)],
    "tracking.name": [Effect("other", tracked, TRACKED)],
    "tracking.offline": [Effect("true", tracked, TRACKED)],
}

UNSEEN = {
    "teacher.offload": "weights move between a GPU and main memory; on a CPU they are there",
    "training.tf32": "products of float32 are computed by the GPU's units for TF32",
    "teacher.park_hidden": "hidden states move between a GPU and main memory, without any change",
}
"""Keys whose effect needs a GPU, with what they do there."""


# --- the schema -------------------------------------------------------------------------------


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections in the type of a field: of a union, every one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def leaves(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the path of every key of a schema that is no section."""
    found: dict[str, None] = {}
    for name, field in schema.model_fields.items():
        sections = sections_of(field.annotation)
        inner = [key for section in sections for key in leaves(section, f"{prefix}{name}.")]
        found |= dict.fromkeys(inner if sections else [f"{prefix}{name}"])
    return list(found)


def test_every_key_of_the_schema_has_an_effect_here():
    keys = leaves(RunConfig)
    assert len(keys) > 60
    for key in keys:
        assert key in EFFECTS or key in UNSEEN, (
            f"{key} is a key of the recipe without an entry in EFFECTS: name another value and "
            "what changes with it; UNSEEN is for keys that do nothing on a CPU"
        )


def test_every_effect_is_that_of_one_key_of_the_schema():
    assert EFFECTS.keys() | UNSEEN.keys() <= set(leaves(RunConfig))
    assert not EFFECTS.keys() & UNSEEN.keys()


# --- the effects ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return what effects name in braces: a teacher's server, a folder, damaged data."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "weights").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAOPD_VLLM_PYTHON", str(fake_python(folder)))
        patch.setenv("VAOPD_TEACHER_TOKEN", TOKEN)
        patch.setattr(pool, "FIRST_WAIT_SECONDS", 0.01)
        cpu = torch.device("cpu")
        options = {"dtype": torch.float32, "compute_dtype": torch.float32}
        service = serve_model(load_model("tiny:teacher-s", device=cpu, **options))
        yield {
            "server": service.url,
            "right": says_answer(),
            "folder": str(folder / "weights"),
            "broken": broken_data(folder),
            "text": text_data(folder),
            "named": data_of(folder / "named", "x.png", columns=("text", "figure", "solution")),
            "outside": data_of(folder / "elsewhere", str(folder / "good.png")),
            "address": data_of(folder / "web", "http://127.0.0.1/x.png"),
        }
        service.stop()


def says_answer() -> str:
    """Return token ids that answer every problem as the first of two wants it."""
    student = load_model(
        "tiny:student", device=torch.device("cpu"), dtype=torch.float32, compute_dtype=torch.float32
    )
    answer = load_problems("drawn:train?count=2")[0].answer
    text = f"The answer is \\boxed{{{answer}}}"
    ids = student.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ",".join(map(str, [*ids, student.tokenizer.eos_token_id]))


def broken_data(folder: Path) -> str:
    """Write two problems, of which the second step's has a damaged image."""
    for name in ("good.png", "damaged.png"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / name)
    os.truncate(folder / "damaged.png", 2000)
    names = ("good.png", "damaged.png")
    rows = [{"images": [n], "problem": "<image>What is it?", "answer": "1"} for n in names]
    write_rows(folder / "data.jsonl", rows)
    return str(folder / "data.jsonl")


def text_data(folder: Path) -> str:
    """Write a problem with an image and one without."""
    path = Path(data_of(folder / "text", "x.png"))
    row = {"problem": "What is 2 + 2?", "images": [], "answer": "4"}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    return str(path)


def data_of(
    folder: Path, image: str, columns: tuple[str, ...] = ("problem", "images", "answer")
) -> str:
    """Write one problem with an image of this name."""
    folder.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "x.png")
    cells = ("<image>What is it?", [image], "1")
    write_rows(folder / "data.jsonl", [dict(zip(columns, cells, strict=True))])
    return str(folder / "data.jsonl")


@pytest.fixture(scope="module")
def observed(
    places: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Observed]:
    """Return what is seen of a run by its overrides; equal runs are run once."""
    known: dict[tuple[str, ...], Observed] = {}

    def look(*overrides: str) -> Observed:
        overrides = tuple(fill(override, places) for override in overrides)
        if overrides not in known:
            known[overrides] = observe(tmp_path_factory.mktemp("runs") / "run", *overrides)
        return known[overrides]

    return look


def fill(text: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", value)
    return text


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        pytest.param(key, effect, id=f"{key}-{number}")
        for key, effects in EFFECTS.items()
        for number, effect in enumerate(effects)
    ],
)
def test_another_value_of_the_key_is_seen_in_the_run(
    observed: Callable[..., Observed], key: str, effect: Effect
):
    usual, changed = observed(*effect.given), observed(*effect.given, f"{key}={effect.value}")
    if effect.see not in (error, reason):
        assert not usual.error and not changed.error
    assert effect.see(usual) != effect.see(changed), (
        f"{key}={effect.value} changes nothing: it is not read, or not passed on"
    )
