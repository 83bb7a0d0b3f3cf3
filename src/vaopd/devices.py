"""Choice of device and precision."""

import torch

from vaopd.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return the device of ``training.device``; ``auto`` takes a GPU when there is one.

    Raises:
        ConfigError: This machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ConfigError(
            f"training.device is {name!r}, which is not usable here ({reason}); use auto or cpu"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a precision; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]
