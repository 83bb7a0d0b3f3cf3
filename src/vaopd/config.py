"""The one schema of a run: strict, with the paper's values as defaults.

A recipe is YAML; ``section.key=value`` overrides change single values. Unknown keys, wrong types
and values out of range are reported together, each with its path, before torch is imported.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from vaopd.config_sections import (
    DataConfig,
    DecayRate,
    Fraction,
    MethodConfig,
    NonNegative,
    Positive,
    PositiveInt,
    SamplingConfig,
    Section,
    StudentConfig,
    TeacherConfig,
    ValidationConfig,
    ViewConfig,
)
from vaopd.errors import ConfigError
from vaopd.recipes.shipped import find_recipe


class TrainingConfig(Section):
    """Optimizer, schedule, batches and bookkeeping."""

    problems_per_step: PositiveInt = 16
    """Problems in one optimizer step."""

    epochs: PositiveInt = 5
    """Passes over the training problems; an incomplete last batch of an epoch is dropped."""

    max_steps: PositiveInt | None = None
    """Stop after this many steps, whatever the epochs."""

    learning_rate: Positive = 1e-6
    """Peak learning rate."""

    final_learning_rate_fraction: Fraction = 0.0
    """Where the cosine ends, as a share of the peak."""

    warmup_fraction: Fraction = 0.05
    """Share of all steps with a linearly rising learning rate."""

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """AdamW decay rates."""

    weight_decay: NonNegative = 0.1
    """AdamW weight decay."""

    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """``adamw8bit`` holds both moments in 8 bits by blocks of 256 (Dettmers et al. 2022), by
    bitsandbytes (extra ``quantize``): 2 bytes a weight and not 8, and another update."""

    max_gradient_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""

    max_skipped_steps: PositiveInt = 3
    """A step whose loss or gradient is not finite is not applied; as many in a row end the run.
    1 = the first one does."""

    micro_batch_tokens: PositiveInt | Literal["auto"] = 16384
    """Padded tokens in one forward and backward; the update does not depend on it. auto begins
    high on a GPU (16384 elsewhere) and halves whenever a step runs out of memory."""

    share_prefix: bool = True
    """Pack siblings behind one copy of prompt and image; false = one row for each rollout."""

    rollout_lag: Literal[0, 1] = 0
    """1 = a vLLM sampler and a teacher's server prepare the next step while this one is learned,
    from weights that are one update old; 0 = strictly on-policy."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Of random weights, sampling, data order and ties."""

    save_every: PositiveInt | None = 50
    """Steps between checkpoints; null = only at the end. A validation that is the best so far
    saves one as well."""

    validate_every: PositiveInt | None = 50
    """Steps between validations; null = only before and after."""

    keep_checkpoints: PositiveInt | None = 2
    """Newest checkpoints that are kept, beside ``checkpoints/best``; each holds weights and both
    moments; null = all."""

    keep_every: PositiveInt | None = None
    """Checkpoints of steps divisible by this are kept as well; a multiple of ``save_every``."""

    log_rollouts_every: PositiveInt | None = 10
    """Steps between rollout records for the report; null = none."""

    device: str = "auto"
    """``auto`` takes a GPU when there is one."""

    parallel: Literal["none", "ddp", "fsdp2"] = "none"
    """How several processes share a step, see docs/scaling.md: ``ddp`` keeps a copy of all models
    in each, ``fsdp2`` spreads weights, gradients and moments. Needs torchrun or its like."""

    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of ``final/``; resumable checkpoints are always float32."""

    @model_validator(mode="after")
    def _check_retention(self) -> "TrainingConfig":
        if self.keep_every is not None and (
            self.save_every is None or self.keep_every % self.save_every
        ):
            raise ValueError(
                f"training.keep_every is {self.keep_every}, no multiple of training.save_every="
                f"{self.save_every}, so most of these steps are never saved; make it one"
            )
        return self


FREE_ON_RESUME = {
    "student": {"gradient_checkpointing", "activation_offload"},
    "teacher": {
        "batch_tokens",
        "cache_vision_mb",
        "offload",
        "park_hidden",
        "addresses",
        "timeout_seconds",
    },
    "data": {"max_prompt_tokens", "check_images", "allow_overlap"},
    "sampling": {"batch_tokens", "vllm"},
    "training": {
        "micro_batch_tokens",
        "save_every",
        "validate_every",
        "keep_checkpoints",
        "keep_every",
        "log_rollouts_every",
        "max_skipped_steps",
        "device",
        "parallel",
    },
}
"""Keys that change memory, speed, records or when a run gives up, and not what is learned, so a run
that ran out of memory can go on with others."""


class RunConfig(Section):
    """Everything that decides a run."""

    student: StudentConfig
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig
    method: MethodConfig = MethodConfig()
    view: ViewConfig = ViewConfig()
    sampling: SamplingConfig = SamplingConfig()
    validation: ValidationConfig = ValidationConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _check_teacher(self) -> "RunConfig":
        teacher, samples = self.teacher, self.method.needs.responses == "teacher"
        if teacher.addresses and samples:
            raise ValueError(
                "teacher.addresses is set, but method.name=off_policy_kd samples from the teacher, "
                "which a server does not offer; use teacher.addresses=[] or another method"
            )
        if teacher.offload and (teacher.addresses or samples or teacher.quantization != "none"):
            raise ValueError(
                "teacher.offload=true parks a teacher that is loaded here, only scores and is not "
                "quantized; set it to false, or leave teacher.addresses, teacher.quantization and "
                "method.name=off_policy_kd out"
            )
        return self

    @model_validator(mode="after")
    def _check_lag(self) -> "RunConfig":
        is_elsewhere = self.sampling.engine == "vllm" or bool(self.teacher.addresses)
        is_on_policy = self.method.needs.responses == "student"
        if self.training.rollout_lag and not (is_elsewhere and is_on_policy):
            raise ValueError(
                "training.rollout_lag is 1, but nothing of this recipe can work beside training; "
                "set it to 0, or use an on-policy method with sampling.engine=vllm or "
                "teacher.addresses"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "RunConfig":
        student, training = self.student, self.training
        needs_whole = {
            "student.quantization": student.quantization != "none",
            "student.activation_offload": student.activation_offload,
            "teacher.quantization": self.teacher.quantization != "none",
            "teacher.offload": self.teacher.offload,
            "training.optimizer": training.optimizer != "adamw",
            # A process that begins again alone would enter forwards that the others do not.
            "training.micro_batch_tokens": training.micro_batch_tokens == "auto",
        }
        unfit = ", ".join(key for key, is_set in needs_whole.items() if is_set)
        if training.parallel == "fsdp2" and unfit:
            raise ValueError(
                f"training.parallel is 'fsdp2', which does not go together with {unfit}; leave it "
                "at its default, or use training.parallel=ddp"
            )
        return self

    @model_validator(mode="after")
    def _check_vllm(self) -> "RunConfig":
        vllm, training = self.sampling.vllm, self.training
        if self.sampling.engine != "vllm":
            return self
        if training.rollout_lag and (vllm.sleep or vllm.mode == "in_process"):
            raise ValueError(
                "training.rollout_lag is 1, but with sampling.vllm.sleep or "
                "sampling.vllm.mode=in_process vLLM does nothing while the student trains; set "
                "training.rollout_lag=0, or leave them at their defaults"
            )
        if training.parallel != "none" and vllm.mode == "in_process":
            raise ValueError(
                f"sampling.vllm.mode is in_process and training.parallel is {training.parallel!r}: "
                "a vLLM in the process of a training serves that process alone; use "
                "sampling.vllm.mode=server, whose servers serve all of them"
            )
        return self

    @model_validator(mode="after")
    def _check_pixel_budget(self) -> "RunConfig":
        if self.data.min_pixels > self.data.max_pixels:
            raise ValueError(
                f"data.min_pixels is {self.data.min_pixels}, above data.max_pixels "
                f"{self.data.max_pixels}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _check_sharded_teacher(self) -> "RunConfig":
        # Whoever finds an image in its cache would skip forwards that the others wait in.
        if self.training.parallel == "fsdp2" and self.teacher.cache_vision_mb:
            raise ValueError(
                f"teacher.cache_vision_mb is {self.teacher.cache_vision_mb}, which a teacher that "
                "training.parallel=fsdp2 spreads cannot use; set it to 0 or use ddp"
            )
        return self

    def to_yaml(self) -> str:
        """Return the resolved configuration as a recipe that gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Return the configuration of a recipe with ``section.key=value`` overrides applied.

    The recipe is a file or the name of one that ships, such as ``quickstart``.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or values
            break the schema; all broken values are listed together.
    """
    return parse_config(parse_overrides(overrides, read_recipe(find_recipe(path))))


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the nested values of a recipe file, not checked against any schema.

    Raises:
        ConfigError: The file is no YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Bytes that are no UTF-8 are no YAML either.
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} must be a mapping of sections, such as 'student:'")
    return values


def parse_overrides(
    overrides: list[str] | tuple[str, ...], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return nested values with ``section.key=value`` strings put into them.

    Raises:
        ConfigError: A string is not of that form.
    """
    values = {} if values is None else values
    for override in overrides:
        _apply(values, override)
    return values


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Return the configuration of nested values.

    Raises:
        ConfigError: Values break the schema; all of them are listed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [explain(item, RunConfig) for item in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override {override!r} is not KEY=VALUE; write for example training.max_steps=10"
        )
    target = values
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"override {override!r} goes into {part!r}, which is not a section")
    try:
        target[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {_one_line(error)}") from None


def explain(item: Any, schema: type[BaseModel]) -> str:
    """Return one of pydantic's errors as a sentence that says what to do."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(path, _all_keys(schema), n=1, cutoff=0.0)
        return f"unknown key {path}; did you mean {nearest[0]}?"
    if item["type"] == "missing":
        return f"{path} is missing; set it in the recipe or add {path}=VALUE"
    if item["type"] == "model_type":
        return f"{path} is {item['input']!r}, but it is a section; write {path}.KEY=VALUE"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{path} is {item['input']!r}: {message}"


def _all_keys(schema: type[BaseModel]) -> list[str]:
    keys = []
    for section, field in schema.model_fields.items():
        keys.append(section)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{section}.{key}" for key in _all_keys(inner)]
    return keys


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
