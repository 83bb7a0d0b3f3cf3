"""Memory and time of the loss: ours, the plain formula, and TRL's chunked divergence.

    python benchmarks/loss.py                      # full size on the CPU: about ten minutes
    python benchmarks/loss.py --device cuda --dtype bfloat16

Each arm runs in a process of its own. Memory is the peak of one forward and backward pass
above what the inputs take; on a CPU it is resident memory, read from the kernel. Agreement is
against the plain formula in float64 at a small size.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from vaopd.objective.divergence import weighted_reverse_kl

ARMS = ("ours", "plain", "trl")
SMALL = {"tokens": 96, "vocabulary": 5000, "student_width": 64, "teacher_width": 128}
PLAIN_BUFFERS = 5
"""Tokens-by-vocabulary tensors to expect of the plain formula: four measured, one spare."""

Loss = Callable[..., Tensor]


def ours(*inputs: Tensor) -> Tensor:
    """Return the loss of vaopd."""
    return weighted_reverse_kl(*inputs)[0]


def plain(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss from whole logits, at least in float32, by autograd."""
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    student = (student_hidden @ student_head.T).to(wide).log_softmax(-1)
    teacher = (teacher_hidden @ teacher_head.T).to(wide).log_softmax(-1)
    return (weights * (student.exp() * (student - teacher)).sum(-1)).sum()


def trl(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss from TRL's per-token reverse KL (its ``beta`` of 1)."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        student_hidden, student_head, None, teacher_hidden, teacher_head, None, 1.0
    )
    return (weights * divergence).sum()


def make_inputs(size: dict[str, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return student hidden states and head, the teacher's, and weights that sum to one."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, width: int, scale: float) -> Tensor:
        result = torch.empty(rows, width, dtype=dtype, device=device)
        return result.normal_(0, scale, generator=generator)

    inputs = []
    for model in ("student", "teacher"):
        width = size[f"{model}_width"]
        inputs.append(normal(size["tokens"], width, 1.0))
        inputs.append(normal(size["vocabulary"], width, 2 / width**0.5))
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    inputs.append(torch.full((size["tokens"],), 1 / size["tokens"], device=device))
    return inputs


def agreement(loss: Loss, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return the error of value and gradients relative to the float64 formula's largest entry."""
    inputs = make_inputs(SMALL, dtype, device)
    exact = [tensor.detach().double() for tensor in inputs]
    for tensor in exact[:2]:
        tensor.requires_grad_()
    results = []
    for function, tensors in ((loss, inputs), (plain, exact)):
        value = function(*tensors)
        value.backward()
        results.append([value.detach(), tensors[0].grad, tensors[1].grad])
    names = ("value", "hidden_gradient", "head_gradient")
    return {
        name: float((got.double() - want).abs().max() / want.abs().max())
        for name, got, want in zip(names, *results, strict=True)
    }


def status_bytes(key: str) -> int:
    """Return a memory field of this process from the kernel."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024


def measure(loss: Loss, inputs: list[Tensor], device: str) -> tuple[int, float]:
    """Return extra peak bytes and seconds of one forward and backward pass."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = status_bytes("VmRSS")
    start = time.perf_counter()
    loss(*inputs).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")
    return peak - before, seconds


def free_bytes(device: str) -> int:
    """Return the memory that is free now."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024


def tokens_that_fit(size: dict[str, int], device: str) -> int:
    """Return the most tokens, by halving, at which the plain formula should fit."""
    tokens = size["tokens"]
    head_bytes = size["vocabulary"] * (2 * size["student_width"] + size["teacher_width"]) * 4
    while tokens * size["vocabulary"] * 4 * PLAIN_BUFFERS + head_bytes > 0.9 * free_bytes(device):
        tokens //= 2
    return tokens


def run_arm(options: argparse.Namespace) -> dict:
    """Return the measurements of one arm, made in this process."""
    loss = {"ours": ours, "plain": plain, "trl": trl}[options.arm]
    dtype = getattr(torch, options.dtype)
    size = {key: getattr(options, key) for key in SMALL}
    if options.arm == "plain":
        size["tokens"] = tokens_that_fit(size, options.device)
    errors = agreement(loss, dtype, options.device)
    runs = []
    for _ in range(options.repetitions):
        inputs = make_inputs(size, dtype, options.device)
        runs.append(measure(loss, inputs, options.device))
        del inputs
    peak, seconds = max(run[0] for run in runs), min(run[1] for run in runs)
    return {"tokens": size["tokens"], "peak": peak, "seconds": seconds, **errors}


def run_arm_apart(arm: str, arguments: list[str]) -> dict | str:
    """Return the measurements of one arm from a fresh process, or why there are none."""
    if arm == "trl" and importlib.util.find_spec("trl") is None:
        return "not measured (pip install vaopd[bench])"
    command = [sys.executable, __file__, *arguments, "--arm", arm]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1]
        return f"not measured ({reason})"
    return json.loads(result.stdout.splitlines()[-1])


def table(results: dict[str, dict | str], tokens: int) -> list[str]:
    """Return the lines of the results as a markdown table."""
    lines = [
        "| arm | tokens | extra peak memory | seconds | error of value | of hidden gradient "
        "| of head gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, result in results.items():
        if isinstance(result, str):
            lines.append(f"| {arm} | {result} | | | | | |")
            continue
        note = (
            ""
            if result["tokens"] == tokens
            else f" (not run at {tokens:,}: by estimate it would not fit)"
        )
        lines.append(
            f"| {arm} | {result['tokens']:,}{note} | {result['peak'] / 1e9:.2f} GB "
            f"| {result['seconds']:.1f} | {result['value']:.1e} "
            f"| {result['hidden_gradient']:.1e} | {result['head_gradient']:.1e} |"
        )
    return lines


def description(options: argparse.Namespace) -> list[str]:
    """Return the lines that say what was measured, where and when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads used"
    )
    libraries = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if importlib.util.find_spec("trl"):
        libraries.append(f"trl {version('trl')}")
    return [
        "# Memory and time of the loss",
        "",
        f"    python benchmarks/loss.py {' '.join(sys.argv[1:])}".rstrip(),
        "",
        f"Weighted reverse KL, forward and backward, {options.dtype}: {options.tokens:,} tokens, "
        f"{options.vocabulary:,} ids, student width {options.student_width:,}, teacher width "
        f"{options.teacher_width:,}; best of {options.repetitions}.",
        f"{datetime.date.today()}, commit {commit or 'none'}, {machine}, {', '.join(libraries)}; "
        f"load average {os.getloadavg()[1]:.1f} (other work slows every arm).",
        "",
        "Peak memory is above the inputs and includes the gradients; that of the student's head "
        "alone is "
        f"{options.vocabulary * options.student_width * 4 / 1e9:.2f} GB in float32. Errors are "
        f"relative to the float64 formula at {SMALL['tokens']} tokens and "
        f"{SMALL['vocabulary']:,} ids. TRL's Triton kernels need a GPU; on a CPU it takes its "
        "eager path, which holds more.",
        "",
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--student-width", type=int, default=2048)
    parser.add_argument("--teacher-width", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--arms", default=",".join(ARMS), help="which arms to run")
    parser.add_argument("--arm", choices=ARMS, help="run this one here and print JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    results = {arm: run_arm_apart(arm, sys.argv[1:]) for arm in options.arms.split(",")}
    text = "\n".join([*description(options), *table(results, options.tokens)]) + "\n"
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
