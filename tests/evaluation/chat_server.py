"""A local server that speaks /v1/chat/completions and fails in the ways that servers do."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any] | str
"""Text of a completion, or ``status``, ``drop``, ``slow``, ``refusal``, ``page``."""


@dataclass
class ChatServer:
    """What the server was asked; ``behave`` says what to answer to the n-th request."""

    behave: Callable[[int, dict[str, Any]], Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    failures: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(behave: Callable[[int, dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    state = ChatServer(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
            answer = state.behave(number, body)
            if isinstance(answer, str):
                answer = {"content": answer}
            if "slow" in answer:
                time.sleep(answer["slow"])
            if "drop" in answer:
                self.close_connection = True
                self.connection.close()
                return
            try:
                self.reply(answer)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def reply(self, answer: dict[str, Any]) -> None:
            status = answer.get("status", 200)
            message = {"role": "assistant", "content": answer.get("content"),
                       "refusal": answer.get("refusal")}  # fmt: skip
            choice = {"message": message, "finish_reason": answer.get("finish_reason", "stop")}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            payload: Any = {"choices": [choice], "usage": usage}
            if status != 200:
                payload = {"error": {"message": answer.get("message", "no")}}
            text = answer.get("page") or json.dumps(payload)
            self.send_response(status)
            if "retry_after" in answer:
                self.send_header("Retry-After", str(answer["retry_after"]))
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
