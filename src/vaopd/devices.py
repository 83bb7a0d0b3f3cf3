"""Choice of device and precision."""

import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from vaopd.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

NVIDIA_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
"""Files that Linux has where a driver of NVIDIA is loaded."""

log = logging.getLogger(__name__)


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


def unusable_gpu() -> str | None:
    """Return why torch cannot use the NVIDIA GPU of this machine; None if it can or there is none.

    A GPU that ``CUDA_VISIBLE_DEVICES`` hides counts as none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch only warns about an old driver
        is_usable = torch.cuda.is_available()
    if is_usable or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if not any(path.exists() for path in NVIDIA_FILES) and not _smi_lists_a_gpu():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:200]
    return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no device"


def has_gpu() -> bool:
    """Return whether this machine has a GPU, even if torch cannot use it."""
    return torch.cuda.is_available() or unusable_gpu() is not None


def _smi_lists_a_gpu() -> bool:
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def check_auto_device(device: str, models: Iterable[str], setting: str = "training.device") -> None:
    """Check that ``auto`` does not mean the CPU of a machine whose GPU cannot be used.

    Tiny models run well on a CPU, so they only get a warning.

    Args:
        device: As the user gave it; only ``auto`` is checked.
        models: Names of the models that will compute, as in a recipe.
        setting: What the user wrote it in, for the message.

    Raises:
        ConfigError: There is such a GPU, and a model that is not tiny.
    """
    reason = unusable_gpu() if device == "auto" else None
    if reason is None:
        return
    found = f"{setting} is auto, and this machine has an NVIDIA GPU that cannot be used ({reason})"
    remedy = "update its driver, or install a torch that fits it"
    if all(name.startswith("tiny:") for name in models):
        log.warning("%s; the CPU is used: %s", found, remedy)
        return
    raise ConfigError(f"{found}; {remedy}, or set {setting}=cpu")


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


def choose_tf32(is_wanted: bool) -> None:
    """Choose how this process computes products of float32 on a GPU."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if is_wanted else "ieee"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a precision; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]
