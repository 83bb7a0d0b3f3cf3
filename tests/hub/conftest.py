"""A finished tiny run, and a stand-in for the hub that the library talks to."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import constants
from rich.console import Console

from vaopd.config import RunConfig, parse_config
from vaopd.training.run import train


def recipe(**training: object) -> RunConfig:
    values = {"max_steps": 1, "problems_per_step": 2, "device": "cpu", **training}
    return parse_config(
        {
            "student": {"model": "tiny:student"},
            "teacher": {"model": "tiny:teacher-s"},
            "data": {
                "train": "drawn:train?count=4&kinds=number",
                "validation": "drawn:validation?count=6",
                "min_pixels": 1024,
            },
            "method": {"name": "sft"},
            "sampling": {"max_new_tokens": 60},
            "validation": {"num_samples": 1, "temperature": 0.0},
            "training": values,
        }
    )


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., RunConfig]:
    """Return a recipe of one step, by the keys of its section ``training``."""
    return recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which tests copy before they change it."""
    output = tmp_path_factory.mktemp("hub") / "run"
    return train(recipe(), output, console=Console(file=io.StringIO())).output


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty hub with a token in the environment; waits between retries are left out."""
    server = HubServer()
    server.start()
    for name, value in (
        ("ENDPOINT", server.url),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_TOKEN_PATH", str(tmp_path / "no-token")),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield server
    server.stop()
