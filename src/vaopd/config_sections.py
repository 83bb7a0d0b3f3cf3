"""The sections of a recipe but ``training``: models, data, method, views, sampling, validation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Address = Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")]
Precision = Literal["auto", "float32", "bfloat16"]
OnBadRow = Literal["error", "skip"]


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
    """Longest prompt with its image tokens; a longer one is a bad row, never cut."""

    check_images: bool = True
    """Decode every stored image before the first step, not when its turn comes."""

    on_bad_row: OnBadRow = "error"
    """What becomes of stored rows that cannot be used: unreadable, a damaged image, a prompt over
    ``max_prompt_tokens``, no answer in ``validation``, no reference under ``sft``. All are looked
    for before the first step; ``error`` lists up to ten, ``skip`` leaves them out and counts them
    in the log, ``summary.json`` and ``manifest.json``."""

    min_pixels: PositiveInt = 262_144
    """Images of smaller area are scaled up to it before the degraded view is made."""

    max_pixels: PositiveInt = 4_194_304
    """Images of larger area are scaled down to it."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks of the trainer before it can weigh a step."""

    responses: Literal["student", "teacher", "references"] = "student"
    """Who writes the responses: the student (on-policy), the teacher, or the data set."""

    views: Literal[0, 1, 2] = 1
    """Views that the teacher scores: none, the image, or the image and its degraded copy."""

    view_divergence: bool = False
    """Whether the teacher compares both views over the whole vocabulary."""

    @property
    def sampling(self) -> bool:
        """Whether responses are sampled."""
        return self.responses != "references"

    @property
    def teacher(self) -> bool:
        """Whether there has to be a teacher."""
        return self.views > 0 or self.responses == "teacher"


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
    def needs(self) -> Needs:
        """What the method asks of the trainer."""
        if self.name == "sft":
            return Needs(responses="references", views=0)
        if self.name == "off_policy_kd":
            return Needs(responses="teacher", views=0)
        if self.name == "opd" and self.drop == "none":
            return Needs()
        return Needs(views=2, view_divergence=self.advantage == "view_divergence")

    @model_validator(mode="after")
    def _check_combination(self) -> "MethodConfig":
        if self.needs.views == 0 and self.drop != "none":
            raise ValueError(
                f"method.drop is {self.drop!r}, but method.name={self.name} scores no tokens; use "
                "opd or va_opd, or method.drop=none"
            )
        if self.advantage != "sampled" and self.needs.views < 2:
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
    """The vLLM of ``sampling.engine=vllm``, which follows the student's weights."""

    mode: Literal["server", "in_process"] = "server"
    """``server``: in processes of its own. ``in_process``: in that of a training of one process,
    whose environment must then hold vLLM."""

    python: str | None = None
    """Interpreter of an environment with vLLM; null = VAOPD_VLLM_PYTHON, else this one."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the server, such as ``[--gpu-memory-utilization, "0.4"]``."""

    addresses: tuple[Address, ...] = ()
    """Servers that run already, such as http://127.0.0.1:8000; none = the run starts its own."""

    gpus: tuple[int, ...] = ()
    """GPUs of a server that the run starts, as CUDA_VISIBLE_DEVICES; none = all it can see."""

    sleep: bool = False
    """Whether vLLM lets its GPU memory go while the student trains."""

    @model_validator(mode="after")
    def _check_mode(self) -> "VllmConfig":
        of_servers = {
            "python": self.python,
            "addresses": self.addresses,
            "gpus": self.gpus,
            "weights_folder": self.weights_folder,
        }
        given = ", ".join(f"sampling.vllm.{name}" for name, value in of_servers.items() if value)
        if self.mode == "in_process" and given:
            raise ValueError(
                f"sampling.vllm.mode is in_process, but {given} is for servers; leave it out, "
                "or use sampling.vllm.mode=server"
            )
        if self.gpus and self.addresses:
            raise ValueError(
                "sampling.vllm.gpus are for a server that the run starts, and "
                "sampling.vllm.addresses names others; leave one of them out"
            )
        return self

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
