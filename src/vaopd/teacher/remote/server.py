"""The service of ``vaopd serve-teacher``, which answers with scores and hidden states.

Requests are computed one at a time in a separate thread, so that the event loop always answers.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from starlette.requests import ClientDisconnect
from torch import Tensor

from vaopd.errors import EngineError, VaopdError
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.remote.connections import BinaryAnswer, LimitedConnection
from vaopd.teacher.remote.messages import (
    ScoreRequest,
    TeacherInfo,
    pack_head,
    pack_scores,
    unpack_request,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ADMITTED = 2
"""Requests in memory: one is computed while the next one arrives; others are not read yet."""

MAX_WAITING = 128
"""Requests that wait unread for their turn; further ones are asked to come again."""

RETRY_SECONDS = 2

ANSWERS = 4
"""Answers in memory: they are kept until their clients have read them."""

READ_SECONDS = 300.0
"""Limit for the arrival of a request; a slower one would block the others."""

GRACE_SECONDS = 30.0
"""After that a request that arrives more slowly than ``MIN_BYTES_PER_SECOND`` is refused."""

MIN_BYTES_PER_SECOND = 100_000


class Refusal(HTTPException):
    """The answer to a request that is refused: a status and one sentence."""


class Meters:
    """The counters that /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vaopd_teacher_{name}", text, labels, registry=self.registry)

        self.requests = counter("requests", "Requests to score.")
        self.errors = counter("errors", "Requests to score that failed, by status.", "status")
        self.tokens = counter("tokens", "Response tokens scored.")
        self.seconds = counter("seconds", "Seconds of computing.")
        self.received = counter("received_bytes", "Bytes of requests to score.")
        self.sent = counter("sent_bytes", "Bytes of scores.")


class Service:
    """A model, the thread that computes its requests, and its counters."""

    def __init__(self, model: VisionLanguageModel, info: TeacherInfo) -> None:
        self.model = model
        self.info = info
        self.meters = Meters()
        self.admission = asyncio.Semaphore(ADMITTED)
        self.answers = asyncio.Semaphore(ANSWERS)
        self.waiting = 0
        self.device = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    async def score(self, request: Request) -> Response:
        """Return the scores of one request."""
        self.meters.requests.inc()
        try:
            await self._wait_for(self.admission)
            try:
                body = await self._body(request)
                if await request.is_disconnected():  # the client may not have waited
                    raise Refusal(400, "the client went away")
                answer = await self._answer(self._computed, body)
            finally:
                self.admission.release()
        except HTTPException as refusal:
            self.meters.errors.labels(refusal.status_code).inc()
            raise
        self.meters.sent.inc(len(answer.body))
        return answer

    async def head(self) -> Response:
        """Return the weights of the language-model head."""
        return await self._answer(pack_head, self.model.head)

    async def _wait_for(self, turn: asyncio.Semaphore) -> None:
        """Wait for a turn.

        Raises:
            Refusal: Too many requests wait already.
        """
        if turn.locked() and self.waiting >= MAX_WAITING:
            sentence = f"{self.waiting} requests wait already; come again, or start more servers"
            raise Refusal(503, sentence, {"Retry-After": str(RETRY_SECONDS)})
        self.waiting += 1
        try:
            await turn.acquire()
        finally:
            self.waiting -= 1

    async def _answer(self, compute: Callable[[T], bytes], argument: T) -> BinaryAnswer:
        """Return the bytes that the thread of the device computes, when there is room for them."""
        await self._wait_for(self.answers)
        try:
            content = await asyncio.get_running_loop().run_in_executor(
                self.device, compute, argument
            )
        except BaseException:
            self.answers.release()
            raise
        return BinaryAnswer(content, self.answers.release)

    async def _body(self, request: Request) -> bytes:
        limit = self.info.max_request_bytes
        sentence = (
            f"the request is over {limit / 1e6:.1f} MB; raise --max-request-mb of the server or "
            "lower teacher.batch_tokens"
        )
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            raise Refusal(413, sentence)
        body = bytearray()
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(GRACE_SECONDS) as timeout:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise Refusal(413, sentence)
                    allowed = GRACE_SECONDS + len(body) / MIN_BYTES_PER_SECOND
                    timeout.reschedule(start + min(allowed, READ_SECONDS))
        except ClientDisconnect:
            raise Refusal(400, "the client went away") from None
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - start
            raise Refusal(408, f"the request did not arrive in {seconds:.0f} s") from None
        self.meters.received.inc(len(body))
        return bytes(body)

    def _computed(self, body: bytes) -> bytes:
        """Return the scores for a request's body; runs in the thread of the device."""
        started = time.perf_counter()
        try:
            request = unpack_request(body)
            check_ids(request, self.model.head)
            options = request.options
            teacher = LocalTeacher(
                self.model, batch_tokens=options.batch_tokens, share_prefix=options.share_prefix
            )
            scores = teacher.score(
                request.originals,
                request.degraded,
                request.responses,
                with_hidden=options.with_hidden,
                with_divergence=options.with_divergence,
                with_degraded_hidden=options.with_degraded_hidden,
            )
            packed = pack_scores(scores, self.info.fingerprint, options.hidden_dtype)
        except VaopdError as error:
            raise Refusal(400, str(error)) from None
        except torch.OutOfMemoryError:
            logger.exception("a request did not fit into memory")
            raise Refusal(
                507, "the request does not fit into memory; lower teacher.batch_tokens"
            ) from None
        except Exception as error:
            # Texts of other errors may hold paths of this machine.
            logger.exception("a request failed")
            raise Refusal(
                500, f"scoring failed ({type(error).__name__}); the server's log has the reason"
            ) from None
        self.meters.tokens.inc(sum(len(row) for row in scores.original_logprobs))
        self.meters.seconds.inc(time.perf_counter() - started)
        return packed


def check_ids(request: ScoreRequest, head: Tensor) -> None:
    """Check that every id has a row in the head; on a GPU a wrong id ends the process.

    Raises:
        EngineError: Names the problem.
    """
    for prompt, siblings in zip(request.originals, request.responses, strict=True):
        ids = torch.cat([prompt.input_ids, *siblings])
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(head):
            raise EngineError(
                f"problem {prompt.problem_id} has ids from {int(ids.min())} to {int(ids.max())}, "
                f"but the teacher has ids from 0 to {len(head) - 1}; use models of one tokenizer"
            )


def make_app(model: VisionLanguageModel, info: TeacherInfo, token: str) -> FastAPI:
    """Return the service as an ASGI application; all paths except /health need the token."""
    service = Service(model, info)
    expected = f"Bearer {token}".encode()

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, expected):
            raise Refusal(
                401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    app = FastAPI(title="vaopd teacher", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = APIRouter(dependencies=[Depends(authorised)])

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @guarded.get("/model")
    async def describe() -> TeacherInfo:
        return info

    @guarded.get("/metrics")
    async def metrics() -> Response:
        text = generate_latest(service.meters.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    guarded.add_api_route("/head", service.head, methods=["GET"])
    guarded.add_api_route("/score", service.score, methods=["POST"])
    app.include_router(guarded)
    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; called before a model is loaded, which takes minutes.

    Raises:
        EngineError: The port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # create_server adds the address to the system's text, which a failed look-up does not have.
        code = error.errno or 0
        reason = os.strerror(code) if code > 0 else error.strerror
        raise EngineError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        ) from None


def run_server(
    app: FastAPI, listener: socket.socket, certificate: Path | None = None, key: Path | None = None
) -> None:
    """Answer requests until the process gets a signal to stop; with a certificate, by TLS."""
    uvicorn.Server(server_config(app, ssl_certfile=certificate, ssl_keyfile=key)).run(
        sockets=[listener]
    )


def server_config(app: Any, **options: Any) -> uvicorn.Config:
    """Return how uvicorn runs the service."""
    settings: dict[str, Any] = {
        "http": LimitedConnection,
        "ws": "none",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 30,
        "lifespan": "off",
    }
    return uvicorn.Config(app, **(settings | options))
