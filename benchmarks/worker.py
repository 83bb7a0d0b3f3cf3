"""Measures one arm in this process and prints it as one JSON line; started by the suite."""

import argparse
import importlib
import json
import sys
from typing import Any

PHASES = ("update", "loss", "target", "sampling", "step", "epochs", "probe", "growth")


def measure_arm(phase: str, arm: str, device: str, scale: str) -> dict[str, Any]:
    """Return the numbers of one arm, or ``{"missing": reason}``."""
    import torch

    from benchmarks.measure import NotMeasured, measure
    from benchmarks.scales import SCALES

    if device == "cuda" and not torch.cuda.is_available():
        return {"missing": "torch finds no CUDA device"}
    build = importlib.import_module(f"benchmarks.{phase}").ARMS[arm]
    try:
        return measure(build(SCALES[scale], device), device)
    except NotMeasured as reason:
        return {"missing": str(reason)}
    except torch.OutOfMemoryError as error:
        return {"missing": str(error).split(". ")[0]}


def main() -> None:
    """Read the arm from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", default="tiny")
    options = parser.parse_args()
    numbers = measure_arm(options.phase, options.arm, options.device, options.scale)
    # Libraries print on standard output; the suite reads the last line.
    print("\n" + json.dumps(numbers), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
