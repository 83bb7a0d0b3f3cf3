"""Shards a model over the processes with FSDP2; weights are gathered when they are needed.

Forwards and backwards of a sharded model are collectives: each process must enter the same
number of them. ``most`` returns that number; a process with less work repeats ``filler``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from vaopd.distributed.collectives import check_place
from vaopd.models.prompts import EncodedPrompt


class Sharding:
    """Shards the parameters of a transformers model and gathers them when they are needed."""

    def __init__(
        self, model: Any, mesh: DeviceMesh, compute_dtype: torch.dtype, filler: EncodedPrompt
    ) -> None:
        """Shard a model in place, block by block.

        Args:
            model: Its parameters become DTensors on the mesh's device.
            mesh: One dimension, over all processes.
            compute_dtype: Precision of gathered weights; the shards keep the model's precision.
            filler: A small prompt for forwards of a process that has no work left.
        """
        self.model, self.base, self.mesh, self.filler = model, model.model, mesh, filler
        self.head: Tensor | None = None
        self.has_run = self.is_whole = False
        self.base.register_forward_hook(self._note_forward)
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        is_tied = head.weight is embeddings.weight
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute_dtype == model.dtype else compute_dtype,
            reduce_dtype=torch.float32,
        )
        blocks = set(model._no_split_modules or ())
        modules = [m for m in self.base.modules() if type(m).__name__ in blocks]
        for module in [*modules, self.base]:
            # Also set it for the root, which would stay whole after a forward without a backward.
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        # This hook must run before FSDP's own hook, which gathers weights.
        self.base.register_forward_pre_hook(self.enter_forward, prepend=True)
        self.modules: list[FSDPModule] = [*modules, self.base]
        for module in self.modules:
            # Each process divides its loss by the number of all problems, so gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        # The loss takes the head's weight and never calls the head, so it needs no FSDP hooks.
        if is_tied:
            head.weight = embeddings.weight
        else:
            head.weight = torch.nn.Parameter(
                distribute_tensor(head.weight.detach().to(mesh.device_type), mesh, [Shard(0)],
                                  src_data_rank=None),
                requires_grad=head.weight.requires_grad,
            )  # fmt: skip

    def most(self, count: int) -> int:
        """Return the largest count of all processes."""
        check_place()
        counts = torch.tensor(count, device=self.mesh.device_type)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return int(counts)

    def gathered(self, value: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return a whole weight in main memory on rank 0, None on others; a collective."""
        complete = whole(value)
        return complete.to("cpu", dtype) if self.mesh.get_rank() == 0 else None

    @contextmanager
    def whole_head(self) -> Iterator[None]:
        """Keep the head's whole weight in ``head``; at the end, sum and shard its gradient once."""
        check_place()
        weight = self.model.get_output_embeddings().weight
        whole = weight.full_tensor().detach()
        whole.requires_grad_(weight.requires_grad and torch.is_grad_enabled())
        self.head = whole
        try:
            yield
        finally:
            self.head = None
        if whole.requires_grad and self.most(whole.grad is not None):
            own = torch.zeros_like(whole) if whole.grad is None else whole.grad
            gradient = DTensor.from_local(own, self.mesh, [Partial()])
            gradient = gradient.redistribute(placements=weight.placements)
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        if not torch.is_grad_enabled():
            self._forget_forwards()

    def _forget_forwards(self) -> None:
        """Clear FSDP's list of forwards; only a backward clears it, so it grows for a teacher."""
        reset = getattr(self.base, "reset_iter_state", None)  # since torch 2.13
        # torch refuses this before the first forward, for example when there was nothing to sample.
        if reset is not None and self.has_run:
            reset()

    def enter_forward(self, *_: object) -> None:
        """Check that all processes run a forward; not needed while the model is whole."""
        if not self.is_whole:
            check_place()

    def _note_forward(self, *_: object) -> None:
        self.has_run = True

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Gather all weights at compute precision; forwards inside are not collectives."""
        check_place()
        self.base.set_reshard_after_forward(False)
        for module in self.modules:
            module.unshard()
        self.is_whole = True
        try:
            with torch.no_grad(), self.whole_head():
                yield
        finally:
            self.is_whole = False
            for module in self.modules:
                module.reshard()
            self.base.set_reshard_after_forward(True)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """Return a shard of a tensor that every process has whole, with the layout of ``like``."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    whole = value.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """Return the whole tensor in every process; a collective if the tensor is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """Return this process's part of a tensor; the whole tensor if it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value
