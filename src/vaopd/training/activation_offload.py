"""Keeps activations in CPU memory between the forward and the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

MIN_BYTES = 2**16
"""Smaller tensors stay on the device, because a transfer costs more than their memory."""


class ActivationOffload(torch.autograd.graph.saved_tensors_hooks):
    """Moves the saved activations of a forward to CPU memory until the backward pass.

    The memory is pinned for tensors of a CUDA device. torch's own ``save_on_cpu`` also copies the
    weights, because autograd saves them like activations; that does not save memory, because the
    weights stay on the device in any case.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.num_bytes = 0
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Any:
        """Return what is stored until the backward pass: a copy in CPU memory or the tensor."""
        size = tensor.numel() * tensor.element_size()
        if size < MIN_BYTES or tensor.untyped_storage().data_ptr() in self.weights:
            return tensor
        self.num_bytes += size
        parked = torch.empty(
            tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda
        )
        return tensor.device, parked.copy_(tensor)

    def unpack(self, saved: Any) -> Tensor:
        """Return the tensor on its own device."""
        if isinstance(saved, Tensor):
            return saved
        device, parked = saved
        return parked.to(device, non_blocking=True)
