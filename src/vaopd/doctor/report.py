"""Prints the output of ``vaopd doctor``."""

import os
import platform
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table

from vaopd.config import RunConfig
from vaopd.devices import unusable_gpu
from vaopd.doctor.estimate import PHASES, Lengths, estimate
from vaopd.doctor.remedies import remedies
from vaopd.models.families.qwen_vl import PACKED_TYPES
from vaopd.versions import installed_version

PACKAGES = ("vaopd", "torch", "transformers", "tokenizers", "datasets", "numpy", "pillow")
EXTRAS = {
    "peft": "student.lora (extra lora)",
    "bitsandbytes": "quantization, training.optimizer=adamw8bit (extra quantize)",
    "accelerate": "quantization (extra quantize)",
    "vllm": "sampling.engine=vllm",
    "torchvision": "full processors of other model families",
    "trl": "benchmarks against TRL",
}
GIB = 2**30


def show_machine(console: Console) -> None:
    """Print versions, devices, what runs on each device, and the installed extras."""
    table = Table(title="versions", title_justify="left", show_header=False)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        table.add_row(name, _version(name) or "missing")
    console.print(table)
    table = Table(title="devices", title_justify="left")
    for column in ("device", "memory", "free", "models", "forwards"):
        table.add_column(column)
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        precision = "bfloat16" if torch.cuda.is_bf16_supported() else "bfloat16, emulated: slow"
        table.add_row(f"cuda:{index} {name}", _gib(total), _gib(free), "here", precision)
    total, free = _main_memory()
    place = "checkpoints, parked states" if torch.cuda.is_available() else "here"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table.add_row(f"cpu, {cores} cores", _gib(total), _gib(free), place, "float32")
    console.print(table)
    if reason := unusable_gpu():
        found = f"an NVIDIA GPU is here but cannot be used: {reason}"
        console.print(found, highlight=False, soft_wrap=True)
    console.print(
        f"attention: sdpa; siblings share a row for {', '.join(PACKED_TYPES)}, other "
        "families take one row a forward",
        highlight=False,
    )
    table = Table(title="optional", title_justify="left")
    for column in ("package", "version", "enables"):
        table.add_column(column)
    for name, use in EXTRAS.items():
        table.add_row(name, _version(name) or "not installed", use)
    console.print(table)


def show_estimate(
    console: Console,
    config: RunConfig,
    device: torch.device,
    *,
    processes: int,
    capacity: int | None,
    lengths: Lengths,
) -> None:
    """Print a recipe's expected peaks for each device, and what to change if they do not fit."""
    capacity = capacity or capacity_of(device)
    result = estimate(config, device, processes=processes, lengths=lengths, capacity=capacity)
    where = f"each of {processes} devices" if processes > 1 else "one device"
    console.print(
        f"expected memory of {where} ({device.type}, training.parallel={config.training.parallel})",
        highlight=False,
        soft_wrap=True,
    )
    unit = "GiB" if result.peak >= GIB else "MiB"
    table = Table()
    table.add_column(unit)
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for name, part in result.parts.items():
        table.add_row(name, *(_number(part.get(phase, 0), unit) for phase in PHASES))
    table.add_section()
    table.add_row("total", *(_number(result.total(phase), unit) for phase in PHASES))
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False)
    peak = f"peak {_gib(result.peak)} of {_gib(capacity)}"
    if result.peak <= capacity:
        console.print(f"{peak}: fits, with {_gib(capacity - result.peak)} left", highlight=False)
        return
    wanted = ", ".join(remedies(config, result, capacity))
    console.print(f"{peak}: does not fit; try {wanted}", highlight=False, soft_wrap=True)


def capacity_of(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory
    return _main_memory()[0]


def _main_memory() -> tuple[int, int]:
    """Return the total and the free bytes of main memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


def _version(name: str) -> str | None:
    if find_spec({"pillow": "PIL"}.get(name, name)) is None:
        return None
    return installed_version(name) or "unknown version"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _number(count: int, unit: str) -> str:
    return f"{count / (GIB if unit == 'GiB' else 2**20):.1f}" if count else ""
