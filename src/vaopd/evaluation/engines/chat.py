"""Requests to a server that speaks the OpenAI chat protocol: retries, tokens, cost."""

import threading
from dataclasses import dataclass
from typing import Any

import httpx2
import tenacity

from vaopd.errors import ConfigError, EngineError

MAX_ATTEMPTS = 6
_PASSING_STATUS = (408, 409, 425, 429)
"""Status codes below 500 after which the same request may succeed."""


@dataclass(frozen=True)
class Reply:
    """One completion."""

    text: str
    finish_reason: str
    """``stop``, ``length`` or ``refused``."""

    prompt_tokens: int | None
    response_tokens: int | None
    """``None`` for one of several choices of which the server does not count the tokens."""

    reasoning: str | None = None
    """The reasoning, from a server that separates it from the answer."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Address, model and prices of a server."""

    base_url: str
    """Address, such as ``http://localhost:8000/v1``."""

    api_key: str = ""
    timeout_seconds: float = 600.0
    first_wait_seconds: float = 1.0
    """Seconds before the second attempt; doubled each time, up to one minute."""

    price_input: float | None = None
    """Price of a million prompt tokens, in the currency of the bill."""

    price_output: float | None = None

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base URL {self.base_url!r} is not an address; write for example "
                "http://localhost:8000/v1"
            )


class _Passing(Exception):
    """A temporary failure: connection, time-out, rate limit, or an error of the server."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ChatClient:
    """Sends requests from several threads and counts their tokens."""

    def __init__(self, server: Server) -> None:
        self.server = server
        headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        self.http = httpx2.Client(
            base_url=server.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=server.timeout_seconds,
            limits=httpx2.Limits(max_connections=None),
        )
        self.lock = threading.Lock()
        self.prompt_tokens = self.response_tokens = self.requests = self.retries = 0
        self.stopped = threading.Event()

    def close(self) -> None:
        """Close the connections; requests that wait for another attempt stop."""
        self.stopped.set()
        self.http.close()

    def complete(self, payload: dict[str, Any]) -> Reply:
        """Return the completion of one request; see ``complete_all``."""
        return self.complete_all(payload)[0]

    def complete_all(self, payload: dict[str, Any]) -> list[Reply]:
        """Return the ``n`` (or 1) choices of one request; temporary failures are tried again.

        Raises:
            EngineError: The server refuses the request, or every attempt failed.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(MAX_ATTEMPTS),
                tenacity.stop_when_event_set(self.stopped),
            ),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self.stopped),
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return retrying(self._once, payload)
        except _Passing as error:
            raise EngineError(
                f"the server {self.server.base_url} failed {MAX_ATTEMPTS} times, last with "
                f"{error}; check it and give the same command again, which goes on from here"
            ) from None

    def cost(self) -> float | None:
        """Return the cost of all tokens until now; ``None`` without prices."""
        server = self.server
        if server.price_input is None and server.price_output is None:
            return None
        paid_in = self.prompt_tokens * (server.price_input or 0)
        return (paid_in + self.response_tokens * (server.price_output or 0)) / 1e6

    def summary(self) -> str:
        """Return the number of requests and tokens, and the cost, in one sentence."""
        cost = self.cost()
        price = "" if cost is None else f", cost {cost:.4f}"
        return (
            f"{self.requests} requests, {self.retries} retries, {self.prompt_tokens} prompt and "
            f"{self.response_tokens} response tokens{price}"
        )

    def _once(self, payload: dict[str, Any]) -> list[Reply]:
        try:
            response = self.http.post("chat/completions", json=payload)
        except httpx2.TimeoutException as error:
            raise _Passing(f"no answer in time ({type(error).__name__})") from None
        except httpx2.TransportError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from None
        if response.status_code in _PASSING_STATUS or response.status_code >= 500:
            raise _Passing(_said(response), _retry_after(response))
        if response.status_code != 200:
            raise EngineError(
                f"the server {self.server.base_url} refuses the request with {_said(response)}; "
                "correct the model name, the key or the options"
            )
        count = payload.get("n", 1)
        try:
            body = response.json()
            usage = body.get("usage") or {}
            choices = sorted(body["choices"], key=lambda choice: choice.get("index", 0))[:count]
            replies = [_reply(choice, usage, is_alone=count == 1) for choice in choices]
            if not replies:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            # A proxy may answer 200 with its own page when its server does not run any more.
            raise _Passing(f"an answer that is not a completion: {response.text[:100]!r}") from None
        if len(replies) < count:
            raise EngineError(
                f"the server {self.server.base_url} gives {len(replies)} of {count} samples in one "
                "request; use a server that knows the field n"
            )
        with self.lock:
            self.requests += 1
            self.prompt_tokens += usage.get("prompt_tokens") or 0
            self.response_tokens += usage.get("completion_tokens") or 0
        return replies

    def _count_retry(self, state: tenacity.RetryCallState) -> None:
        with self.lock:
            self.retries += 1

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Passing) and error.wait_seconds is not None:
            return error.wait_seconds
        # Random delay, so that requests that failed together are not repeated together.
        first = self.server.first_wait_seconds
        wait = tenacity.wait_exponential(multiplier=first, max=60) + tenacity.wait_random(0, first)
        return wait(state)


def _reply(choice: dict[str, Any], usage: dict[str, Any], *, is_alone: bool) -> Reply:
    message = choice["message"]
    text = message.get("content") or ""
    reason = "length" if choice.get("finish_reason") == "length" else "stop"
    if not text and (message.get("refusal") or choice.get("finish_reason") == "content_filter"):
        # The text of a refusal is kept: it is a response without an answer.
        text, reason = message.get("refusal") or "", "refused"
    ids = choice.get("token_ids")
    # Usage counts the tokens of all choices together.
    tokens = usage.get("completion_tokens") if is_alone else len(ids) if ids else None
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return Reply(text, reason, usage.get("prompt_tokens"), tokens, reasoning)


def _said(response: httpx2.Response) -> str:
    text = " ".join(response.text.split())[:200]
    return f"status {response.status_code} ({text or 'no text'})"


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), 120.0)
    except (KeyError, ValueError):
        return None
