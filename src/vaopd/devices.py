"""Choice of device and precision."""

import torch

from vaopd.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str, setting: str = "training.device") -> torch.device:
    """Return a device by name; ``auto`` takes a GPU when there is one.

    Args:
        name: As torch writes it, or ``auto``.
        setting: What the user wrote it in, for the error.

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
            f"{setting} is {name!r}, which is not usable here ({reason}); use auto or cpu"
        ) from None
    return device


def list_devices(names: str) -> list[str]:
    """Return the devices of ``--devices``; ``auto`` is every visible GPU, or the CPU.

    Nothing is stored on the GPUs: the process that asks need not be the one that computes.

    Raises:
        ConfigError: There are fewer GPUs.
    """
    count = torch.cuda.device_count()
    if names == "auto":
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= count:
            raise ConfigError(
                f"--devices {names}: {name!r} is not there, this machine shows {count} GPUs; "
                "use auto or cpu"
            )
    return listed


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a precision; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]
