"""A teacher's service on a free port of this machine, answered by a thread of this process."""

import threading
import time
from dataclasses import dataclass

import torch
import uvicorn
from safetensors.torch import load

from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.teacher.remote.identity import describe_teacher
from vaopd.teacher.remote.messages import RequestOptions, TeacherInfo, pack_request
from vaopd.teacher.remote.server import listen, make_app, server_config
from vaopd.teacher.teacher import Responses, TeacherScores

TOKEN = "a-token-of-the-tests"


class EchoTeacher:
    """Scores a token by its id: in no time, and so that every client can check its answer."""

    def __init__(self, model: VisionLanguageModel, **_: object) -> None:
        self.width = model.head.shape[1]

    def score(
        self, originals: object, degraded: object, responses: Responses, **_: object
    ) -> TeacherScores:
        rows = [row for siblings in responses for row in siblings]
        return TeacherScores(
            hidden=[torch.zeros(len(row), self.width) for row in rows],
            degraded_hidden=None,
            original_logprobs=[-row.float() for row in rows],
            degraded_logprobs=None,
            view_divergence=None,
        )


ECHO_OPTIONS = RequestOptions(
    with_degraded=False,
    with_hidden=True,
    with_divergence=False,
    with_degraded_hidden=False,
    hidden_dtype="float32",
    batch_tokens=100,
    share_prefix=True,
)


def echo_request(ids: list[int]) -> bytes:
    """Return a request to score one response to a prompt without an image."""
    prompt = EncodedPrompt(
        problem_id="p",
        input_ids=torch.arange(3),
        image_inputs={},
        position_ids=None,
        next_position=3,
    )
    return pack_request([prompt], None, [[torch.tensor(ids)]], ECHO_OPTIONS, "float32")


def is_echo(answer: bytes, ids: list[int]) -> bool:
    """Return whether an answer is that of an ``EchoTeacher`` to ``echo_request``."""
    return load(answer)["original_logprobs"].tolist() == [-float(one) for one in ids]


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
