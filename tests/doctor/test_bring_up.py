"""The checks of a new card, on a CPU; each is also shown to fail where its device is wrong."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import fake_python
from rich.console import Console

from vaopd.doctor.bring_up import kernels, machine, numerics, training
from vaopd.doctor.bring_up.bench import Bench, CheckResult, Finding, NotRunHere, beyond
from vaopd.doctor.bring_up.runner import CHECKS, BringUpCheck, choose_checks, run_checks
from vaopd.errors import ConfigError
from vaopd.rollouts.vllm.server import PYTHON_VARIABLE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)


def outcomes(names: str, device: torch.device = CPU) -> list[CheckResult]:
    return run_checks(choose_checks(names), device, Console(quiet=True))


def outcome(name: str) -> CheckResult:
    (result,) = outcomes(name)
    return result


def test_the_list_has_all_checks_in_their_order(run: Run):
    code, out, _ = run("doctor", "--bring-up", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [check.name for check in CHECKS]
    assert all(check.tells in out for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bring-up", "--only", "conv3d,conv4d"], "--only names 'conv4d', which is not a check"),
        (["--only", "conv3d"], "--only is for the checks of --bring-up"),
        (["--list"], "--list is for the checks of --bring-up"),
        (["--bring-up", "--memory", "24"], "--memory is for the estimate of a recipe"),
        (["--processes", "2"], "--processes is for the estimate of a recipe; name one"),
        (["--device", "cuda"], "--device is for the estimate of a recipe; name one"),
    ],
)
def test_options_that_nothing_reads_are_refused(options: list[str], message: str, run: Run):
    code, _, err = run("doctor", *options)
    assert code == 2 and message in err


def test_checks_are_chosen_in_the_order_of_the_list():
    assert [check.name for check in choose_checks("objective, conv3d")] == ["conv3d", "objective"]
    with pytest.raises(ConfigError, match="use driver, conv3d"):
        choose_checks("")


def test_the_quick_checks_pass_on_a_cpu(run: Run, tmp_path: Path):
    names = ["driver", "conv3d", "decode-attention", "span-attention", "objective",
             "packed-logprobs", "sampler-speed", "vllm-speed", "vllm-weights"]  # fmt: skip
    output = tmp_path / "new" / "found.json"
    code, out, err = run(
        "doctor", "--bring-up", "--device", "cpu", "--only", ",".join(names), "--output", output
    )
    assert code == 0, out + err
    found = json.loads(output.read_text())
    assert found["is_passed"] is True and found["device"] == "cpu"
    results = {check["name"]: check for check in found["checks"]}
    assert sorted(results) == sorted(names)
    for name, check in results.items():
        assert check["result"] == ("not run" if name.startswith("vllm") else "passed"), check
        assert check["seconds"] >= 0 and check["message"]
        assert name in out
    assert "vaopd setup-vllm DIR" in results["vllm-speed"]["message"]
    decode = results["decode-attention"]["numbers"]
    assert decode["cudnn"]["64"] == "not available"
    assert 0 < decode["math"]["256 with a mask"]["error"] < 0.05
    assert results["sampler-speed"]["numbers"]["rows"] == 16
    assert results["packed-logprobs"]["numbers"]["tokens"] > 300


@pytest.mark.slow
def test_a_run_and_the_memory_of_steps_pass_on_a_cpu():
    run, memory = outcomes("quickstart,step-memory")
    assert (run.result, memory.result) == ("passed", "passed")
    # On a CPU a resumed run gives the same bits.
    assert run.numbers["difference"] == 0
    assert len(run.numbers["losses"]) == 3 and all(map(math.isfinite, run.numbers["losses"]))
    short, long = memory.numbers["32"], memory.numbers["96"]
    assert 0 < short["estimated_mib"] < long["estimated_mib"]
    assert "peak_mib" not in long


def test_a_failed_check_stops_no_other_and_the_file_grows(tmp_path: Path):
    output = tmp_path / "found.json"

    def broken(bench: Bench) -> Finding:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def absent(bench: Bench) -> Finding:
        assert len(json.loads(output.read_text())["checks"]) == 1
        raise NotRunHere("there is no such thing")

    def wrong(bench: Bench) -> Finding:
        return Finding(numbers={"x": 2}, summary="unseen", problems=["x is 2", "y is 3"])

    checks = [BringUpCheck(work.__name__, "", work) for work in (broken, absent, wrong)]
    results = run_checks(checks, CPU, Console(quiet=True), output=output)
    assert [(one.result, one.message) for one in results] == [
        ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("not run", "there is no such thing"),
        ("failed", "x is 2; y is 3"),
    ]
    found = json.loads(output.read_text())
    assert found["is_passed"] is False
    assert [check["numbers"] for check in found["checks"]] == [{}, {}, {"x": 2}]


def test_what_a_check_opened_is_closed_before_the_next():
    closed: list[str] = []

    def opens(bench: Bench) -> Finding:
        bench.resources.callback(closed.append, "server")
        return Finding(numbers={}, summary="")

    def looks(bench: Bench) -> Finding:
        return Finding(numbers={"closed": list(closed)}, summary="")

    checks = [BringUpCheck(work.__name__, "", work) for work in (opens, looks)]
    assert run_checks(checks, CPU, Console(quiet=True))[1].numbers == {"closed": ["server"]}


def test_without_a_usable_gpu_the_first_check_says_why_and_the_others_wait(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "unusable_gpu", lambda: "the driver is too old (470.57)")
    code, out, _ = run("doctor", "--bring-up", "--device", "cuda", "--only", "driver,conv3d")
    assert code == 1
    assert "the driver is too old" in " ".join(out.split())
    results = outcomes("driver,conv3d,quickstart", CUDA)
    assert [one.result for one in results] == ["failed", "not run", "not run"]


def test_the_version_of_the_driver_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n")
    monkeypatch.setattr(machine, "DRIVER", file)
    monkeypatch.setattr(machine, "unusable_gpu", lambda: None)
    assert outcome("driver").numbers["driver"] == "580.65.06"


def test_a_number_that_is_not_a_number_is_beyond_its_limit():
    numbers = {"a": math.nan, "b": 1.0, "c": 2.5}
    assert beyond(numbers, {"a": 1.0, "b": 1.0, "c": 2.0}) == [
        "a is nan, above 1", "c is 2.5, above 2"
    ]  # fmt: skip


# --- wrong devices ----------------------------------------------------------------------------


def test_a_conv3d_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch):
    right = kernels.torch_conv3d

    def wrong(pixels: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        scale = 1.2 if pixels.dtype == torch.bfloat16 else 1
        return scale * right(pixels, *rest, **options)

    monkeypatch.setattr(kernels, "torch_conv3d", wrong)
    found = outcome("conv3d")
    assert found.result == "failed"
    assert "conv3d bfloat16 output is 0.2" in found.message and "linear" not in found.message


@pytest.mark.parametrize("name", ["decode-attention", "span-attention"])
def test_attention_that_forgets_its_mask_fails(name: str, monkeypatch: pytest.MonkeyPatch):
    right = kernels.scaled_dot_product_attention

    def wrong(query: torch.Tensor, *rest: Any, attn_mask: Any = None) -> torch.Tensor:
        is_half = query.dtype == torch.bfloat16
        return right(query, *rest, attn_mask=None if is_half else attn_mask)

    monkeypatch.setattr(kernels, "scaled_dot_product_attention", wrong)
    found = outcome(name)
    assert found.result == "failed"
    # A row without padding is right.
    assert ("with a mask is off by" in found.message) == (name == "decode-attention")


def test_a_loss_with_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch):
    right = numerics.weighted_reverse_kl

    def wrong(hidden: torch.Tensor, head: torch.Tensor, *rest: Any) -> Any:
        loss, each = right(hidden, head.detach() + 0.01 * (head - head.detach()), *rest)
        return loss, each

    monkeypatch.setattr(numerics, "weighted_reverse_kl", wrong)
    found = outcome("objective")
    assert found.result == "failed"
    assert found.message.startswith("gradient of the head is 0.99")


def test_packing_that_changes_log_probs_fails(monkeypatch: pytest.MonkeyPatch):
    right = numerics.score_view

    def wrong(*given: Any, share_prefix: bool, **options: Any) -> Any:
        states, scores = right(*given, share_prefix=share_prefix, **options)
        return states, [values.roll(1) if share_prefix else values for values in scores]

    monkeypatch.setattr(numerics, "score_view", wrong)
    found = outcome("packed-logprobs")
    assert found.result == "failed"
    for name in ("mean difference is", "largest difference in float32 is", "rank agreement is"):
        assert name in found.message


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.25], ""),
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.26], "of step 3 is 0.25, and 0.26 after a resume"),
        ([1.0, 0.5, math.nan], [1.0, 0.5, math.nan], "is nan, and nan after a resume"),
        ([1.0, 0.25], [1.0, 0.5, 0.25], "2 and 3 of 3 steps were recorded"),
    ],
)
def test_a_run_that_continues_differently_fails(
    first: Sequence[float], second: Sequence[float], problem: str, monkeypatch: pytest.MonkeyPatch
):
    def train(config: Any, run: Path, resume: bool = False, **_: Any) -> None:
        run.mkdir(exist_ok=True)
        rows = (json.dumps({"loss": loss}) for loss in (second if resume else first))
        (run / "metrics.jsonl").write_text("\n".join(rows))

    monkeypatch.setattr(training, "train", train)
    found = outcome("quickstart")
    assert found.result == ("failed" if problem else "passed")
    assert problem in found.message


def test_an_environment_with_vllm_is_used_and_its_failure_names_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(PYTHON_VARIABLE, str(fake_python(tmp_path)))
    assert outcome("vllm-speed").numbers["rows"] == 16
    broken = fake_python(tmp_path, "echo no kernel image for this device; exit 3")
    monkeypatch.setenv(PYTHON_VARIABLE, str(broken))
    found = outcome("vllm-weights")
    assert found.result == "failed"
    assert found.message.endswith("its log ends with: no kernel image for this device")
