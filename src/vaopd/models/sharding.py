"""Shards a model over the processes with FSDP2; weights are gathered when they are needed.

Forwards and backwards of a sharded model are collectives: each process must enter the same
number of them. ``most`` returns that number; a process with less work repeats ``filler``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from vaopd.distributed.collectives import check_place
from vaopd.errors import ModelError
from vaopd.models.prompts import EncodedPrompt


class Sharding:
    """Shards the parameters of a transformers model and gathers them when they are needed."""

    def __init__(
        self, model: Any, mesh: DeviceMesh, compute_dtype: torch.dtype, filler: EncodedPrompt
    ) -> None:
        """Shard a model in place, block by block.

        Args:
            model: Its parameters become DTensors on the mesh's device. Only the first process
                needs their values; the others may have a model on the meta device.
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
        send_buffers(model, mesh)
        for module in [*modules, self.base]:
            # Block by block, so that a process never holds more than its part and one block.
            send_weights(module, mesh)
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
            send_weights(head, mesh)
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


def send_buffers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Give all processes the tensors of the first process's model that are not parameters.

    Raises:
        ModelError: The models have other parameters; raised in all processes.
    """
    if mesh.size() == 1:
        return
    check_place()
    shapes = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in model.named_parameters()]
    layouts: list[Any] = [None] * mesh.size()
    dist.all_gather_object(layouts, shapes)
    if other := next((rank for rank, layout in enumerate(layouts) if layout != layouts[0]), 0):
        raise ModelError(
            f"process {other} builds a model with other parameters than process 0; install the "
            "same versions of vaopd, transformers and peft on all machines"
        )
    owners = dict(model.named_modules())
    # Some modules have tensors that are not registered as buffers.
    found = [
        {
            (name, key): value.cpu()
            for name, owner in owners.items()
            for key, value in [*owner.named_buffers(recurse=False), *vars(owner).items()]
            if isinstance(value, Tensor) and not value.is_meta
        }
    ]
    dist.broadcast_object_list(found, src=0)
    if mesh.get_rank():
        for (name, key), value in found[0].items():
            setattr(owners[name], key, value.to(mesh.device_type))


def send_weights(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give all processes the first process's parameters of a module that are not sharded yet.

    They are whole on the mesh's device afterwards. Tied parameters stay one parameter.
    """
    if mesh.size() == 1:
        return
    check_place()
    sent: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, weight in owner.named_parameters(recurse=False):
            if isinstance(weight, DTensor):
                continue
            if id(weight) not in sent:
                value = sent_value(None if weight.is_meta else weight.detach(), weight, mesh)
                sent[id(weight)] = nn.Parameter(value, requires_grad=weight.requires_grad)
            setattr(owner, name, sent[id(weight)])


def sent_value(value: Tensor | None, like: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the first process's value of a tensor, whole, on the mesh's device; a collective.

    Args:
        value: Needed in the first process only.
        like: Has the shape and the precision of the value; its contents are not used.
        mesh: All processes.
    """
    device = mesh.device_type
    if mesh.get_rank() == 0:
        assert value is not None, "the first process has read the weights"
        whole = value.to(device, like.dtype).contiguous()
    else:
        whole = torch.empty(like.shape, dtype=like.dtype, device=device)
    dist.broadcast(whole, src=0)
    return whole


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
