from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vaopd.config import RunConfig, load_config, parse_config, parse_overrides
from vaopd.config.reference import reference
from vaopd.errors import ConfigError

MINIMAL = {"student": {"model": "S"}, "data": {"train": "D"}}

PAPER = {
    "teacher.model": "Qwen/Qwen3-VL-8B-Instruct",
    "data.max_prompt_tokens": 8192,
    "data.min_pixels": 262_144,
    "data.max_pixels": 4_194_304,
    "method.name": "va_opd",
    "method.high_fraction": 0.2,
    "method.high_mass": 0.5,
    "method.rollout_temperature": 1.0,
    "method.epsilon": 1e-6,
    "method.minimum_advantage": 0.0,
    "method.deviation_floor": 0.0,
    "view.name": "pixelate",
    "view.ratio": 0.1,
    "view.stage": "budget",
    "sampling.num_rollouts": 4,
    "sampling.temperature": 0.7,
    "sampling.top_p": 0.95,
    "sampling.max_new_tokens": 4096,
    "validation.num_samples": 8,
    "validation.temperature": 1.0,
    "validation.top_p": 1.0,
    "training.problems_per_step": 16,
    "training.epochs": 5,
    "training.max_steps": None,
    "training.learning_rate": 1e-6,
    "training.final_learning_rate_fraction": 0.0,
    "training.warmup_fraction": 0.05,
    "training.betas": (0.9, 0.95),
    "training.weight_decay": 0.1,
    "training.max_gradient_norm": 1.0,
    "training.seed": 42,
    "training.save_every": 50,
    "training.validate_every": 50,
}
"""Hyper-parameters of Liu et al. 2026 (arXiv:2605.21924) and of its official release."""


def config(*overrides: str) -> RunConfig:
    return parse_config(parse_overrides(overrides, yaml.safe_load(yaml.safe_dump(MINIMAL))))


def value(of: RunConfig, path: str) -> Any:
    section, key = path.split(".")
    return getattr(getattr(of, section), key)


@pytest.mark.parametrize(("path", "expected"), PAPER.items())
def test_the_default_is_the_value_of_the_paper(path: str, expected: Any):
    assert value(config(), path) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # YAML 1.1 reads an exponent without a decimal point as text.
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=2.5E-3", 2.5e-3),
        ("training.max_steps=7", 7),
        ("training.save_every=null", None),
        ("training.share_prefix=false", False),
        ("training.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.validation=drawn:validation?count=2&seed=1", "drawn:validation?count=2&seed=1"),
        ("student.model=tiny:new-student", "tiny:new-student"),
        ("view.ratio=1", 1.0),
    ],
)
def test_an_override_sets_one_value_with_its_type(override: str, expected: Any):
    result = value(config(override), override.partition("=")[0])
    assert result == expected
    assert type(result) is type(expected)


def test_an_override_leaves_every_other_value_alone():
    changed = config("training.max_steps=3").model_dump()
    changed["training"]["max_steps"] = None
    assert changed == config().model_dump()


def test_the_last_of_two_overrides_of_a_key_wins():
    assert config("view.ratio=0.2", "view.ratio=0.3").view.ratio == 0.3


def test_a_recipe_section_and_an_override_of_it_are_merged(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(MINIMAL | {"training": {"epochs": 2}}))
    training = load_config(recipe, ["training.max_steps=9"]).training
    assert (training.epochs, training.max_steps) == (2, 9)


@pytest.mark.parametrize("override", ["training.max_steps", "=3", "training.=3", ".epochs=3"])
def test_an_override_that_is_no_assignment_is_refused(override: str):
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        config(override)


def test_an_override_into_a_plain_value_is_refused():
    with pytest.raises(ConfigError, match="goes into 'model', which is not a section"):
        config("student.model.name=x")


def test_a_section_that_is_given_a_value_says_how_its_keys_are_written():
    with pytest.raises(
        ConfigError, match=r"^view is 1, but it is a section; write view\.KEY=VALUE"
    ):
        parse_config(parse_overrides(["student.model=s", "data.train=drawn:train", "view=1"]))


def test_an_override_with_broken_yaml_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"override 'training.betas=\[1") as error:
        config("training.betas=[1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.learning_rates=1", "training.learning_rate"),
        ("sampling.max_tokens=1", "sampling.max_new_tokens"),
        ("method.high_frac=0.1", "method.high_fraction"),
        ("trainning.seed=1", "training"),
        ("training.lambda.x=1", "training"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(override: str, nearest: str):
    with pytest.raises(ConfigError, match=rf"unknown key .*; did you mean {nearest}"):
        config(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=many", r"training\.epochs is 'many': input should be a valid integer"),
        ("training.epochs=1.5", r"training\.epochs is 1\.5: .*integer"),
        ("training.epochs=0", r"training\.epochs is 0: .*greater than or equal to 1"),
        ("method.name=ppo", r"method\.name is 'ppo', which does not exist; use one of va_opd, "),
        ("method.high_fraction=1.2", r"method\.high_fraction is 1\.2"),
        ("method.epsilon=-1", r"method\.epsilon is -1"),
        ("method.epsilon=.inf", r"method\.epsilon is inf"),
        ("method.epsilon=.nan", r"method\.epsilon is nan"),
        ("training.weight_decay=.inf", r"training\.weight_decay is inf"),
        ("training.learning_rate=0", r"training\.learning_rate is 0"),
        ("training.learning_rate=.inf", r"training\.learning_rate is inf"),
        # torch's AdamW takes no decay rate of 1, and its generators no seed of 64 bits.
        ("training.betas=[0.9, 1.0]", r"training\.betas\.1 is 1\.0: .*less than 1"),
        ("training.betas=[0.9]", r"training\.betas\.1 is missing"),
        ("training.seed=-1", r"training\.seed is -1"),
        ("training.seed=9223372036854775808", r"training\.seed is 9223372036854775808"),
        ("view.ratio=0", r"view\.ratio is 0"),
        ("sampling.top_p=0", r"sampling\.top_p is 0"),
        ("data.min_pixels=5000000", r"data\.min_pixels is 5000000, above data\.max_pixels"),
        ("training=3", r"training is 3"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        config(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=sft", "method.drop=random"], "method.drop is not read by method.name=sft"),
        (["method.name=off_policy_kd", "method.drop=lowest"], "method.drop is not read by"),
        (["method.name=opd", "method.advantage=absolute"], "method.name=opd uses no advantage"),
        (["method.name=opd", "method.high_mass=0.3"], "but by va_opd, token_only; leave it out"),
        (["method.name=opd", "method.high_mass=0.3"], "or write method={name: opd} to replace"),
        (["method=sft"], "method is 'sft', but it is a section"),
        (["view.probe=small", "view.name=noise"], "view.name=noise has no smaller image"),
    ],
)
def test_values_that_cannot_go_together_are_refused(overrides: list[str], message: str):
    values = parse_overrides(["student.model=s", "data.train=t", *overrides])
    with pytest.raises(ConfigError, match=message):
        parse_config(values)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.vllm.arguments=[--api-key, s3cret]", "sampling.vllm.arguments holds --api-key"),
        ("sampling.vllm.arguments=[--api-key=s3cret]", "sampling.vllm.arguments holds --api-key"),
        ("teacher.addresses=['http://me:s3cret@host:1']", "string should match pattern"),
        ("sampling.vllm.addresses=['https://s3cret@host']", "string should match pattern"),
    ],
)
def test_a_recipe_holds_no_secret(override: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        config(override)


def test_opd_may_drop_tokens_by_another_advantage():
    overrides = ["method.name=opd", "method.drop=highest", "method.advantage=absolute"]
    method = parse_config(parse_overrides(["student.model=s", "data.train=t", *overrides])).method
    assert method.needs.views == 2


def test_all_errors_are_reported_together():
    with pytest.raises(ConfigError) as error:
        parse_config(
            {
                "student": {},
                "data": {"train": 3, "min_pixel": 1},
                "training": {"epochs": 0, "learning_rate": "fast"},
            }
        )
    message = str(error.value)
    for part in (
        "student.model is missing; set it in the recipe or add student.model=VALUE",
        "data.train is 3",
        "unknown key data.min_pixel; did you mean data.min_pixels?",
        "training.epochs is 0",
        "training.learning_rate is 'fast'",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [("student: [", "is not valid YAML"), ("- a", "must be a mapping"), ("", "must be a mapping")],
)
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(recipe)
    assert "\n" not in str(error.value)


def test_a_recipe_in_another_encoding_is_refused(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("# für 2B\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not valid YAML: 'utf-8' codec"):
        load_config(path)


def test_a_missing_recipe_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_configuration_cannot_be_changed_after_parsing():
    with pytest.raises(ValueError, match="frozen"):
        config().training.epochs = 3  # type: ignore[misc]


@settings(deadline=None)
@given(
    rate=st.floats(1e-12, 1e3),
    name=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    steps=st.none() | st.integers(1, 10**9),
)
def test_the_resolved_yaml_gives_the_same_configuration(rate: float, name: str, steps: int | None):
    values = {
        "student": {"model": name},
        "data": {"train": "D", "validation": name},
        "training": {"learning_rate": rate, "max_steps": steps, "betas": [0.1, 0.2]},
    }
    resolved = parse_config(values)
    assert parse_config(yaml.safe_load(resolved.to_yaml())) == resolved


def test_the_resolved_yaml_spells_out_every_default():
    written = yaml.safe_load(config().to_yaml())
    assert {f"{s}.{k}" for s, keys in written.items() for k in keys} >= set(PAPER)


@pytest.mark.parametrize("save_every", ["20", "null"])
def test_checkpoints_kept_for_good_must_be_saved_at_all(save_every: str):
    with pytest.raises(
        ConfigError, match=r"training\.keep_every is 30, not a multiple of .*save_every"
    ):
        parse_config(
            parse_overrides(
                [
                    "student.model=a",
                    "data.train=b",
                    f"training.save_every={save_every}",
                    "training.keep_every=30",
                ]
            )
        )


def test_a_sharded_teacher_keeps_no_features_of_images():
    overrides = ["student.model=a", "data.train=b", "teacher.cache_vision_mb=10"]
    parse_config(parse_overrides([*overrides, "training.parallel=ddp"]))
    with pytest.raises(ConfigError, match=r"teacher\.cache_vision_mb is 10, .*fsdp2.* use ddp"):
        parse_config(parse_overrides([*overrides, "training.parallel=fsdp2"]))


@pytest.mark.parametrize(
    "override",
    [
        "student.activation_offload=true",
        "teacher.quantization=8bit",
        "teacher.offload=true",
        "training.optimizer=adamw8bit",
        "training.micro_batch_tokens=auto",
    ],
)
def test_what_cannot_be_sharded_is_told_before_anything_is_loaded(tmp_path: Path, override: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "student: {model: a}\nteacher: {model: b}\ndata: {train: c}\n", encoding="utf-8"
    )
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"does not go together with {key}"):
        load_config(path, [override, "training.parallel=fsdp2"])
    assert load_config(path, [override, "training.parallel=ddp"]).training.parallel == "ddp"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout_lag=1", "vllm.sleep=true"), "vLLM does nothing while the student trains"),
        (
            ("vllm.transfer=ipc", "vllm.addresses=['http://a:1']"),
            "'ipc', which is for a server that",
        ),
        (("vllm.gpus=[1]", "vllm.addresses=['http://a:1']"), "for a server that the run starts"),
    ],
)
def test_what_vllm_cannot_do_together_is_refused(overrides: tuple[str, ...], message: str):
    keys = [("sampling." if o.startswith("vllm") else "training.") + o for o in overrides]
    with pytest.raises(ConfigError, match=message):
        config("sampling.engine=vllm", *keys)
    # Each of them is allowed alone.
    for key in keys:
        config("sampling.engine=vllm", key)


def test_the_saved_recipe_of_an_earlier_version_loses_only_keys_that_its_method_never_read(
    tmp_path: Path,
):
    method = {
        "name": "opd", "advantage": "sampled", "high_fraction": 0.3, "high_mass": 0.5,
        "rollout_temperature": 1.0, "epsilon": 1e-6, "minimum_advantage": 0.0,
        "deviation_floor": 0.0, "drop": "highest", "drop_fraction": 0.1, "label_smoothing": 0.0,
    }  # fmt: skip
    saved = tmp_path / "config.yaml"
    recipe = {"student": {"model": "s"}, "data": {"train": "t"}, "method": method}
    saved.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    kept = load_config(saved).method.model_dump()
    assert kept.items() >= {
        "name": "opd", "advantage": "sampled", "high_fraction": 0.3, "drop": "highest",
        "drop_fraction": 0.1,
    }.items()  # fmt: skip
    assert "epsilon" not in kept
    # What was written for all methods is there for the method that an override chooses.
    chosen = load_config(saved, ["method.name=va_opd"]).method.model_dump()
    assert (chosen["name"], chosen["rollout_temperature"]) == ("va_opd", 1.0)
    with pytest.raises(ConfigError, match=r"method\.epsilon is not read by method\.name=opd"):
        load_config(saved, ["method.epsilon=1"])
    # A recipe that someone wrote is not mended in silence.
    del method["label_smoothing"]
    saved.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"method\.high_mass is not read by method\.name=opd"):
        load_config(saved)


def test_the_page_of_the_configuration_is_that_of_the_schema():
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "run: make reference"


def test_the_page_says_of_each_key_what_it_may_hold_and_whether_a_resumed_run_may_change_it():
    page = reference()
    assert "| `training.betas` | `[0.9, 0.95]` | list of number ≥ 0, < 1 |" in page
    assert "| `teacher.offload` ↻ | `false` | true or false |" in page
    assert "| `method.epsilon` | `1e-06` | number ≥ 0 |" in page
    assert "Read by va_opd, rollout_only." in page
    assert page.count("\n| `") > 80
