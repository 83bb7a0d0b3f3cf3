"""A teacher's service on a free port of this machine, answered by a thread of this process."""

import threading
import time
from dataclasses import dataclass

import uvicorn

from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.remote.identity import describe_teacher
from vaopd.teacher.remote.messages import TeacherInfo
from vaopd.teacher.remote.server import listen, make_app, server_config

TOKEN = "a-token-of-the-tests"


@dataclass
class Serving:
    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def serve_model(model: VisionLanguageModel, token: str = TOKEN, **changes: object) -> Serving:
    """Serve a model; its description may be made to lie."""
    return serve_app(make_app(model, description(model, **changes), token))


def serve_app(app: object, **options: object) -> Serving:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, log_level="critical", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    scheme = "https" if options.get("ssl_certfile") else "http"
    return Serving(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", server, thread)


def description(model: VisionLanguageModel, **changes: object) -> TeacherInfo:
    limit = changes.pop("max_request_bytes", 10_000_000)
    assert isinstance(limit, int)
    info = describe_teacher(model, quantization="none", max_request_bytes=limit)
    return info.model_copy(update=changes)
