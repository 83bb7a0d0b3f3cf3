"""Keys that are set and not read are named, and truly change nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vaopd.config import RunConfig, load_config, parse_config, parse_overrides
from vaopd.config.methods import BUILT_IN
from vaopd.unread import RULES, unread_keys, unread_line

SERVER = "teacher.addresses=[http://127.0.0.1:8777]"
VALIDATED = "data.validation=drawn:validation?count=2"

GRPO = ["method.name=grpo", "sampling.temperature=1", "sampling.top_p=1"]

CASES = [
    (["validation.temperature=0", "training.validate_every=7", "data.allow_overlap=true"],
     ["data.allow_overlap, validation.temperature, training.validate_every "
      "(data.validation is not set)"]),
    (["method.name=sft", VALIDATED, "validation.load_teacher=true", "teacher.batch_tokens=9"], []),
    (["method.name=sft", "validation.load_teacher=true", "teacher.batch_tokens=9"],
     ["teacher.batch_tokens (method.name is sft)",
      "validation.load_teacher (data.validation is not set)"]),
    ([VALIDATED, "validation.temperature=0", "validation.seed=7", "validation.sampled_answers=2"],
     []),
    ([VALIDATED, "validation.temperature=0", "validation.top_p=0.5", "validation.seed=7"],
     ["validation.top_p, validation.seed (validation.temperature is 0)"]),
    (["student.lora.alpha=8", "student.lora.dropout=0.5", "student.lora.target_modules=[q_proj]",
      "student.lora.vision=full"],
     ["student.lora.alpha, student.lora.dropout, student.lora.target_modules, student.lora.vision "
      "(student.lora.rank is not set)"]),
    (["method.name=sft", "teacher.model=tiny:teacher-s", "sampling.temperature=0.5",
      "sampling.max_new_tokens=8"],
     ["teacher.model, sampling.temperature, sampling.max_new_tokens (method.name is sft)"]),
    (["method.name=sft", VALIDATED, "sampling.max_new_tokens=8"], []),
    (["teacher.transfer_dtype=bfloat16", "teacher.timeout_seconds=5"],
     ["teacher.transfer_dtype, teacher.timeout_seconds (teacher.addresses is not set)"]),
    ([SERVER, "teacher.transfer_dtype=bfloat16", "teacher.cache_vision_mb=5"],
     ["teacher.cache_vision_mb (teacher.addresses is set)"]),
    ([SERVER, "teacher.ca_file=ca.pem"],
     ["teacher.ca_file (teacher.addresses has no https address)"]),
    (["teacher.addresses=[https://host:8777]", "teacher.ca_file=ca.pem"], []),
    (["teacher.offload=true", "training.tf32=true", "training.device=cpu"],
     ["teacher.offload, training.tf32 (training.device is cpu)"]),
    (["method.name=off_policy_kd", "teacher.park_hidden=true", "teacher.batch_tokens=5"],
     ["teacher.batch_tokens, teacher.park_hidden (method.name is off_policy_kd)"]),
    (["method.name=opd", "view.name=blur", "view.ratio=0.5"],
     ["view.name, view.ratio (method.name is opd)"]),
    (["method.name=opd", "view.probe=small", VALIDATED, "validation.pixelated=true"],
     ["view.probe (method.name is opd)"]),
    (["method.name=opd", "method.drop=random", "view.ratio=0.5"], []),
    (["method.strength=0.5", "method.floor=0.2"],
     ["method.strength (method.target is teacher)",
      "method.floor (method.target is not contrast)"]),
    (["method.target=sharpened", "method.strength=0.5", "method.beta=0.2"],
     ["method.beta (method.divergence is not jsd)"]),
    (["method.target=contrast", "method.strength=0.5", "method.floor=0.2"], []),
    (["method.drop_fraction=0.3"], ["method.drop_fraction (method.drop is none)"]),
    (["tracking.project=sums"], ["tracking.project (tracking.backend is not set)"]),
    (["tracking.project=sums", "tracking.backend=[wandb]"], []),
    (["method.name=opd", "method.high_fraction=0.3"],
     ["method.high_fraction (method.name is opd)"]),
    (["method.name=opd", "method.high_fraction=0.3", "method.drop=random"], []),
    ([*GRPO, "method.clip=0.3", "teacher.model=tiny:teacher-s"],
     ["teacher.model (method.name is grpo)", "method.clip (sampling.engine is transformers)"]),
    ([*GRPO, "method.clip=0.3", "sampling.engine=vllm"], []),
    ([*GRPO, "method.name=papo", "method.mask_pixels=4"], []),
    ([*GRPO, "method.name=papo", "method.mask_pixels=4", "method.perception_coefficient=0"],
     ["method.mask_pixels (method.perception_coefficient is 0)"]),
    (["view.name=blank", "view.ratio=0.5"], ["view.ratio (view.name is blank)"]),
    (["sampling.vllm.sleep=true", "sampling.vllm.weights_folder=/tmp"],
     ["sampling.vllm.sleep, sampling.vllm.weights_folder (sampling.engine is transformers)"]),
    (["sampling.engine=vllm", "sampling.vllm.addresses=[http://127.0.0.1:8000]",
      "sampling.vllm.python=python", "sampling.vllm.arguments=[--seed, '1']"],
     ["sampling.vllm.python, sampling.vllm.arguments (sampling.vllm.addresses is set)"]),
    (["sampling.engine=vllm", "sampling.batch_tokens=8"],
     ["sampling.batch_tokens (nothing is sampled in process)"]),
    (["sampling.engine=vllm", "sampling.batch_tokens=8", VALIDATED],
     ["sampling.batch_tokens (nothing is sampled in process)"]),
    (["sampling.engine=vllm", "method.name=off_policy_kd", "sampling.batch_tokens=8", VALIDATED],
     []),
    (["sampling.engine=auto", "sampling.vllm.sleep=true", "sampling.batch_tokens=8"], []),
    (["data.columns={image: picture}"], ["data.columns (drawn problems have no columns)"]),
    (["data.columns={image: picture}", "data.validation=held_out.csv"], []),
]  # fmt: skip
"""Overrides over a recipe of the bare minimum, and what is said of them."""


def config_of(*overrides: str) -> RunConfig:
    values = {"student": {"model": "tiny:student"}, "data": {"train": "drawn:train?count=4"}}
    return parse_config(parse_overrides(overrides, values))


@pytest.mark.parametrize(("overrides", "said"), CASES, ids=lambda value: " ".join(value)[:60])
def test_keys_without_an_effect_are_named_with_the_reason(overrides: list[str], said: list[str]):
    assert unread_keys(config_of(*overrides)) == said


def test_every_rule_has_a_case():
    configs = [config_of(*overrides) for overrides, _ in CASES]
    for rule in RULES:
        reasons = [rule.because.format(config=c) for c in configs if rule.holds(c)]
        said = [line for (_, lines), c in zip(CASES, configs, strict=True)
                if rule.holds(c) for line in lines]  # fmt: skip
        assert any(
            line.endswith(f"({reason})") and any(key in line for key in rule.keys)
            for line in said
            for reason in reasons
        ), rule.keys


def test_every_rule_names_keys_of_the_schema():
    flat = config_of().model_dump()
    flat["method"] = {key: 0 for section in BUILT_IN.values() for key in section.model_fields}
    for rule in RULES:
        for key in rule.keys:
            place = flat
            for part in key.split("."):
                assert part in place, key
                place = place[part]


def test_a_plain_recipe_reads_everything_and_defaults_count_for_nothing(tmp_path: Path):
    assert unread_line(config_of()) is None
    # As in the config.yaml of a run, where every key is named.
    (tmp_path / "config.yaml").write_text(config_of().to_yaml())
    assert unread_line(load_config(tmp_path / "config.yaml")) is None


def test_keys_that_ask_for_nothing_are_not_named():
    assert unread_line(config_of("training.validate_every=null")) is None


def test_the_line_is_said_by_dry_run_and_doctor(run: Callable, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    given = ("teacher.model=tiny:teacher-s", "data.train=drawn:train?count=99")
    recipe.write_text(config_of(*given).to_yaml())
    line = "not read: sampling.vllm.sleep (sampling.engine is transformers)\n"
    code, out, err = run("train", recipe, "--dry-run", "sampling.vllm.sleep=true")
    assert code == 0 and err.endswith(line)
    assert "sleep: true" in out and "not read" not in out
    code, _, err = run("doctor", recipe, "--device", "cpu", "sampling.vllm.sleep=true")
    assert (code, err) == (0, line)
