"""Services of teachers that end with the test, and the recipes that name them."""

from collections.abc import Callable, Iterator

import pytest
from tests.teacher_service import TOKEN, Serving, description, serve_app

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.remote import pool
from vaopd.teacher.remote.server import make_app


@pytest.fixture
def serve_plain() -> Iterator[Callable[[object], Serving]]:
    """Start any application."""
    running: list[Serving] = []

    def start(app: object) -> Serving:
        running.append(serve_app(app))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def serve(serve_plain: Callable) -> Callable[..., Serving]:
    """Start the service of a model; its description may be made to lie."""

    def start(model: VisionLanguageModel, token: str = TOKEN, **changes: object) -> Serving:
        return serve_plain(make_app(model, description(model, **changes), token))

    return start


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between the rounds of attempts."""
    monkeypatch.setattr(pool, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VAOPD_TEACHER_TOKEN", TOKEN)
    return TOKEN


@pytest.fixture
def recipe() -> Callable[..., RunConfig]:
    """Return the recipe of a teacher at some addresses."""

    def make(*addresses: str, **teacher: object) -> RunConfig:
        values = {
            "student": {"model": "tiny:new-student"},
            "teacher": {"model": "tiny:new-teacher-s", "addresses": list(addresses), **teacher},
            "data": {"train": "drawn:train", "min_pixels": 1024, "max_pixels": 1048576},
        }
        return parse_config(parse_overrides([], values))

    return make
