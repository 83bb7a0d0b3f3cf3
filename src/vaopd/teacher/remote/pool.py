"""Addresses of one service, used in turn; one that fails is replaced by the next."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import httpx2
import tenacity

from vaopd.errors import EngineError
from vaopd.teacher.remote.auth import TOKEN_VARIABLE

Answer = TypeVar("Answer")

ROUNDS = 3
"""How often every address is tried before a request fails."""

FIRST_WAIT_SECONDS = 1.0
"""Between the first two rounds; doubled after each."""

REST_SECONDS = 30.0
"""For how long an address that failed is asked last."""

CONNECT_SECONDS = 10.0

OVERHEAD_BYTES = 1 << 20
"""Most bytes of an answer beside its tensors."""


class Unavailable(Exception):
    """A failure of one address; another address, or a later attempt, may succeed."""


@dataclass(frozen=True)
class Question:
    """A request, and how large its answer may be."""

    method: str
    path: str
    body: bytes | None = None
    most_bytes: int = OVERHEAD_BYTES


class Address:
    """One server: its connections, and when it last failed."""

    def __init__(self, url: str, token: str, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.failed_at = -REST_SECONDS
        self.http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
            # A proxy named in the environment is for the internet and would see the token.
            trust_env=False,
        )

    @property
    def is_resting(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() - self.failed_at < REST_SECONDS

    def ask(self, question: "Question") -> bytes:
        """Return the body of an answer.

        Raises:
            Unavailable: No answer, or a fault of the server.
            EngineError: The server refuses; other servers would refuse the request too.
        """
        try:
            with self.http.stream(
                question.method, question.path, content=question.body
            ) as response:
                answer = self._read(response, question)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"no answer in time, {type(error).__name__}") from None
        except httpx2.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from None
        self._check_status(response.status_code, answer)
        return answer

    def _read(self, response: httpx2.Response, question: "Question") -> bytes:
        """Return the body of a response; it may be neither endless nor sent for ever."""
        deadline = time.monotonic() + self.timeout_seconds
        limit = question.most_bytes if response.status_code == 200 else OVERHEAD_BYTES
        body = bytearray()
        # Raw: an answer that unpacks itself could be of any size.
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                raise Unavailable(f"an answer of more than {limit} bytes")
            if time.monotonic() > deadline:
                raise Unavailable(f"no whole answer in {self.timeout_seconds:.0f} s")
        return bytes(body)

    def _check_status(self, status: int, answer: bytes) -> None:
        if status == 401:
            raise EngineError(
                f"the teacher at {self.url} refuses the token; set {TOKEN_VARIABLE} to the one "
                "that its server was given or printed"
            )
        if status in (408, 425, 429) or (status >= 500 and status != 507):
            raise Unavailable(f"status {status}: {_detail(answer)}")
        if status != 200:
            raise EngineError(
                f"the teacher at {self.url} refuses the request (status {status}): "
                f"{_detail(answer)}"
            )


class TeacherServers:
    """Several addresses of one service."""

    def __init__(self, urls: Sequence[str], token: str, timeout_seconds: float) -> None:
        self.addresses = [Address(url, token, timeout_seconds) for url in urls]
        self.stopped = threading.Event()

    def ask(self, turn: int, question: Question, read: Callable[[bytes], Answer]) -> Answer:
        """Return the result of ``read`` for the first answer of an address.

        Args:
            turn: Number of the address that is asked first, modulo their number.
            question: The request.
            read: Raises ``ValueError`` for an invalid answer.

        Raises:
            EngineError: No address answers, or one refuses.
        """
        count = len(self.addresses)
        rotated = [self.addresses[(turn + n) % count] for n in range(count)]
        order = sorted(rotated, key=lambda address: address.is_resting)
        turns = iter(order * ROUNDS)
        reasons: dict[str, str] = {}

        def once() -> Answer:
            address = next(turns)
            try:
                answer = read(address.ask(question))
            except (Unavailable, ValueError) as error:
                address.failed_at = time.monotonic()
                reasons[address.url] = str(error)
                raise Unavailable from error
            address.failed_at = -REST_SECONDS
            return answer

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(ROUNDS * count),
                tenacity.stop_when_event_set(self.stopped),
            ),
            wait=lambda state: _wait(state.attempt_number, count),
            sleep=tenacity.sleep_using_event(self.stopped),
            reraise=True,
        )
        try:
            return retrying(once)
        except Unavailable:
            raise nobody_answers(reasons) from None

    def close(self) -> None:
        """Close all connections; requests that wait for another attempt fail."""
        self.stopped.set()
        for address in self.addresses:
            address.http.close()


def nobody_answers(reasons: dict[str, str]) -> EngineError:
    """Return the error that names the reason of every address."""
    listed = "; ".join(f"{url} ({reason})" for url, reason in reasons.items())
    return EngineError(
        f"no teacher answers: {listed}; start vaopd serve-teacher there again and go on with "
        "--resume"
    )


def _wait(attempt: int, count: int) -> float:
    """Return no wait for the next address of a round, a growing one before the next round."""
    rounds, others = divmod(attempt, count)
    return 0.0 if others else FIRST_WAIT_SECONDS * 2 ** (rounds - 1)


def _detail(answer: bytes) -> str:
    try:
        text = str(json.loads(answer)["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = answer.decode(errors="replace")
    # A hostile server could otherwise write to the terminal of the trainer.
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:4000])
    return " ".join(plain.split())[:400] or "no text"
