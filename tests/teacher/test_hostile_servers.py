"""Answers of a wrong or hostile server: each is named, and none is used."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI, Request, Response
from safetensors.torch import load, save

from vaopd.errors import EngineError
from vaopd.models.loading import load_model
from vaopd.teacher.remote import pool
from vaopd.teacher.remote.identity import describe_teacher
from vaopd.teacher.remote.messages import (
    RequestOptions,
    TeacherInfo,
    pack_head,
    pack_scores,
    unpack_head,
    unpack_scores,
)
from vaopd.teacher.remote.pool import Address, Question, TeacherServers, Unavailable
from vaopd.teacher.teacher import TeacherScores

CPU = torch.device("cpu")
OPTIONS = RequestOptions(
    with_degraded=True,
    with_hidden=True,
    with_divergence=False,
    with_degraded_hidden=False,
    hidden_dtype="float32",
    batch_tokens=100,
    share_prefix=True,
)
LENGTHS = [2, 1]


@pytest.fixture(scope="module")
def info() -> TeacherInfo:
    model = load_model(
        "tiny:new-teacher-s", device=CPU, dtype=torch.float32, compute_dtype=torch.float32
    )
    return describe_teacher(model, quantization="none", max_request_bytes=1000)


@pytest.fixture
def answer(info: TeacherInfo) -> bytes:
    scores = TeacherScores(
        hidden=[torch.zeros(n, info.hidden_size) for n in LENGTHS],
        degraded_hidden=None,
        original_logprobs=[-torch.ones(n) for n in LENGTHS],
        degraded_logprobs=[-torch.ones(n) for n in LENGTHS],
        view_divergence=None,
    )
    return pack_scores(scores, info.fingerprint, "float32")


def test_the_answer_of_these_tests_is_a_good_one(answer: bytes, info: TeacherInfo):
    assert len(unpack_scores(answer, LENGTHS, OPTIONS, info).original_logprobs) == 2


Edit = Callable[[torch.Tensor], torch.Tensor | None]


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("hidden", lambda t: t / 0, "an answer whose hidden are NaN or infinite"),
        ("hidden", lambda t: t + torch.inf, "an answer whose hidden are NaN or infinite"),
        ("hidden", lambda t: t.int(), r"an answer whose hidden are of type torch\.int32"),
        ("hidden", lambda t: t[:-1], r"an answer without hidden of shape \(3, 112\)"),
        ("hidden", lambda t: t[:, :-1], r"an answer without hidden of shape \(3, 112\)"),
        ("hidden", lambda t: None, r"an answer without hidden of shape \(3, 112\)"),
        ("original_logprobs", lambda t: t * torch.nan, "original_logprobs are NaN or infinite"),
        ("original_logprobs", lambda t: -t, "original_logprobs are above 0"),
        ("original_logprobs", lambda t: t[None], r"without original_logprobs of shape \(3,\)"),
        ("degraded_logprobs", lambda t: t - torch.inf, "degraded_logprobs are NaN or infinite"),
        ("degraded_logprobs", lambda t: None, r"without degraded_logprobs of shape \(3,\)"),
    ],
)
def test_scores_that_no_teacher_gives_are_named(
    answer: bytes, info: TeacherInfo, name: str, edit: Edit, sentence: str
):
    tensors: dict[str, Any] = load(answer)
    tensors[name] = edit(tensors[name])
    kept = {key: value.contiguous() for key, value in tensors.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        unpack_scores(save(kept, {"fingerprint": info.fingerprint}), LENGTHS, OPTIONS, info)


def test_half_an_answer_is_not_an_answer(answer: bytes, info: TeacherInfo):
    for cut in (0, 7, 8, 100, len(answer) // 2, len(answer) - 1):
        with pytest.raises(ValueError, match="an answer that is not a safetensors file"):
            unpack_scores(answer[:cut], LENGTHS, OPTIONS, info)


def test_an_answer_of_other_weights_is_refused(answer: bytes, info: TeacherInfo):
    other = info.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(EngineError, match="an answer comes from another teacher than the 'tiny:"):
        unpack_scores(answer, LENGTHS, OPTIONS, other)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (
            lambda v, h: torch.zeros(v, h + 1),
            r"a head of shape \(640, 113\) for 640 ids and hidden",
        ),
        (
            lambda v, h: torch.zeros(v - 1, h),
            r"a head of shape \(639, 112\) for 640 ids and hidden",
        ),
        (lambda v, h: torch.zeros(v), r"a head of shape \(640,\) for 640 ids and hidden states of"),
        (lambda v, h: torch.full((v, h), torch.nan), "an answer whose head are NaN or infinite"),
        (
            lambda v, h: torch.zeros(v, h, dtype=torch.int8),
            "an answer whose head are of type",
        ),
    ],
)
def test_a_head_that_does_not_fit_its_description_is_named(
    info: TeacherInfo, head: Callable[[int, int], torch.Tensor], sentence: str
):
    body = save({"head": head(info.vocabulary_size, info.hidden_size)})
    with pytest.raises(ValueError, match=sentence):
        unpack_head(body, info)


def test_a_head_may_have_rows_beyond_the_tokenizer(info: TeacherInfo):
    head = torch.randn(info.vocabulary_size + 24, info.hidden_size)
    assert unpack_head(pack_head(head), info).equal(head)


def address(answer: Callable[[httpx2.Request], httpx2.Response], seconds: float = 60.0) -> Address:
    one = Address("http://teacher", "token", seconds)
    one.http = httpx2.Client(base_url=one.url, transport=httpx2.MockTransport(answer))
    return one


def endless(chunk: bytes, sent: list[int]) -> Iterator[bytes]:
    while True:
        sent.append(len(chunk))
        yield chunk


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_an_endless_answer_ends_at_its_limit(status: int):
    sent: list[int] = []
    one = address(lambda request: httpx2.Response(status, content=endless(bytes(2**18), sent)))
    with pytest.raises(Unavailable, match="an answer of more than 1048576 bytes"):
        one.ask(Question("GET", "/model"))
    assert sum(sent) <= 2**20 + 2**18


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_token_does_not_follow_a_redirect(serve_plain: Callable, status: int, method: str):
    seen: list[str | None] = []
    thief, server = FastAPI(), FastAPI()

    @thief.api_route("/{path:path}", methods=["GET", "POST"])
    def takes(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return Response()

    other = serve_plain(thief).url

    @server.api_route("/{path:path}", methods=["GET", "POST"])
    def redirects() -> Response:
        return Response(status_code=status, headers={"Location": f"{other}/model"})

    one = Address(serve_plain(server).url, "token", 60.0)
    with pytest.raises(EngineError, match=rf"redirects to another address \(status {status}\), wh"):
        one.ask(Question(method, "/score", b"body" if method == "POST" else None))
    one.http.close()
    assert seen == []


def said_by_socket(answer: bytes) -> str:
    """Return why a client refuses what a server sends before it closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):  # the client may have read enough
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        one = Address(f"http://127.0.0.1:{listener.getsockname()[1]}", "token", 60.0)
        with pytest.raises(Unavailable) as caught:
            one.ask(Question("GET", "/model"))
        thread.join()
        one.http.close()
    return str(caught.value)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "RemoteProtocolError: Server disconnected"),
        (b"HTTP/1.1 2", "RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "RemoteProtocolError"),
        (OK + b"Content-Length: 100\r\n\r\nhalf", "RemoteProtocolError: peer closed"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf", "RemoteProtocolError: peer closed"),
        (OK + b"X: " + b"x" * 2_000_000, "RemoteProtocolError"),
        (OK + b"Content-Length: -1\r\n\r\n", "RemoteProtocolError"),
    ],
    ids=range(7),
)
def test_half_an_answer_of_http_may_be_asked_for_again(answer: bytes, reason: str):
    said = said_by_socket(answer)
    assert said.startswith(reason) and len(said) < 300


def test_an_answer_that_would_unpack_itself_stays_packed():
    bomb = gzip.compress(bytes(50_000_000))
    headers = {"Content-Encoding": "gzip"}
    stream = httpx2.ByteStream(bomb)
    one = address(lambda request: httpx2.Response(200, headers=headers, stream=stream))
    assert one.ask(Question("GET", "/model")) == bomb


def test_an_answer_that_drips_ends_in_time(monkeypatch: pytest.MonkeyPatch):
    now = iter(range(1000))
    one = address(lambda request: httpx2.Response(200, content=endless(b".", [])), 9.0)
    monkeypatch.setattr(pool.time, "monotonic", lambda: float(next(now)))
    with pytest.raises(Unavailable, match="no whole answer in 9 s"):
        one.ask(Question("GET", "/model"))


def test_what_a_hostile_server_says_cannot_write_to_the_terminal():
    text = '{"detail": "\\u001b[2Jcleared\\nerror: all is well\\u202e"}'
    stream = httpx2.ByteStream(text.encode())
    one = address(lambda request: httpx2.Response(400, stream=stream))
    with pytest.raises(EngineError) as caught:
        one.ask(Question("GET", "/model"))
    assert str(caught.value).endswith("(status 400): [2Jcleared error: all is well")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"detail": ' * 9999, b"\xff\x00", b"", b"[]"])
def test_a_refusal_of_any_bytes_is_one_sentence(body: bytes):
    one = address(lambda request: httpx2.Response(400, stream=httpx2.ByteStream(body)))
    with pytest.raises(EngineError) as caught:
        one.ask(Question("GET", "/model"))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_every_address_that_answers_nonsense_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "FIRST_WAIT_SECONDS", 0.001)
    servers = TeacherServers(["http://one", "http://two"], "token", 60.0)
    stream = httpx2.ByteStream(b"nonsense")
    for one in servers.addresses:
        one.http = httpx2.Client(
            base_url=one.url,
            transport=httpx2.MockTransport(lambda request: httpx2.Response(200, stream=stream)),
        )

    def read(body: bytes) -> None:
        raise ValueError(f"an answer of {len(body)} bytes that says nothing")

    with pytest.raises(EngineError) as caught:
        servers.ask(0, Question("GET", "/head"), read)
    reason = "(an answer of 8 bytes that says nothing)"
    assert f"no teacher answers: http://one {reason}; http://two {reason};" in str(caught.value)
