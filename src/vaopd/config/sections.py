"""The sections of a recipe but ``method`` and ``training``: models, data, views, sampling, ..."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vaopd.config.base import (
    Address,
    FreeOnResume,
    NonNegative,
    OnBadRow,
    Positive,
    PositiveInt,
    Precision,
    Section,
)
from vaopd.config.columns import checked_fields

MAX_STORED_PIXELS = 50_000_000
"""Most pixels of all images of a problem, unless a recipe says otherwise."""


class LoraConfig(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021); needs the extra ``lora``."""

    rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of the adapters; null or 0 = none."""

    alpha: Positive | None = None
    """Adapters are scaled by alpha / rank; null = twice the rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the adapters' inputs. Above 0 the update depends on the micro-batches."""

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
    """Precision of the language model's frozen weights under LoRA, by bitsandbytes (extra
    ``quantize``); 4bit is NF4 with double quantization, as in QLoRA (Dettmers et al. 2023)."""

    gradient_checkpointing: FreeOnResume[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    activation_offload: FreeOnResume[bool] = False
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
    ``validation.load_teacher`` and ``validation.pixelated``."""

    dtype: Precision = "auto"
    """Precision of the weights. auto = bfloat16 on a GPU, else float32."""

    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Keep the weights of the language model in 8 bits (LLM.int8) or 4 bits (NF4), by bitsandbytes:
    the extra ``quantize``. ``dtype`` stays the precision of what is computed."""

    offload: FreeOnResume[bool] = False
    """Keep the weights in CPU memory while the teacher does not score; nothing without a GPU."""

    batch_tokens: FreeOnResume[PositiveInt] = 16384
    """Padded tokens in one scoring forward; with ``addresses``, in one request."""

    addresses: FreeOnResume[tuple[Address, ...]] = ()
    """Servers started by ``vaopd serve-teacher``, such as ``http://127.0.0.1:8777``, used in turn;
    none = the teacher is loaded in this process. Their token is read from the environment variable
    ``VAOPD_TEACHER_TOKEN``; use ``https`` to other machines, or it travels in the clear."""

    ca_file: FreeOnResume[str | None] = None
    """PEM file of the certificate that issued those of ``https`` ``addresses``, or of their own
    ones; none = those that the system trusts."""

    transfer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which hidden states travel from ``addresses``; float32 loses nothing."""

    timeout_seconds: FreeOnResume[Positive] = 600.0
    """Longest wait for one answer of ``addresses``, their queue included."""

    cache_vision_mb: FreeOnResume[Annotated[int, Field(ge=0)]] = 0
    """Megabytes, on the teacher's device, in which to keep its features of images and degraded
    images from epoch to epoch; 0 = off. Qwen-VL only."""

    park_hidden: FreeOnResume[bool] = False
    """Keep the teacher's hidden states in (pinned) CPU memory between scoring and training."""


class DataConfig(Section):
    """Where problems come from and how images enter the models."""

    train: str
    """Source of training problems: hub name with ``@split``, a file (parquet, JSONL, JSON,
    CSV), a folder of them, or ``drawn:``."""

    validation: str | None = None
    """Source of held-out problems; none = no validation."""

    columns: dict[str, str] | None = None
    """Names of your columns by ours, such as ``{question: prompt, answer: solution, image:
    picture}``, in both sources. Ours are question, image, answer, id, kind, references, messages
    and teacher_images; a field that is not named is looked for under its own names."""

    system_prompt: str | None = None
    """System turn before every question, in training, validation and scoring; ``vaopd evaluate``
    takes it from the run of its model. null = none, or what the chat template adds by itself."""

    prompt_suffix: str | None = None
    """Text after every question, on a line of its own, wherever ``system_prompt`` is used."""

    allow_text_only: bool = False
    """Train on problems without an image as well, with uniform weights, because they have no visual
    advantage; otherwise such a row is a bad row."""

    allow_overlap: FreeOnResume[bool] = False
    """Let problems be in both sources; otherwise a shared id, or the same question and image, is an
    error."""

    max_prompt_tokens: FreeOnResume[PositiveInt] = 8192
    """Longest prompt with its image tokens; a longer one is a bad row, never cut."""

    check_images: FreeOnResume[bool] = True
    """Decode every stored training image before the first step, as those of validation always
    are."""

    on_bad_row: OnBadRow = "error"
    """What becomes of stored rows that cannot be used: unreadable, a damaged image, a prompt over
    ``max_prompt_tokens``, no answer in ``validation``, no reference under ``sft``. All are looked
    for before the first step; ``error`` lists up to ten, ``skip`` leaves them out and counts them
    in the log, ``summary.json`` and ``manifest.json``."""

    min_pixels: PositiveInt = 262_144
    """Images of smaller area are scaled up to it before the degraded view is made."""

    max_pixels: PositiveInt = 4_194_304
    """Images of larger area are scaled down to it."""

    max_stored_pixels: FreeOnResume[Annotated[int, Field(ge=1, le=150_000_000)]] = MAX_STORED_PIXELS
    """Most pixels that the stored images of a problem have together. More is a bad row, refused by
    the headers of the files before any image is decoded, which takes 3 bytes a pixel."""

    allow_outside: FreeOnResume[bool] = False
    """Read images outside of the folder of the data as well, by absolute paths, ``..`` or symbolic
    links; otherwise such a row is a bad row."""

    allow_urls: FreeOnResume[bool] = False
    """Download images that are ``http`` or ``https`` addresses: once, into
    ``~/.cache/vaopd/images``, from public servers only, up to 32 MiB and 30 seconds each."""

    @field_validator("columns")
    @classmethod
    def _by_our_fields(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        return None if columns is None else checked_fields(columns)

    @model_validator(mode="after")
    def _check_texts(self) -> "DataConfig":
        for name in ("system_prompt", "prompt_suffix"):
            if "<image>" in (getattr(self, name) or ""):
                raise ValueError(
                    f"data.{name} holds <image>, which stands for an image of a question; leave it "
                    "out"
                )
        return self


class ViewConfig(Section):
    """The degraded copy of the image that the teacher scores as well."""

    name: Literal["pixelate", "blur", "downscale", "blank", "noise", "shuffle"] = "pixelate"
    """Kind of degradation."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What survives of the image; for pixelate the share of each side. Smaller degrades more."""

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

    python: str | None = None
    """Interpreter of an environment with vLLM; null = VAOPD_VLLM_PYTHON, else the one that
    ``vaopd setup-vllm`` built last, else this one."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the server, such as ``[--gpu-memory-utilization, "0.4"]``."""

    addresses: tuple[Address, ...] = ()
    """Servers that run already, such as http://127.0.0.1:8000; none = the run starts its own."""

    gpus: tuple[int, ...] = ()
    """GPUs of a server that the run starts, as CUDA_VISIBLE_DEVICES; none = all it can see."""

    sleep: bool = False
    """Whether vLLM lets its GPU memory go while the student trains."""

    @model_validator(mode="before")
    @classmethod
    def _drop_mode(cls, values: Any) -> Any:
        # An earlier version wrote it into every config.yaml, and had another mode.
        if isinstance(values, dict) and values.get("mode") == "server":
            return {key: value for key, value in values.items() if key != "mode"}
        if isinstance(values, dict) and values.get("mode") == "in_process":
            raise ValueError(
                "sampling.vllm.mode is 'in_process', which no longer exists; leave it out: a "
                "server takes weights from the memory of the GPU (sampling.vllm.transfer)"
            )
        return values

    @model_validator(mode="after")
    def _check_servers(self) -> "VllmConfig":
        if any(argument.startswith("--api-key") for argument in self.arguments):
            raise ValueError(
                "sampling.vllm.arguments holds --api-key, but a recipe is written into the run "
                "folder; leave it out: the server of a run listens on 127.0.0.1"
            )
        if self.gpus and self.addresses:
            raise ValueError(
                "sampling.vllm.gpus are for a server that the run starts, and "
                "sampling.vllm.addresses names others; leave one of them out"
            )
        if self.transfer == "ipc" and self.addresses:
            raise ValueError(
                "sampling.vllm.transfer is 'ipc', which is for a server that the run starts, and "
                "sampling.vllm.addresses names others; leave one of them out"
            )
        return self

    transfer: Literal["auto", "ipc", "files"] = "auto"
    """How new weights reach a server: ``ipc``, through memory of the GPU, or ``files``, through a
    folder. ``auto`` is ipc on a GPU where the run starts the server, else files."""

    weights_folder: str | None = None
    """Folder for files of weights; the server must see it. null = shared memory."""


class SamplingConfig(Section):
    """How rollouts are drawn: the student's, or the teacher's for ``off_policy_kd``."""

    num_rollouts: PositiveInt = 4
    """Siblings for each problem (K)."""

    temperature: Positive = 0.7
    """Softmax temperature of training rollouts."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus mass of training rollouts."""

    max_new_tokens: PositiveInt = 4096
    """Longest response."""

    engine: Literal["auto", "transformers", "vllm"] = "transformers"
    """``transformers`` samples in process and promises equal bits; ``vllm`` uses vLLM, for
    validation too; ``auto`` is vllm on a GPU where an environment with vLLM is found, else
    transformers."""

    vllm: FreeOnResume[VllmConfig] = VllmConfig()
    """Only for ``engine=vllm`` and ``auto``."""

    batch_tokens: FreeOnResume[PositiveInt] = 131_072
    """Tokens in the key-value cache: rollouts decoded together x (prompt + new tokens). With more
    prompts than fit together, others join as responses end, and the cache takes up to a quarter
    more."""


class ValidationConfig(Section):
    """Protocol of the validation during and after training."""

    num_samples: PositiveInt = 8
    """Responses for each problem; accuracy is their mean (avg@k)."""

    temperature: NonNegative = 1.0
    """Softmax temperature of the answers; 0 = greedy."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass of the answers."""

    pixelated: bool = False
    """Also answer with the degraded image and, where a teacher is loaded, measure visual
    advantage."""

    sampled_answers: Annotated[int, Field(ge=0)] = 0
    """Also this many responses for each problem at temperature 1 from the whole distribution, as
    the paper reports accuracy (avg@8), beside a greedy accuracy by the keys above; 0 = none."""

    load_teacher: bool = False
    """Load the teacher also where the method needs none, to measure the KL of the student to it on
    the student's answers and, with ``pixelated``, visual advantage."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of the sampling noise, apart from ``training.seed``: all runs answer alike."""
