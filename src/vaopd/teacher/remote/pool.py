"""Addresses of one service, used in turn; one that fails is replaced by the next."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import httpx2
import tenacity

from vaopd.errors import ConfigError, EngineError
from vaopd.teacher.remote.auth import TOKEN_VARIABLE
from vaopd.teacher.remote.tls import refused_certificate

Answer = TypeVar("Answer")

ROUNDS = 3
"""How often every address is tried before a request fails."""

FIRST_WAIT_SECONDS = 1.0
"""Between the first two rounds; doubled after each."""

REST_SECONDS = 30.0
"""For how long an address that failed is asked last."""

LONGEST_RETRY_SECONDS = 60
"""Of what a busy server asks to wait, at most."""

CONNECT_SECONDS = 10.0

OVERHEAD_BYTES = 1 << 20
"""Most bytes of an answer beside its tensors."""


class Unavailable(Exception):
    """A failure of one address; another address, or a later attempt, may succeed."""


class Busy(Unavailable):
    """A server has too many requests, and says when to ask again."""

    def __init__(self, text: str, retry_seconds: int) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


@dataclass(frozen=True)
class Question:
    """A request, and how large its answer may be."""

    method: str
    path: str
    body: bytes | None = None
    most_bytes: int = OVERHEAD_BYTES


class Address:
    """One server: its connections, and when it last failed."""

    def __init__(
        self, url: str, token: str, timeout_seconds: float, verify: ssl.SSLContext | bool = True
    ) -> None:
        """Prepare the connections.

        Raises:
            ConfigError: The address cannot be one.
        """
        self.url = url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.failed_at = -REST_SECONDS
        try:
            self.http = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
                timeout=httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
                verify=verify,
                # A proxy named in the environment is for the internet and would see the token.
                trust_env=False,
                # The token must not go to another address.
                follow_redirects=False,
            )
        except httpx2.InvalidURL as error:
            raise ConfigError(
                f"teacher.addresses has {url!r}, which is not an address ({error}); write it as "
                "https://HOST:PORT"
            ) from None

    @property
    def is_resting(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() - self.failed_at < REST_SECONDS

    def ask(self, question: "Question") -> bytes:
        """Return the body of an answer.

        Raises:
            Unavailable: No answer, or a fault of the server; ``Busy`` if it has too many requests.
            EngineError: The server refuses; other servers would refuse the request too. Or its
                certificate is not the one to trust.
        """
        try:
            with self.http.stream(
                question.method, question.path, content=question.body
            ) as response:
                answer = self._read(response, question)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"no answer in time, {type(error).__name__}") from None
        except httpx2.HTTPError as error:
            if reason := refused_certificate(error):
                raise EngineError(
                    f"the certificate of {self.url} is refused ({reason}); set teacher.ca_file to "
                    "the certificate that issued it, or correct teacher.addresses"
                ) from None
            raise Unavailable(f"{type(error).__name__}: {error}") from None
        self._check_status(response, answer)
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

    def _check_status(self, response: httpx2.Response, answer: bytes) -> None:
        status = response.status_code
        if status == 401:
            raise EngineError(
                f"the teacher at {self.url} refuses the token; set {TOKEN_VARIABLE} to the one "
                "that its server was given or printed"
            )
        if status == 503 and (seconds := response.headers.get("retry-after", "")).isdecimal():
            raise Busy(_detail(answer), min(max(1, int(seconds[:9])), LONGEST_RETRY_SECONDS))
        if 300 <= status < 400:
            raise EngineError(
                f"the teacher at {self.url} redirects to another address (status {status}), which "
                "must not get the token; name the server itself in teacher.addresses"
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

    def __init__(
        self,
        urls: Sequence[str],
        token: str,
        timeout_seconds: float,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self.addresses = [Address(url, token, timeout_seconds, verify) for url in urls]
        self.timeout_seconds = timeout_seconds
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
        most = ROUNDS * count
        rotated = [self.addresses[(turn + n) % count] for n in range(count)]
        turns = cycle(sorted(rotated, key=lambda address: address.is_resting))
        reasons: dict[str, str] = {}
        busy: dict[str, int] = {}
        deadline = time.monotonic() + self.timeout_seconds

        def once() -> Answer:
            address = next(turns)
            busy.pop(address.url, None)
            try:
                answer = read(address.ask(question))
            except Busy as error:
                busy[address.url] = error.retry_seconds
                reasons[address.url] = str(error)
                raise
            except (Unavailable, ValueError) as error:
                address.failed_at = time.monotonic()
                reasons[address.url] = str(error)
                raise Unavailable from error
            address.failed_at = -REST_SECONDS
            return answer

        def is_over(state: tenacity.RetryCallState) -> bool:
            # A busy server is there: it is asked for as long as an answer may take.
            has_tried = time.monotonic() > deadline if busy else state.attempt_number >= most
            return has_tried or self.stopped.is_set()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=is_over,
            wait=lambda state: _wait(state.attempt_number, count, busy),
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


def _wait(attempt: int, count: int, busy: dict[str, int]) -> float:
    """Return no wait for the next address of a round, a growing one before the next round.

    Where servers are busy, the next round begins when one of them wants it.
    """
    rounds, others = divmod(attempt, count)
    if others:
        return 0.0
    return float(min(busy.values())) if busy else FIRST_WAIT_SECONDS * 2 ** (rounds - 1)


def _detail(answer: bytes) -> str:
    try:
        text = str(json.loads(answer)["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = answer.decode(errors="replace")
    # A hostile server could otherwise write to the terminal of the trainer.
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:4000])
    return " ".join(plain.split())[:400] or "no text"
