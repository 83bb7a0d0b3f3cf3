"""Weight offload: a frozen model's weights are in main memory and on the device only when used."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Parking:
    """Parameters that are on a device inside ``present`` and in main memory otherwise.

    The copies in main memory stay. Frozen weights need not be copied back: leaving the context
    only frees the copies on the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        self.device = device
        self.homes = [(parameter, _home(parameter.data)) for parameter in parameters]
        self._leave()

    @contextmanager
    def present(self) -> Iterator[None]:
        """Copy the parameters to the device for the duration of the context."""
        try:
            for parameter, home in self.homes:
                parameter.data = arrived(home, self.device)
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for parameter, home in self.homes:
            parameter.data = home


def arrived(home: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on the device."""
    # The next computation waits for this copy, because both are on one stream.
    return home.to(device, non_blocking=True)


def _home(data: torch.Tensor) -> torch.Tensor:
    """Return a copy in main memory, pinned if that makes the copy to the device faster."""
    home = data.cpu()
    return home.pin_memory() if data.is_cuda else home
