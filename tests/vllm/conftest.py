"""A real vLLM; ``make test-vllm`` builds its environment and names it."""

import os

import pytest

from vaopd.rollouts.vllm.server import PYTHON_VARIABLE

# Threads bound to cores wait for each other where the cores are shared with other work.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get(PYTHON_VARIABLE):
        reason = f"{PYTHON_VARIABLE} names no environment with vLLM; make test-vllm builds one"
        for item in items:
            if item.path.parent.name == "vllm":
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure() -> None:
    # Everybody below is started by a test and inherits this.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
