"""The checks of a new card that need a real vLLM."""

import pytest
import torch
from rich.console import Console

from vaopd.doctor.bring_up.runner import choose_checks, run_checks

pytestmark = pytest.mark.slow


def test_vllm_is_timed_and_follows_the_weights():
    checks = choose_checks("vllm-speed,vllm-weights")
    speed, weights = run_checks(checks, torch.device("cpu"), Console(quiet=True))
    assert (speed.result, weights.result) == ("passed", "passed"), weights.message
    assert speed.numbers["tokens"] > 500
    # Log-probs of old weights would be far away.
    assert weights.numbers["after a sleep"] < 1e-3 < 0.1 < weights.numbers["old weights"]
