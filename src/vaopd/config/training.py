"""The section ``training``: optimizer, schedule, batches and bookkeeping."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vaopd.config.base import (
    DecayRate,
    Fraction,
    FreeOnResume,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
)

HUB_NAME = r"^(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}$"


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

    tf32: bool = False
    """Compute products of float32 on a GPU in TF32: the student's part of the loss, where all
    weights are trained. docs/gpu.md has the errors."""

    max_gradient_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""

    max_skipped_steps: FreeOnResume[PositiveInt] = 3
    """A step whose loss or gradient is not finite, or whose loss is a spike, is not applied; as
    many in a row end the run. 1 = the first one does."""

    spike_factor: FreeOnResume[Annotated[float, Field(gt=1)] | None] = 10.0
    """A loss is a spike if it is above this many times the median of the last 20 applied steps, and
    by more than 1 nat; null = no loss is."""

    micro_batch_tokens: FreeOnResume[PositiveInt | Literal["auto"]] = 16384
    """Padded tokens in one forward and backward; without dropout the update does not depend
    on it. auto begins high on a GPU (16384 elsewhere) and halves where training runs out of
    memory."""

    share_prefix: bool = True
    """Pack siblings after one copy of prompt and image; false = one row for each rollout."""

    rollout_lag: Literal[0, 1] = 0
    """1 = a vLLM sampler and a teacher's server prepare the next step while this one is learned,
    from weights that are one update old; 0 = strictly on-policy."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of random weights, sampling, data order and ties."""

    save_every: FreeOnResume[PositiveInt | None] = 50
    """Steps between checkpoints; null = only at the end. A validation that is the best so far
    saves one as well."""

    validate_every: FreeOnResume[PositiveInt | None] = 50
    """Steps between validations; null = only before and after."""

    keep_checkpoints: FreeOnResume[PositiveInt | None] = 2
    """Newest checkpoints that are kept, beside ``checkpoints/best``; each holds weights and both
    moments; null = all."""

    keep_every: FreeOnResume[PositiveInt | None] = None
    """Checkpoints of steps divisible by this are kept as well; a multiple of ``save_every``."""

    log_rollouts_every: FreeOnResume[PositiveInt | None] = 10
    """Steps between rollout records for the report; null = none."""

    gradient_noise_every: FreeOnResume[PositiveInt | None] = None
    """Steps between measurements of the gradient: its norm and direction against uniform weights,
    and its signal and noise. Each costs three more forwards and backwards; null = none."""

    device: FreeOnResume[str] = "auto"
    """``auto`` takes a GPU when there is one."""

    parallel: FreeOnResume[Literal["none", "ddp", "fsdp2"]] = "none"
    """How several processes share a step, see docs/scaling.md: ``ddp`` keeps a copy of all models
    in each, ``fsdp2`` spreads weights, gradients and moments. Needs torchrun or its like."""

    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of ``final/``; resumable checkpoints are always float32."""

    push_to_hub: FreeOnResume[Annotated[str, Field(pattern=HUB_NAME)] | None] = None
    """``OWNER/NAME`` of a private repository of the Hugging Face hub that gets ``final/`` once the
    run has ended; a failed push does not fail the run. null = none."""

    @model_validator(mode="after")
    def _check_retention(self) -> "TrainingConfig":
        if self.keep_every is not None and (
            self.save_every is None or self.keep_every % self.save_every
        ):
            raise ValueError(
                f"training.keep_every is {self.keep_every}, not a multiple of "
                f"training.save_every={self.save_every}, so most of these steps are never saved; "
                "make it one"
            )
        return self
