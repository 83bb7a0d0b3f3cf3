"""VA-OPD as a trainer of the kind that TRL's users know: `VAOPDTrainer` and `VAOPDConfig`.

It samples, scores, weighs and computes the loss with vaopd's own step; optimizer, schedule,
logging, callbacks and checkpoints are those of transformers' ``Trainer``.
"""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import inject_adapter_in_model
from PIL import Image
from torch import Tensor
from transformers import Trainer, TrainerCallback
from trl.trainer.distillation_config import DistillationConfig

from vaopd.config import RunConfig, parse_config
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, ProblemError
from vaopd.methods import make_method
from vaopd.models import adapters
from vaopd.models.compatibility import check_same_pixels, check_same_tokenizer
from vaopd.models.loading import load_model, wrap_model
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.columns import check_columns, mapped_columns
from vaopd.problems.conversations import columns_of
from vaopd.problems.problem import Problem
from vaopd.problems.reading import ReadingRules, reading_rules
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.training.metrics import step_metrics
from vaopd.training.pipeline import Pipeline
from vaopd.training.step import Step

READ = frozenset(
    {"teacher_model_name_or_path", "max_completion_length", "temperature", "top_p", "beta"}
)
"""Options of TRL's ``DistillationConfig`` that have a meaning here; see `VAOPDConfig`."""

HARMLESS = frozenset({"ds3_gather_for_generation", "pad_to_multiple_of"})
"""Options about how TRL works, which do not change what is learned."""

PLAIN = ReadingRules()


@dataclass
class VAOPDConfig(DistillationConfig):
    """Options of `VAOPDTrainer`: those of TRL's ``DistillationConfig`` that it reads, and its own.

    An option of ``DistillationConfig`` that is set and not read is an error that names it.
    """

    method: str | dict[str, Any] = "va_opd"
    """Name of a method, or the section ``method`` of a recipe: ``{"name": "opd", "target": ..}``.
    ``beta`` other than 1, as TRL defines it, sets its divergence."""

    view: dict[str, Any] = field(default_factory=dict)
    """The section ``view`` of a recipe: how the image is degraded; by default it is pixelated."""

    data: dict[str, Any] = field(default_factory=dict)
    """Keys of the section ``data`` of a recipe: ``min_pixels``, ``max_pixels``,
    ``max_prompt_tokens``, ``columns``, ``system_prompt``, ``prompt_suffix``."""

    num_generations: int = 4
    """Responses for each prompt (K)."""

    micro_batch_tokens: int = 16384
    """Padded tokens in one forward and backward."""

    max_completion_length: int | None = 512
    """Longest response, tokens."""

    temperature: float = 0.7
    """Of sampling, as in the paper's release."""

    top_p: float = 0.95
    """Of sampling, as in the paper's release."""

    def __post_init__(self) -> None:
        """Check that every option that is set is read."""
        super().__post_init__()
        own = {one.name for one in fields(VAOPDConfig)} - {
            one.name for one in fields(DistillationConfig)
        }
        inherited = only_of_trl()
        for one in inherited - READ - HARMLESS - own:
            default = DistillationConfig.__dataclass_fields__[one].default
            if (value := getattr(self, one)) != default:
                raise ConfigError(
                    f"{one} is {value!r}, which VAOPDTrainer does not read; leave it out, or train "
                    "with `vaopd train`, whose recipes have vLLM, several processes and more"
                )

    def recipe(self, student: str, teacher: str) -> RunConfig:
        """Return the recipe of a run with these options; every default and check is vaopd's."""
        method = {"name": self.method} if isinstance(self.method, str) else dict(self.method)
        if self.beta == 0:
            method["divergence"] = "forward"
        elif self.beta != 1:
            method |= {"divergence": "jsd", "beta": self.beta}
        return parse_config(
            {
                "student": {"model": student},
                "teacher": {"model": teacher},
                "data": {"train": "train_dataset", **self.data},
                "view": self.view,
                "method": method,
                "sampling": {
                    "num_rollouts": self.num_generations,
                    "temperature": self.temperature,
                    "top_p": self.top_p,
                    "max_new_tokens": self.max_completion_length,
                },
                "training": {"seed": self.seed, "micro_batch_tokens": self.micro_batch_tokens},
            }
        )


class VAOPDTrainer(Trainer):
    """Distils a teacher into a vision-language student by VA-OPD, or another method of vaopd.

    The arguments are those of TRL's ``DistillationTrainer``, without ``eval_dataset``,
    ``processing_class``, ``quantization_config`` and ``tools``. ``per_device_train_batch_size``
    counts prompts; each has ``num_generations`` responses. One process trains; for more, for vLLM
    and for teachers of another machine use ``vaopd train``.

    Args:
        model: The student: a hub name, a folder, ``tiny:NAME``, or a model in memory.
        teacher_model: The teacher, likewise; or ``args.teacher_model_name_or_path``.
        args: Options.
        train_dataset: Rows with ``prompt`` (a text, or messages with image parts) or ``messages``,
            ``image`` or ``images`` beside, and ``answer`` or ``solution`` if training accuracy
            should be logged.
        callbacks: As in transformers.
        optimizers: As in transformers.
        peft_config: A ``peft.LoraConfig``; adapters are added to the student, and what is saved
            has them merged.

    Raises:
        ConfigError: An option does not fit, or there are several processes.
        ModelError: A model cannot be loaded, or the two do not fit together.
        ProblemError: A row is not a question about images; raised when the row is reached.
    """

    def __init__(
        self,
        model: Any,
        teacher_model: Any = None,
        args: VAOPDConfig | None = None,
        train_dataset: Any = None,
        *,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args or VAOPDConfig(output_dir=f"{_name_of(model).split('/')[-1]}-VAOPD")
        teacher_model = teacher_model or args.teacher_model_name_or_path
        _check(args, teacher_model, train_dataset)
        config = args.recipe(_name_of(model), _name_of(teacher_model))
        if config.method.needs.rewards:
            raise ConfigError(
                f"method is {args.method!r}, which learns from rewards and no teacher; train with "
                "`vaopd train`, or with TRL's GRPOTrainer"
            )
        compute = torch.bfloat16 if args.bf16 else torch.float32
        student = _loaded(model, config.student.model, args, torch.float32, compute)
        teacher = _loaded(teacher_model, config.teacher.model, args, compute, compute)
        check_same_tokenizer(student, teacher)
        check_same_pixels(student, teacher)
        if peft_config is None:
            adapters.choose_trainable(student.model, config.student)
        else:
            inject_adapter_in_model(peft_config, student.model)
        self.student, self.rules = student, reading_rules(config.data)
        scorer = LocalTeacher(teacher, batch_tokens=config.teacher.batch_tokens)
        sampler = TransformersSampler(student, batch_tokens=config.sampling.batch_tokens)
        method = make_method(config.method)
        if method.needs.uniform_gradient:
            raise ConfigError(
                "method.match_norm scales whole updates, which transformers' Trainer makes; train "
                "with `vaopd train`"
            )
        pipeline = Pipeline(config, method, student, scorer, sampler, World(device=args.device))
        # The optimizer is the Trainer's; the step only accumulates gradients.
        self.vaopd_step = Step(pipeline, torch.optim.SGD([torch.zeros(0, requires_grad=True)]))
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._place = (-1, 0)
        super().__init__(
            model=student.model,
            args=args,
            train_dataset=train_dataset,
            data_collator=_as_rows,
            processing_class=student.tokenizer,
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Sample, score and weigh some prompts; add their gradient; return their loss."""
        problems = [problem_of(row, self.rules) for row in inputs["rows"]]
        parts = self.current_gradient_accumulation_steps
        result = self.vaopd_step.accumulate_gradient(problems, self._number(), share=1 / parts)
        row = step_metrics(
            result,
            problems,
            step=self.state.global_step + 1,
            learning_rate=self._get_learning_rate(),
            is_own_text=True,
        )
        for name, value in row.items():
            if name not in ("step", "loss", "learning_rate"):
                self._metrics[name].append(value)
        return torch.tensor(result.loss / parts, device=self.args.device)

    def _number(self) -> int:
        """Return the number of this call, from 1; it keys the sampling noise.

        It counts on from a checkpoint's step, so a resumed run samples what a whole one samples.
        """
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 1)
        return step * self.args.gradient_accumulation_steps + self._place[1]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the averages of vaopd's metrics since the last log beside the Trainer's own."""
        averages = {name: fmean(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log({**logs, **averages}, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a folder that transformers and vaopd load, adapters merged, with its processors."""
        folder = Path(output_dir or self.args.output_dir or ".")
        self.student.save(folder)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.student.has_adapters:
            raise ConfigError(
                f"{resume_from_checkpoint} holds merged weights, so a training of adapters cannot "
                "be resumed from it; train anew, or use `vaopd train`, which resumes adapters"
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the operations of sampling and scoring are not counted."""
        return 0


def problem_of(row: Mapping[str, Any], rules: ReadingRules = PLAIN) -> Problem:
    """Return the problem of a row of a dataset as TRL's users keep it.

    Raises:
        ConfigError: A column that ``rules`` maps does not exist.
        ProblemError: The row has no question or no image.
    """
    check_columns(row, rules.columns, "train_dataset")
    columns = mapped_columns(row, rules.columns) if rules.columns else columns_of(row)
    question, images = columns["problem"], tuple(_encoded(cell) for cell in columns["images"])
    answer = None if columns["answer"] is None else str(columns["answer"])
    cells = columns.get("teacher_images") or columns.get("teacher_image") or []
    teacher = tuple(map(_encoded, cells if isinstance(cells, list | tuple) else [cells]))
    problem = Problem(
        "", question, images, answer, "train_dataset", "train", teacher_images=teacher
    )
    name = str(columns.get("id") or problem.content_hash()[:16])
    return rules.asked(replace(problem, id=name))


def _encoded(cell: Any) -> bytes:
    """Return the bytes of an image cell: an image in memory, bytes, a path, or a mapping."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or cell.get("url")
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Image.Image):
        buffer = io.BytesIO()
        cell.save(buffer, "PNG")
        return buffer.getvalue()
    try:
        with open(str(cell), "rb") as file:
            return file.read()
    except OSError as error:
        raise ProblemError(
            f"an image of the dataset is {cell!r:.60}, which cannot be read ({error}); give an "
            "image in memory, bytes or the path of a file"
        ) from None


def _as_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as the Trainer wants it; the step encodes the rows itself."""
    return {"rows": rows}


def only_of_trl() -> set[str]:
    """Return the names of the options that TRL adds to transformers' ``TrainingArguments``."""
    base = {one.name for cls in DistillationConfig.__mro__[2:] for one in _fields(cls)}
    return {one.name for one in fields(DistillationConfig)} - base


def _fields(cls: type) -> Iterator[Any]:
    yield from getattr(cls, "__dataclass_fields__", {}).values()


def _name_of(model: Any) -> str:
    return model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))


def _check(args: VAOPDConfig, teacher: Any, dataset: Any) -> None:
    if args.world_size > 1:
        raise ConfigError(
            f"VAOPDTrainer trains in one process, and this run has {args.world_size}; use "
            "`vaopd train` with torchrun and training.parallel=ddp or fsdp2"
        )
    if teacher is None:
        raise ConfigError("there is no teacher; give teacher_model a name, a folder or a model")
    if dataset is None:
        raise ConfigError("there is no train_dataset; give one with prompts and images")


def _loaded(
    model: Any, name: str, args: VAOPDConfig, dtype: torch.dtype, compute: torch.dtype
) -> VisionLanguageModel:
    if isinstance(model, str):
        return load_model(
            model, device=args.device, dtype=dtype, compute_dtype=compute, seed=args.seed
        )
    return wrap_model(model.to(args.device), name, compute_dtype=compute)
