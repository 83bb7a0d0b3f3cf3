"""A run says which keys it does not read, and these change no bit of it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vaopd.training.run import train
from vaopd.unread import unread_line

ALWAYS = ("teacher.timeout_seconds=5", "teacher.transfer_dtype=bfloat16",
          "student.lora.alpha=3", "student.lora.vision=full", "sampling.vllm.sleep=true",
          "validation.temperature=0.5", "validation.pixelated=true", "validation.num_samples=3",
          "training.validate_every=1")  # fmt: skip
SCORES_NOTHING = ("teacher.batch_tokens=9", "teacher.park_hidden=true")
ONE_VIEW = ("view.name=blur", "view.ratio=0.7", "view.stage=native")


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("va_opd", ALWAYS),
        ("opd", (*ALWAYS, *ONE_VIEW)),
        ("off_policy_kd", (*ALWAYS, *ONE_VIEW, *SCORES_NOTHING)),
        (
            "sft",
            (*ALWAYS, *ONE_VIEW, *SCORES_NOTHING, "teacher.model=no/such-model",
             "teacher.cache_vision_mb=3", "sampling.num_rollouts=2", "sampling.temperature=0.1",
             "sampling.top_p=0.1", "sampling.max_new_tokens=3", "sampling.engine=vllm",
             "sampling.batch_tokens=3", "training.log_rollouts_every=1"),
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_said_and_changes_no_bit(
    make_config: Callable, tmp_path: Path, method: str, overrides: tuple[str, ...]
):
    base = ("training.max_steps=1", f"method.name={method}")
    config = make_config(*base, *overrides)
    line = unread_line(config)
    assert line is not None
    for override in overrides:
        assert override.partition("=")[0] in line
    console = Console(file=io.StringIO(), width=80)
    train(config, tmp_path / "changed", console=console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[1] == line
    train(make_config(*base), tmp_path / "plain", console=Console(file=io.StringIO()))
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes()
               for name in ("changed", "plain")]  # fmt: skip
    assert weights[0] == weights[1]
