"""Connections of a teacher's server that end when a client is too slow, or has gone.

uvicorn by itself waits for ever for the headers of a request and for a client that stops reading.
"""

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
"""Open at a time; further ones are closed at once. Most systems allow a process 1,024 files."""

HEADER_SECONDS = 20.0
"""Limit for the arrival of the headers of a request, and for the rest of one that was refused."""

STALL_SECONDS = 30.0
"""How long a client may leave ``CHUNK_BYTES`` of an answer unread."""

CHUNK_BYTES = 1 << 20


class LimitedConnection(H11Protocol):
    """HTTP/1.1 of uvicorn with limits for the number of connections and for slow clients."""

    waiting: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as in H11Protocol
        """Begin to wait for headers."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle data, which may complete the headers of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        super().connection_lost(exc)
        for timer in (self.waiting, self.stalled):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """Give the client a time to read what was sent."""
        super().pause_writing()
        self.stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()

    def _watch(self) -> None:
        """Run a timer exactly while no request is being answered."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_waiting and self.waiting is None:
            self.waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not is_waiting and self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


class BinaryAnswer(Response):
    """Bytes that are sent in chunks; then ``done`` is called, also if they cannot be sent."""

    media_type = "application/octet-stream"

    def __init__(self, content: bytes, done: Callable[[], None]) -> None:
        super().__init__(content)
        self.done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            for place in range(0, len(self.body), CHUNK_BYTES):
                chunk = bytes(self.body[place : place + CHUNK_BYTES])
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.done()
