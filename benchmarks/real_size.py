"""One step of the product at real sizes on a CPU, from random weights: time, memory, operations.

    python -m benchmarks.real_size runs/real_size

makes a 2B student and a 4B teacher in ``runs/real_size`` (13 GB), trains one step of
``recipes/real_size_cpu.yaml`` with them, and prints what it took beside what was expected.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vaopd.config import load_config
from vaopd.doctor import estimate as doctor
from vaopd.doctor.estimate import Lengths
from vaopd.models import tiny

ROOT = Path(__file__).parents[1]
CONFIG_2B = ROOT / "tests" / "doctor" / "configs" / "qwen3-vl-2b"
RECIPE = ROOT / "recipes" / "real_size_cpu.yaml"

TEXT_OF_4B = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
              "intermediate_size": 9728}  # fmt: skip
"""Where Qwen3-VL-4B differs from 2B; its vision tower differs in ``out_hidden_size`` alone."""

PATCH = 16

IDS = 151_669
"""Of the tokenizer of Qwen3-VL; the head has 151,936 rows."""

TEXT_TOKENS = 48
"""Of a drawn question with its chat template, about."""

SECONDS_BETWEEN_LOOKS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="Where the models and runs go.")
    parser.add_argument("--products", action="store_true", help="Only the speed of products.")
    arguments = parser.parse_args()
    if arguments.products:
        print(json.dumps(product_rates(), indent=2))
        return
    folder = arguments.folder
    for name, text in (("student", {}), ("teacher", TEXT_OF_4B)):
        if not (folder / name / "tokenizer.json").is_file():
            make_model(folder / name, text)
    print(json.dumps(measure(folder), indent=2))


def make_model(folder: Path, text: dict[str, int]) -> None:
    """Write a model folder with random bfloat16 weights and a tokenizer of the real size."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(CONFIG_2B)
    tokenizer = json.loads((tiny.asset_folder("tokenizer") / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id = ids["<|vision_start|>"]
    config.vision_end_token_id = ids["<|vision_end|>"]
    for key, value in text.items():
        setattr(config.text_config, key, value)
    config.vision_config.out_hidden_size = config.text_config.hidden_size
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, ids)


def write_tokenizer(folder: Path, tokenizer: dict[str, Any], special: dict[str, int]) -> None:
    """Write the shipped tokenizer with as many ids as that of Qwen3-VL, and its patches."""
    for path in tiny.asset_folder("tokenizer").iterdir():
        if path.name != "tokenizer.json":
            (folder / path.name).write_bytes(path.read_bytes())
    # Ids that no text gets, but that may be sampled; a special id that is not in the vocabulary
    # would be moved to its end.
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= special
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), IDS)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": PATCH}))


def product_rates() -> dict[str, float]:
    """Return GFLOP/s of 364 tokens by a layer of 2048 x 6144, as torch computes it, by dtype."""
    tokens, width, inner, times = 364, 2048, 6144, 5
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = (torch.randn(n, width).to(dtype) for n in (tokens, inner))
        torch.nn.functional.linear(states, weight)
        start = time.perf_counter()
        for _ in range(times):
            torch.nn.functional.linear(states, weight)
        seconds = (time.perf_counter() - start) / times
        rates[str(dtype)] = round(2 * tokens * width * inner / seconds / 1e9, 1)
    return rates


def measure(folder: Path) -> dict[str, Any]:
    """Train one step in a process of its own; return times, peak memory and operations."""
    output = folder / f"run-{int(time.time())}"
    settings = [f"{name}.model={folder / name}" for name in ("student", "teacher")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vaopd", "train", RECIPE, *settings, "--output", output]
    )
    start, peak = time.monotonic(), 0
    metrics = output / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    until_step = time.monotonic() - start
    if process.wait():
        raise SystemExit(f"the run ended with exit code {process.returncode}; see {output}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = json.loads(metrics.read_text().splitlines()[0])
    return {
        "seconds": {
            "until the step is done": round(until_step, 1),
            "whole run": round(time.monotonic() - start, 1),
            "whole run, of the processor": round(used.ru_utime + used.ru_stime, 1),
            **{key: value for key, value in row.items() if key.startswith("time/")},
        },
        "peak resident GiB until the step is done": round(peak / 2**30, 2),
        "of it, a process that only imports": round(imported_bytes() / 2**30, 2),
        "estimate of vaopd doctor": estimate(settings),
        "threads": torch.get_num_threads(),
        "loss": row["loss"],
    }


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * 4096


def imported_bytes() -> int:
    """Return the resident memory of a process that has imported the trainer and no model."""
    code = "import vaopd.training.run; print(open('/proc/self/statm').read().split()[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) * 4096


def estimate(settings: list[str]) -> dict[str, float]:
    """Return what ``vaopd doctor`` expects of each phase, GiB."""
    lengths = Lengths(text_tokens=TEXT_TOKENS)
    expected = doctor.estimate(load_config(RECIPE, settings), torch.device("cpu"), lengths=lengths)
    return {phase: round(expected.total(phase) / 2**30, 2) for phase in doctor.PHASES}


if __name__ == "__main__":
    main()
