"""A teacher's service on a free port of this machine, answered by a thread of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvicorn

from vaopd.config import RunConfig, parse_config, parse_overrides
from vaopd.models.loading import VisionLanguageModel
from vaopd.teacher import servers
from vaopd.teacher.identity import describe_teacher
from vaopd.teacher.server import listen, make_app
from vaopd.teacher.wire import TeacherInfo

TOKEN = "a-token-of-the-tests"


def description(model: VisionLanguageModel, **changes: object) -> TeacherInfo:
    limit = changes.pop("max_request_bytes", 10_000_000)
    assert isinstance(limit, int)
    info = describe_teacher(model, quantization="none", max_request_bytes=limit)
    return info.model_copy(update=changes)


@dataclass
class Serving:
    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def serve_app(app: object) -> Serving:
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off")  # pyright: ignore
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    return Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", server, thread)


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
    monkeypatch.setattr(servers, "FIRST_WAIT_SECONDS", 0.01)


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
