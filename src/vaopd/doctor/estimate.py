"""Estimates the peak memory of a recipe on one device, by phase of a step; loads no weights.

Weights, gradients, moments, caches and kept states follow from the configuration; activations are
traced (see `trace`). Rounding and fragmentation of the allocator are not included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vaopd.config import RunConfig
from vaopd.devices import pick_dtype
from vaopd.doctor.architecture import Sizes, measure, weight_bytes
from vaopd.doctor.trace import Load, Traced, by_depth
from vaopd.errors import ConfigError
from vaopd.models.architecture import read_config
from vaopd.objective.chunks import SCRATCH_SHARE, fitting_tokens
from vaopd.rollouts.vllm.choice import choose_engine
from vaopd.rollouts.vllm.transfer import BUFFER_BYTES, IpcTransfer, choose_transfer
from vaopd.training.reference import needs_copy
from vaopd.training.step import first_budget

PHASES = ("sample", "score", "train", "update")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Assumed lengths of the data; all problems are assumed to be equal."""

    text_tokens: int = 256
    """Number of tokens of the question and of the chat template."""

    image_pixels: int | None = None
    """Area of an image inside the pixel budget; ``None`` means ``data.min_pixels``."""

    response_tokens: int | None = None
    """Tokens of each response; ``None`` means ``sampling.max_new_tokens``."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of each device, by purpose and by phase."""

    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def total(self, phase: str) -> int:
        """Return the peak of a phase, in bytes."""
        return sum(part.get(phase, 0) for part in self.parts.values())

    @property
    def peak(self) -> int:
        """The peak of a step, in bytes."""
        return max(self.total(phase) for phase in PHASES)

    def add(self, name: str, count: int, *phases: str) -> None:
        """Add bytes to some phases, or to all phases if none is named."""
        if count > 0:
            part = self.parts.setdefault(name, {})
            for phase in phases or PHASES:
                part[phase] = part.get(phase, 0) + count


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """Numbers of tokens in the phases of a step on one device."""

    problems: int
    siblings: int
    prompt: int
    response: int
    patches: int
    patch_values: int

    @property
    def response_tokens(self) -> int:
        """Number of response tokens of the whole step."""
        return self.problems * self.siblings * self.response

    def packed(self, budget: int, share_prefix: bool, split: bool = False) -> tuple[Load, int]:
        """Return the largest forward under a token budget, and its number of responses."""
        siblings = self.siblings if share_prefix else 1
        if split:
            siblings = max(1, min(siblings, (budget - self.prompt) // self.response))
        length = self.prompt + siblings * self.response
        groups = self.problems * math.ceil(self.siblings / siblings)
        rows = max(1, min(groups, budget // length))
        responses = (self.response,) * siblings
        load = Load(
            rows=rows,
            prompt=self.prompt,
            responses=responses,
            images=rows,
            patches=self.patches,
        )
        return load, rows * siblings

    def prefill(self, budget: int) -> tuple[Load, int]:
        """Return the sampler's largest prefill, and the number of rows decoded together."""
        whole = self.siblings * (self.prompt + self.response)
        prompts = max(1, min(self.problems, budget // whole))
        load = Load(
            rows=prompts, prompt=self.prompt, responses=(), images=prompts, patches=self.patches
        )
        return load, prompts * self.siblings


def estimate(
    config: RunConfig,
    device: torch.device,
    *,
    processes: int = 1,
    lengths: Lengths | None = None,
    capacity: int | None = None,
) -> Estimate:
    """Return the expected peaks of a recipe.

    Args:
        config: The recipe.
        device: The kind of device.
        processes: Number of processes of the run, one per device.
        lengths: Assumed lengths of the data.
        capacity: Bytes of a device, of which vLLM reserves a share; without it, that share is not
            counted.

    Raises:
        ModelError: A configuration cannot be read.
        ConfigError: The recipe's adapters cannot be created.
    """
    lengths = lengths or Lengths()
    choice = choose_engine(config, device)
    config = config.with_engine(choice.engine)
    own = config.student
    student = measure(read_config(own.model), own)
    teacher = None
    if config.loads_teacher:
        teacher = measure(read_config(config.teacher.model))
    batch = _batch(config, student, lengths, processes)
    result = Estimate()
    if choice.line:
        result.notes.append(choice.line)
    if not student.sees:
        result.notes.append(f"the vision tower of {own.model} is not counted, only its weights")
    plan = _Plan(config, device, processes, student, teacher, batch)
    plan.weights(result)
    if config.sampling.engine == "vllm" and config.method.needs.sampling:
        plan.hand_over(result, capacity)
    elif config.method.needs.sampling:
        plan.sample(result)
    if teacher is not None and config.method.needs.views > 0:
        plan.score(result, teacher)
    plan.train(result)
    return result


def _batch(config: RunConfig, student: Sizes, lengths: Lengths, processes: int) -> StepLoad:
    side = student.patch_pixels * student.merge
    pixels = lengths.image_pixels or config.data.min_pixels
    visual = max(1, round(pixels / side**2))
    return StepLoad(
        problems=math.ceil(config.training.problems_per_step / processes),
        siblings=config.sampling.num_rollouts if config.method.needs.sampling else 1,
        prompt=lengths.text_tokens + visual,
        response=lengths.response_tokens or config.sampling.max_new_tokens,
        patches=visual * student.merge**2,
        patch_values=student.patch_values,
    )


@dataclass(frozen=True)
class _Plan:
    """Computes the parts of an estimate from the same recipe and sizes."""

    config: RunConfig
    device: torch.device
    processes: int
    student: Sizes
    teacher: Sizes | None
    batch: StepLoad

    @property
    def is_sharded(self) -> bool:
        return self.config.training.parallel == "fsdp2" and self.processes > 1

    @property
    def shards(self) -> int:
        return self.processes if self.is_sharded else 1

    @property
    def compute_dtype(self) -> torch.dtype:
        return pick_dtype(self.config.student.dtype, self.device)

    @property
    def master_dtype(self) -> torch.dtype:
        """Precision of weights that are not trained; without adapters it is float32 as well."""
        return self.compute_dtype if self.config.student.has_adapters else torch.float32

    def weights(self, result: Estimate) -> None:
        """Add the memory that exists all the time, and what is kept from step to step."""
        own, student = self.config.student, self.student
        held = weight_bytes(student, self.master_dtype, own.quantization)
        result.add("student weights", held // self.shards)
        if self.teacher is not None:
            self._teacher_weights(result, self.teacher)
        if needs_copy(self.config):
            dtype = self.compute_dtype
            held = weight_bytes(student, dtype, own.quantization, dtype.itemsize)
            result.add("reference weights", held // self.shards)
        moments = 2.1 if self.config.training.optimizer == "adamw8bit" else 8
        result.add("optimizer moments", int(student.trained * moments) // self.shards)
        # Accumulated over the micro-batches of a step, released by the update.
        result.add("gradients", 4 * student.trained // self.shards, "train", "update")
        if self.is_sharded:
            layers = 2 * student.largest_layer * self.compute_dtype.itemsize
            result.add("gathered weights", layers + 4 * student.head, "train")
            source = self.sampled_from
            whole = source.total * self.compute_dtype.itemsize + 4 * source.head
            if self.config.sampling.engine == "vllm":  # copied to main memory layer by layer
                whole = 4 * max(source.largest_layer, source.head)
            result.add("gathered weights", whole, "sample")
            if self.teacher is not None:
                dtype = pick_dtype(self.config.teacher.dtype, self.device)
                gathered = 2 * self.teacher.largest_layer + self.teacher.head
                result.add("gathered weights", gathered * dtype.itemsize, "score")

    def _teacher_weights(self, result: Estimate, teacher: Sizes) -> None:
        options = self.config.teacher
        dtype = pick_dtype(options.dtype, self.device)
        head = teacher.head * dtype.itemsize
        if options.addresses:  # on a server: only its head is here, for the loss
            result.add("teacher weights", head)
            return
        held = weight_bytes(teacher, dtype, options.quantization) // self.shards
        if options.offload and self.device.type == "cuda":
            result.add("teacher weights", held, "score")
            result.add("teacher weights", head, "sample", "train", "update")
        else:
            result.add("teacher weights", held)

    @property
    def sampled_from(self) -> Sizes:
        """The student, or the teacher of off_policy_kd."""
        if self.config.method.needs.responses == "teacher" and self.teacher is not None:
            return self.teacher
        return self.student

    def hand_over(self, result: Estimate, capacity: int | None) -> None:
        """Add the copy of the weights for vLLM, and vLLM itself if it shares the device."""
        vllm, source = self.config.sampling.vllm, self.sampled_from
        is_copied = self.compute_dtype != self.master_dtype or self.config.student.has_adapters
        # Files are written from main memory, one tensor after the other.
        if isinstance(choose_transfer(vllm, self.device), IpcTransfer):
            whole, head = (n * self.compute_dtype.itemsize for n in (source.total, source.head))
            result.add("buffer for vLLM", min(whole, max(BUFFER_BYTES, head)), "sample")
            result.add("weights for vLLM", whole if is_copied else 0, "sample")
        if vllm.gpus or vllm.addresses:
            result.notes.append("vLLM runs on other devices, which are not counted")
        elif self.device.type != "cuda" or capacity is None:
            result.notes.append("vLLM shares this device and is not counted")
        else:
            share = memory_share(vllm.arguments)
            phases = ("sample",) if vllm.sleep else PHASES
            result.add("vLLM", int(share * capacity), *phases)
            result.notes.append(
                f"vLLM takes {share:.0%} of this device, weights, keys and values "
                "(--gpu-memory-utilization in sampling.vllm.arguments)"
            )

    def sample(self, result: Estimate) -> None:
        """Add the key-value cache, and the larger one of prefill and drawing of tokens."""
        source = self.sampled_from
        load, rows = self.batch.prefill(self.config.sampling.batch_tokens)
        width = source.key_value_heads * source.head_width * self.compute_dtype.itemsize
        a_layer = 2 * rows * (self.batch.prompt + self.batch.response) * width
        result.add("key-value cache", a_layer * source.layers, "sample")
        is_autocast = self.compute_dtype != torch.float32
        if is_autocast and not self.is_sharded:
            # Autocast keeps its copies of trained weights until its context ends.
            result.add("autocast copies", 2 * source.trained_linear, "sample")
        # Attention repeats the keys and values of a layer for its heads; the cache is copied as
        # it grows by a token.
        groups = source.heads // source.key_value_heads
        decode = a_layer * ((groups if groups > 1 else 0) + 1)
        draw = _drawing_bytes(rows, source.vocabulary, self.config.sampling.top_p)
        draw += 4 * source.head if self.master_dtype != torch.float32 else 0
        prefill = self._forward(source, load, own=source is self.student)
        before = load.rows * load.length * width * 2 * source.layers
        result.add("activations", max(prefill + before - a_layer * source.layers, decode, draw),
                   "sample")  # fmt: skip

    def score(self, result: Estimate, teacher: Sizes) -> None:
        """Add a scoring forward, its chunk of logits, and the states that are kept."""
        dtype = pick_dtype(self.config.teacher.dtype, self.device)
        load, _ = self.batch.packed(
            self.config.teacher.batch_tokens, self.config.training.share_prefix
        )
        if not self.config.teacher.addresses:
            result.add("activations", self._forward(teacher, load, own=False), "score")
        # The states of the next step arrive while this step is trained on.
        steps = 1 + self.config.training.rollout_lag
        views = 2 if self.config.method.needs.degraded_hidden else 1
        kept = views * steps * self.batch.response_tokens * teacher.width * dtype.itemsize
        if not self.config.teacher.park_hidden:
            result.add("teacher hidden states", kept, "score", "train")
            if self.config.method.needs.view_divergence and views == 1:
                result.add("hidden states of the degraded view", kept // steps, "score")

    def train(self, result: Estimate) -> None:
        """Add the largest micro-batch: activations, loss and the needs of the head."""
        training, own = self.config.training, self.config.student
        budget = first_budget(training, self.device)
        load, responses = self.batch.packed(
            budget, training.share_prefix, split=training.micro_batch_tokens == "auto"
        )
        tokens = responses * self.batch.response
        loss = self._loss_bytes(tokens)
        is_whole_step = tokens == self.batch.response_tokens

        def traced(config: Any) -> int:
            model = Traced(
                config, dtype=self.master_dtype, compute_dtype=self.compute_dtype, student=own
            )
            return model.training_bytes(
                load,
                before_backward=loss,
                keep_gradients=is_whole_step,
                offload=own.activation_offload,
            )

        peak = by_depth(self.student.config, traced)
        # In a step of one forward, the traced peak includes the gradients, which are counted above.
        peak -= 4 * self.student.trained if is_whole_step else 0
        pixels = load.images * load.patches * self.batch.patch_values * 4
        result.add("loss chunk", min(loss, max(0, peak)), "train")
        result.add("activations", max(0, peak - loss) + pixels, "train")

    def _loss_bytes(self, tokens: int) -> int:
        """Return the bytes of the loss: chunks, and gradients of hidden states and head."""
        vocabulary = self.student.vocabulary
        views = 2 if self.config.method.needs.degraded_hidden else 1
        buffers = 1 + views
        fitting = fitting_tokens(vocabulary, self.device, torch.float32, num_buffers=buffers)
        chunk = min(tokens, fitting)
        logits = 4 * vocabulary * (buffers * chunk + math.ceil(chunk / SCRATCH_SHARE))
        hidden = 4 * tokens * self.student.width
        if self.teacher is not None:  # the micro-batch's own copy
            hidden += views * 4 * tokens * self.teacher.width
        head = 4 * self.student.head if _head_learns(self.config) else 0
        return logits + hidden + head

    def _forward(self, sizes: Sizes, load: Load, *, own: bool) -> int:
        dtype = pick_dtype(self.config.teacher.dtype, self.device)
        student = self.config.student

        def traced(config: Any) -> int:
            model = Traced(
                config,
                dtype=self.master_dtype if own else dtype,
                compute_dtype=self.compute_dtype if own else dtype,
                student=student if own else None,
            )
            return model.forward_bytes(load)

        pixels = load.images * load.patches * self.batch.patch_values * 4
        return by_depth(sizes.config, traced) + pixels


def memory_share(arguments: Sequence[str]) -> float:
    """Return the share of a GPU that vLLM reserves, by its arguments or by its default of 0.9.

    Raises:
        ConfigError: The value in the arguments is not a share.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    name = "--gpu-memory-utilization"
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word.replace("_", "-") == name]
    share = given[-1] if given else "0.9"
    try:
        return float(share)
    except ValueError:
        raise ConfigError(
            f"sampling.vllm.arguments has {name} {share!r}, which is not a number; give a share "
            "such as 0.4"
        ) from None


def _head_learns(config: RunConfig) -> bool:
    return not config.student.has_adapters


def _drawing_bytes(rows: int, vocabulary: int, top_p: float) -> int:
    """Return the largest number of bytes for drawing one token per row; see ``draw_tokens``."""
    # Float32 logits, and two float64 matrices in the softmax. If every id may be drawn, also their
    # order (int64), the sorted probabilities, their cumulative sums, and these sums minus the
    # probabilities.
    each = 4 + 2 * 8 if top_p < 1 else 4 + 5 * 8 + 2
    return rows * vocabulary * each
