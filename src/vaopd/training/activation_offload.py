"""Activations in CPU memory between the forward and the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

MIN_BYTES = 2**16
"""Smaller tensors stay: a transfer costs more than the room they take."""


class ActivationOffload(torch.autograd.graph.saved_tensors_hooks):
    """Context of a forward whose saved activations wait in CPU memory, pinned where that helps.

    torch's own ``save_on_cpu`` moves the weights as well, which autograd saves like activations
    and which stay on the device in any case.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.num_bytes = 0
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Any:
        """Return what waits for the backward pass: a copy in CPU memory, or the tensor itself."""
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
