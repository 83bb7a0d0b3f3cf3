"""The one schema of a run: strict, with the paper's values as defaults.

A recipe is YAML; ``section.key=value`` overrides change single values. Unknown keys, wrong types
and values out of range are reported together, each with its path, before torch is imported.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vaopd.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Address = Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraConfig(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021); needs the extra ``lora``."""

    rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of the adapters; null or 0 = none."""

    alpha: Positive | None = None
    """Adapters are scaled by alpha / rank; null = twice the rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapters' inputs. Above 0 the update depends on the split into micro-batches."""

    target_modules: list[str] | None = None
    """Names of the language model's linear layers that get adapters, such as ``[q_proj, v_proj]``;
    null = all of them. Never the head, whose weights the loss reads directly."""

    vision: Literal["frozen", "adapters", "full"] = "frozen"
    """The vision tower with its projector: frozen, adapted in all its linear layers, or trained in
    all its weights."""

    @property
    def scale(self) -> float:
        """What the adapters' product is multiplied by, times the rank: the resolved alpha."""
        return self.alpha if self.alpha is not None else 2.0 * (self.rank or 0)


class StudentConfig(Section):
    """The model that is trained."""

    model: str
    """Hub name, local folder, ``tiny:NAME`` (shipped) or ``tiny:new-NAME`` (random weights)."""

    dtype: Precision = "auto"
    """Compute precision; what is trained stays float32. auto = bfloat16 on a GPU, else float32.
    Weights that LoRA freezes are held at it."""

    train: Literal["auto", "all", "language", "lora"] = "auto"
    """Which weights learn: all, the language model with its head and not the vision tower, or
    adapters only. auto = ``lora`` where ``lora.rank`` is set, else ``all``."""

    lora: LoraConfig = LoraConfig()
    """Adapters."""

    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Of the language model's frozen weights under LoRA, by bitsandbytes (extra ``quantize``);
    4bit is NF4 with double quantization, as in QLoRA (Dettmers et al. 2023)."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    activation_offload: bool = False
    """Keep what the backward pass needs in CPU memory: less GPU memory, more transfers."""

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained."""
        return bool(self.lora.rank)

    @model_validator(mode="after")
    def _check_what_is_trained(self) -> "StudentConfig":
        if self.train == "lora" and not self.has_adapters:
            raise ValueError(
                "student.train is 'lora', but student.lora.rank is not set; add "
                "student.lora.rank=16 or use student.train=all"
            )
        if self.train in ("all", "language") and self.has_adapters:
            raise ValueError(
                f"student.train is {self.train!r}, but student.lora.rank={self.lora.rank} asks for "
                "adapters beside frozen weights; use student.train=lora or student.lora.rank=0"
            )
        if self.quantization != "none" and not self.has_adapters:
            raise ValueError(
                f"student.quantization is {self.quantization!r}, but quantized weights cannot be "
                "trained; add student.lora.rank=16 or set student.quantization=none"
            )
        return self


class TeacherConfig(Section):
    """The frozen model that is imitated."""

    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    """Hub name, local folder or ``tiny:NAME``; not loaded by ``method.name=sft`` unless
    ``validation.load_teacher``."""

    dtype: Precision = "auto"
    """Precision of the weights. auto = bfloat16 on a GPU, else float32."""

    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Keep the weights of the language model in 8 bits (LLM.int8) or 4 bits (NF4), by bitsandbytes:
    the extra ``quantize``. ``dtype`` stays the precision of what is computed."""

    offload: bool = False
    """Keep the weights in CPU memory while the teacher does not score; nothing without a GPU."""

    batch_tokens: PositiveInt = 16384
    """Padded tokens in one scoring forward; with ``addresses``, in one request."""

    addresses: tuple[Address, ...] = ()
    """Servers started by ``vaopd serve-teacher``, such as ``http://127.0.0.1:8777``, used in turn;
    none = the teacher is loaded in this process. Their token is read from the environment variable
    ``VAOPD_TEACHER_TOKEN``."""

    transfer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which hidden states travel from ``addresses``; float32 loses nothing."""

    timeout_seconds: Positive = 600.0
    """Longest wait for one answer of ``addresses``, their queue included."""

    cache_vision_mb: Annotated[int, Field(ge=0)] = 0
    """Megabytes, on the teacher's device, in which to keep its features of images and degraded
    images from epoch to epoch; 0 = off. Qwen-VL only."""

    park_hidden: bool = False
    """Keep the teacher's hidden states in (pinned) CPU memory between scoring and training."""


class DataConfig(Section):
    """Where problems come from and how images enter the models."""

    train: str
    """Source of training problems: hub name with ``@split``, parquet, JSONL, folder, ``drawn:``."""

    validation: str | None = None
    """Source of held-out problems; none = no validation."""

    allow_overlap: bool = False
    """Let problems be in both sources; otherwise a shared id, or the same question and image, is an
    error."""

    max_prompt_tokens: PositiveInt = 8192
    """Longest prompt with its image tokens; a longer one is an error, never cut."""

    check_images: bool = True
    """Decode every stored image before the first step, not when its turn comes."""

    min_pixels: PositiveInt = 262_144
    """Images of smaller area are scaled up to it before the degraded view is made."""

    max_pixels: PositiveInt = 4_194_304
    """Images of larger area are scaled down to it."""


class MethodConfig(Section):
    """How visual advantage becomes weights (paper, Eq. 3-6)."""

    name: Literal["va_opd", "opd", "rollout_only", "token_only", "sft", "off_policy_kd"] = "va_opd"
    """``opd`` is the uniform baseline; the two ``_only`` arms are the paper's ablations; ``sft``
    learns the references. ``off_policy_kd`` learns responses that the teacher samples, by their
    cross-entropy (sequence-level distillation, Kim & Rush 2016): a sampled forward KL."""

    advantage: Literal["sampled", "view_divergence", "absolute", "signed", "first_mention"] = (
        "sampled"
    )
    """What a token's advantage is: the clipped log-ratio of the sampled token (paper), the KL
    between the teacher's two views over the whole vocabulary, the size of the log-ratio, the
    log-ratio unclipped, or the paper's at the first place of each token id in the response."""

    high_fraction: Fraction = 0.2
    """Share of a response's tokens in the high-advantage group (p_v)."""

    high_mass: Fraction = 0.5
    """Share of the loss that the high group carries (lambda)."""

    rollout_temperature: Positive = 1.0
    """Temperature of the softmax over siblings (tau)."""

    epsilon: NonNegative = 1e-6
    """Added to the standard deviation of sibling advantages."""

    minimum_advantage: NonNegative = 0.0
    """Nats of advantage in a response below which its weights fade to plain OPD; 0 = paper."""

    deviation_floor: NonNegative = 0.0
    """Nats; smallest standard deviation of the sibling z-score; 0 = paper."""

    drop: Literal["none", "highest", "random", "lowest"] = "none"
    """Which tokens leave the loss, by advantage: the paper's masking study (Fig. 2b)."""

    drop_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each response's tokens that ``drop`` takes out."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the cross-entropy methods only; a softer teacher conditions the reverse KL better."""

    @property
    def is_supervised(self) -> bool:
        """Whether the loss is the cross-entropy of given text, which needs no teacher scores."""
        return self.name in ("sft", "off_policy_kd")

    @property
    def needs_advantage(self) -> bool:
        """Whether the teacher has to score the degraded view as well."""
        weighs = self.name in ("va_opd", "rollout_only", "token_only")
        return weighs or (self.name == "opd" and self.drop != "none")

    @model_validator(mode="after")
    def _check_combination(self) -> "MethodConfig":
        if self.is_supervised and self.drop != "none":
            raise ValueError(
                f"method.drop is {self.drop!r}, but method.name={self.name} scores no tokens; use "
                "opd or va_opd, or method.drop=none"
            )
        if self.advantage != "sampled" and not self.needs_advantage:
            raise ValueError(
                f"method.advantage is {self.advantage!r}, but method.name={self.name} uses no "
                "advantage; use va_opd, rollout_only or token_only, or method.advantage=sampled"
            )
        return self


class ViewConfig(Section):
    """The degraded copy of the image that the teacher scores as well."""

    name: Literal["pixelate", "blur", "downscale", "blank", "noise", "shuffle"] = "pixelate"
    """Kind of degradation."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Strength; for pixelate the share of each side that is kept."""

    stage: Literal["budget", "native"] = "budget"
    """Degrade after the pixel budget (the official release) or at the image's own size."""

    probe: Literal["full", "small"] = "full"
    """What the teacher scores as the degraded view: the degraded image in the size of the original
    (paper), or the small image that pixelation starts from, which is a departure: it has fewer
    visual tokens and costs less, but the two views then differ in length and positions as well."""

    @model_validator(mode="after")
    def _check_probe(self) -> "ViewConfig":
        if self.probe == "small" and self.name not in ("pixelate", "downscale"):
            raise ValueError(
                f"view.probe is 'small', but view.name={self.name} has no smaller image; use "
                "pixelate or downscale, or view.probe=full"
            )
        return self


class VllmConfig(Section):
    """The vLLM server of ``sampling.engine=vllm``, which follows the student's weights."""

    python: str | None = None
    """Interpreter of an environment with vLLM; null = VAOPD_VLLM_PYTHON, else this one."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the server, such as ``[--gpu-memory-utilization, "0.4"]``."""

    address: str | None = None
    """A server that runs already, such as http://127.0.0.1:8000; null = the run starts its own."""

    weights_folder: str | None = None
    """Folder through which weights pass; the server must see it. null = shared memory."""


class SamplingConfig(Section):
    """How the student's rollouts are drawn."""

    num_rollouts: PositiveInt = 4
    """Siblings for each problem (K)."""

    temperature: Positive = 0.7
    """Softmax temperature of training rollouts."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus mass of training rollouts."""

    max_new_tokens: PositiveInt = 4096
    """Longest response."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """``transformers`` samples in process and promises equal bits; ``vllm`` asks a server."""

    vllm: VllmConfig = VllmConfig()
    """Only of ``engine=vllm``."""

    batch_tokens: PositiveInt = 131_072
    """Tokens in the key-value cache at most: rollouts decoded together x (prompt + new tokens)."""


class ValidationConfig(Section):
    """Protocol of the validation during and after training."""

    num_samples: PositiveInt = 8
    """Responses for each problem; accuracy is their mean (avg@k)."""

    temperature: NonNegative = 1.0
    """0 = greedy."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass."""

    pixelated: bool = False
    """Also answer with the degraded image, and measure the student's own visual advantage."""

    load_teacher: bool = False
    """Load the teacher to measure visual advantage where the method needs none (``sft``)."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Of the sampling noise, apart from ``training.seed``: runs of other seeds answer alike."""


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

    micro_batch_tokens: PositiveInt | Literal["auto"] = 16384
    """Padded tokens in one forward and backward; the update does not depend on it. auto begins
    high on a GPU (16384 elsewhere) and halves whenever a step runs out of memory."""

    share_prefix: bool = True
    """Pack siblings behind one copy of prompt and image; false = one row for each rollout."""

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
        "device",
        "parallel",
    },
}
"""Keys that change memory, speed or records and not what is learned, so a run that ran out of
memory can go on with others."""


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
        teacher, samples = self.teacher, self.method.name == "off_policy_kd"
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
    def _check_one_sampler(self) -> "RunConfig":
        if self.sampling.engine == "vllm" and self.training.parallel != "none":
            raise ValueError(
                f"sampling.engine is 'vllm' and training.parallel is {self.training.parallel!r}: a "
                "vLLM server follows the weights of one process; use sampling.engine=transformers "
                "or training.parallel=none"
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
    """Return the configuration of a recipe file with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or values
            break the schema; all broken values are listed together.
    """
    return parse_config(parse_overrides(overrides, read_recipe(Path(path))))


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the nested values of a recipe file, not checked against any schema.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
    """
    if not path.is_file():
        raise ConfigError(f"recipe {path} does not exist; see the recipes/ folder for examples")
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
