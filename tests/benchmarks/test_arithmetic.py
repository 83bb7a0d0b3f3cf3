"""Counted operations against those that torch counts in a real forward."""

import sys
from pathlib import Path

import pytest
import torch
from benchmarks.arithmetic import StepTokens, Work
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import arithmetic
from vaopd.config import StudentConfig, load_config
from vaopd.doctor.architecture import measure
from vaopd.models.architecture import read_config
from vaopd.models.loading import load_model

CONFIG = Path(__file__).parents[1] / "doctor" / "configs" / "qwen3-vl-2b"


def test_the_longer_of_operations_and_bytes_decides():
    assert Work(6e12, 1e9).seconds(2e12, 1e9) == 3.0
    assert Work(6e12, 9e9).seconds(2e12, 1e9) == 9.0


def test_the_operations_of_text_and_head_are_those_that_torch_counts():
    cpu, single = torch.device("cpu"), torch.float32
    model = load_model("tiny:new-student", device=cpu, dtype=single, compute_dtype=single)
    sizes = measure(read_config("tiny:student"))
    ids = torch.arange(8, 72)[None]
    # torch counts no operations of its fused kernels for CPUs.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model.model(input_ids=ids)
    tokens = StepTokens(problems=1, siblings=1, prompt=64, visual=0, response=0)
    # torch counts all pairs of tokens, and not only those that attend.
    all_pairs = 4 * sizes.layers * sizes.heads * sizes.head_width * 64 * 64 / 2
    expected = arithmetic.forward(sizes, tokens) + all_pairs + arithmetic.head(sizes, 64)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_a_step_of_the_papers_recipe_worked_by_hand():
    student = measure(read_config(str(CONFIG)), StudentConfig(model="a"))
    tokens = StepTokens(problems=1, siblings=2, prompt=100, visual=0, response=50)
    # 28 layers of 2048 x (2048 + 2 x 1024 + 2048 + 3 x 6144) weights, 200 tokens; 100 x 50 pairs of
    # the prompt and 100 x 125 of the responses.
    linear = 2 * 28 * 2048 * (2048 + 2048 + 2048 + 18_432) * 200
    attention = 4 * 28 * 2048 * (5_000 + 12_500)
    assert arithmetic.forward(student, tokens) == linear + attention
    # Every token reads 28 layers and the head, and the keys and values of 125 tokens of two rows.
    weights = 28 * 2048 * 24_576 + 151_936 * 2048
    read = 50 * 2 * (weights + 2 * 125 * 2 * 28 * 1024)
    assert arithmetic.sample(student, tokens).num_bytes == read


def test_adapters_and_kept_activations_save_their_parts():
    tokens = StepTokens(problems=1, siblings=2, prompt=100, visual=64, response=50)
    names = [f"{part}.model={CONFIG}" for part in ("student", "teacher")]
    plain = load_config("va_opd_geometry3k", names)
    short = load_config("va_opd_geometry3k", [*names, "student.gradient_checkpointing=false"])
    adapted = load_config("va_opd_geometry3k", [*names, "student.lora.rank=8"])
    found = [arithmetic.phases(one, tokens)["train"].operations for one in (plain, short, adapted)]
    sizes = measure(read_config(str(CONFIG)), plain.student)
    once = arithmetic.forward(sizes, tokens)
    assert found[0] - found[1] == pytest.approx(once)
    # Neither the gradient of the weights nor that of the head.
    saved = found[0] - found[2]
    assert saved == pytest.approx(once + arithmetic.head(sizes, tokens.responses), rel=0.02)


def test_the_command_prints_a_row_for_each_phase(monkeypatch, capsys):
    command = ["arithmetic", "va_opd_geometry3k", f"student.model={CONFIG}"]
    command += [f"teacher.model={CONFIG}", "--tflops", "989", "--gbytes", "3350"]
    monkeypatch.setattr(sys, "argv", command)
    arithmetic.main()
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert rows == ["phase", "---", "sample", "score", "train", "step"]
