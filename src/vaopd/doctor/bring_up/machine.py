"""Driver, CUDA and the versions that decide everything else."""

import platform
import re
from pathlib import Path

import torch

from vaopd.devices import unusable_gpu
from vaopd.doctor.bring_up.bench import Bench, Finding
from vaopd.versions import installed_version

PACKAGES = ("vaopd", "torch", "transformers", "triton", "vllm")
DRIVER = Path("/proc/driver/nvidia/version")


def driver(bench: Bench) -> Finding:
    """Return the versions of this machine; a device that cannot be used is a problem."""
    numbers = {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "driver": _driver_version(),
    }
    reason = unusable_gpu()
    if not bench.is_gpu:
        note = f"; the GPU of this machine is not used ({reason})" if reason else ""
        summary = f"{bench.device}, torch {numbers['torch']}{note}"
        return Finding(numbers=numbers, summary=summary)
    if not torch.cuda.is_available():
        problem = reason or "there is no NVIDIA GPU here"
        return Finding(numbers=numbers, summary="", problems=[problem])
    properties = torch.cuda.get_device_properties(bench.device)
    numbers |= {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
        "has_bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
    problems = [] if numbers["has_bfloat16"] else ["this GPU only emulates bfloat16, slowly"]
    summary = f"{properties.name}, driver {numbers['driver']}, CUDA {torch.version.cuda}"
    return Finding(numbers=numbers, summary=summary, problems=problems)


def _driver_version() -> str | None:
    """Return the version in the file of the driver, such as 580.65.06."""
    if not DRIVER.exists():
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text(encoding="utf-8"))
    return found.group() if found else None
