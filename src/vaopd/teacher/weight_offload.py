"""A frozen model's weights in main memory, brought to the device while it is used."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Parking:
    """Parameters that are on a device inside ``present`` and in main memory otherwise.

    The copies in main memory stay, because frozen weights never have to come back: leaving only
    forgets what is on the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        self.device = device
        self.homes = [(parameter, _home(parameter.data)) for parameter in parameters]
        self._leave()

    @contextmanager
    def present(self) -> Iterator[None]:
        """Have the parameters on the device for the length of the context."""
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
    # Whatever is computed next waits for it: both are in the order of one stream.
    return home.to(device, non_blocking=True)


def _home(data: torch.Tensor) -> torch.Tensor:
    """Return a copy in main memory, pinned where that makes the way back faster."""
    home = data.cpu()
    return home.pin_memory() if data.is_cuda else home
