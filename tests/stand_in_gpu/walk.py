"""Trains, saves, exports and resumes on the stand-in: ``python walk.py HOOKS OUTPUT [KEY=VALUE]``.

Prints one JSON object: the steps taken, and how often the CPU waited, by line of the product.
"""

import json
import sys
from pathlib import Path
from typing import Any

import device  # before torch
import peft  # noqa: F401  # before torch reports a GPU, whose kernels bitsandbytes would ask for
import torch
from torch.utils._python_dispatch import _disable_current_modes

from vaopd import load_config, train
from vaopd.models import attention, loading
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher import local
from vaopd.training import export, student

RECIPE = [
    "training.device=cuda",
    "data.train=drawn:train?count=16&seed=7",
    "data.validation=drawn:validation?count=2&seed=7",
    "training.problems_per_step=2",
    "sampling.num_rollouts=2",
    "sampling.max_new_tokens=10",
    "training.validate_every=null",
    "training.save_every=1",
    "training.log_rollouts_every=1",
]


def on_stand_in(*args: Any, device_: Any = None, **options: Any) -> VisionLanguageModel:
    """Load a model on the CPU, as a CPU build of torch must, and move it."""
    with _disable_current_modes():
        loaded = load_on_cpu(*args, **{**options, "device": torch.device("cpu")})
    if options["device"].type == "cuda":
        device.move(loaded.model)
    return loaded


def outside_modes(*lengths: int) -> Any:
    """Make the mask without a tensor as on a GPU: torch cannot make it under a dispatch mode."""
    with _disable_current_modes():
        return lower_right(*lengths)


lower_right = attention.causal_lower_right
attention.causal_lower_right = outside_modes  # pyright: ignore
load_on_cpu = loading.load_model
student.load_model = local.load_model = on_stand_in  # pyright: ignore


def main() -> None:
    output, overrides = Path(sys.argv[2]), sys.argv[3:]
    with device.stand_in() as counts:
        first = load_config("quickstart", [*RECIPE, "training.max_steps=2", *overrides])
        assert train(first, output).steps == 2
        export.export(output / "final", output.parent / "exported")
        again = load_config(output / "config.yaml", ["training.max_steps=3"])
        steps = train(again, output, resume=True).steps
    print(json.dumps({"steps": steps, "waits": counts.waits, "operations": counts.operations}))


if __name__ == "__main__":
    main()
