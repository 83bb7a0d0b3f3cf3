"""The student before training, to whose distribution a policy stays near."""

from collections.abc import Iterable
from contextlib import nullcontext

from jaxtyping import Float
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.devices import pick_dtype
from vaopd.distributed.world import World
from vaopd.models import adapters
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import MicroBatch
from vaopd.training.response_scores import response_logprobs


class Reference:
    """The student before training: itself without its adapters, or a frozen copy."""

    def __init__(self, student: VisionLanguageModel, copy: VisionLanguageModel | None) -> None:
        self.student, self.copy = student, copy

    def logprobs(
        self, batches: Iterable[MicroBatch], lengths: list[int]
    ) -> list[Float[Tensor, " _"]]:
        """Return its log-prob of each response token; see `response_logprobs`."""
        model = self.student if self.copy is None else self.copy
        is_itself = self.copy is None
        with adapters.switched_off(model.model) if is_itself else nullcontext():
            return response_logprobs(model, batches, lengths)


def load_reference(
    config: RunConfig, student: VisionLanguageModel, world: World
) -> Reference | None:
    """Return the student before training, if the method needs it; a collective if it is sharded.

    Adapters over frozen weights need no second copy of the weights. Other students do, at the
    precision of forwards; it is read again from ``student.model``, so that a resumed run has the
    same.
    """
    if not config.method.needs.reference_logprobs:
        return None
    if not needs_copy(config):
        return Reference(student, None)
    own = config.student
    dtype = pick_dtype(own.dtype, world.device)
    copy = world.agree_if_sharded(
        lambda: load_model(
            own.model,
            device=world.load_device,
            dtype=dtype,
            compute_dtype=dtype,
            seed=config.training.seed,
            quantization=own.quantization,
        )
    )
    copy.model.eval().requires_grad_(False)
    copy.shard(world.shards)
    return Reference(student, copy)


def needs_copy(config: RunConfig) -> bool:
    """Return whether weights that training changes are needed as they were before it."""
    own = config.student
    is_frozen = own.has_adapters and own.lora.vision != "full"
    return config.method.needs.reference_logprobs and not is_frozen
