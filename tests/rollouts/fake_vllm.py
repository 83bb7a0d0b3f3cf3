"""Speaks what vaopd needs of vLLM's HTTP interface, without a model; in process or as a program.

As a program it takes the place of an interpreter with vLLM: ``fake_python`` writes a script that
answers the look for vLLM and starts this server instead.
"""

import base64
import io
import json
import os
import pickle
import signal
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

IMAGE, END = 638, 633
PIXELS_OF_A_VISUAL_TOKEN = 16 * 16


def visual_tokens(url: str) -> int:
    """Return how many visual tokens the tiny models give to an image."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.width * image.height // PIXELS_OF_A_VISUAL_TOKEN


def choice(index: int, seed: int, version: str) -> dict[str, Any]:
    ids = [(seed + position) % 500 for position in range(2 + index)] + [END]
    span = {"version": version, "start": 0, "end": len(ids)}
    return {
        "index": index, "token_ids": ids, "finish_reason": "stop", "weight_versions": [span]
    }  # fmt: skip


@dataclass
class FakeVllm:
    """What the server was asked; ``change`` turns its answers into others."""

    change: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda path, answer: answer
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    version: str = "default"
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    weights: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    say: Callable[[str], None] = lambda line: None
    said: list[int] = field(default_factory=list)
    """Tokens of the last sibling of every request, if it is to say something."""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/inference/v1/generate":
            return self.samples(body)
        if path == "/v1/chat/completions":
            return chat(body)
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/sleep":
            self.say("asleep")
        self.take(path, body)
        return {"success": True}

    def samples(self, body: dict[str, Any]) -> dict[str, Any]:
        counts = [visual_tokens(part["url"]) for part in body["content_parts"]]
        images = iter(counts)
        ids: list[int] = []
        for token in body["token_ids"]:
            ids += [token] * (next(images) if token == IMAGE else 1)
        options = body["sampling_params"]
        choices = [choice(k, options["seed"] + k, self.version) for k in range(options["n"])]
        if self.said:
            choices[-1]["token_ids"] = self.said
        if options.get("logprobs") is not None:
            for one in choices:
                content = [{"token_id": i, "logprob": -1 - i / 999} for i in one["token_ids"]]
                one["logprobs"] = {"content": content}
        return {"prompt_token_ids": ids, "choices": choices}

    def take(self, path: str, body: dict[str, Any]) -> None:
        """Take note of new weights and of their version."""
        if path == "/collective_rpc":
            self.read(Path(body["kwargs"]["weights_path"]))
        if path == "/start_weight_update":
            self.weights.append({})
        if path == "/update_weights":
            self.note(unpacked(body), self.weights[-1])
        if path == "/update_weight_version":
            self.version = body["new_version"]
            self.say(f"version {self.version.rpartition(':')[2]}")

    def read(self, folder: Path) -> None:
        """Take note of the weights in a model folder."""
        self.weights.append({})
        self.note(tensors_of(folder), self.weights[-1])

    def note(self, tensors: dict[str, Any], weights: dict[str, tuple[int, ...]]) -> None:
        weights |= {name: tuple(value.shape) for name, value in tensors.items()}
        sums = {name: float(abs(value).sum(dtype=float)) for name, value in tensors.items()}
        self.say(f"weights {json.dumps(sums)}")


def chat(body: dict[str, Any]) -> dict[str, Any]:
    # As in vLLM: choice k has the seed of the request plus k, and usage is their sum.
    seeds = [body["seed"] + k for k in range(body.get("n", 1))]
    choices = [
        {"index": k, "message": {"role": "assistant", "content": f"\\boxed{{{seed}}}"},
         "finish_reason": "stop", "token_ids": [1] * (2 + seed % 5)}
        for k, seed in enumerate(seeds)
    ]  # fmt: skip
    spent = sum(len(one["token_ids"]) for one in choices)
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": spent}}


def tensors_of(folder: Path) -> dict[str, Any]:
    """Return the tensors of a model folder."""
    from safetensors.numpy import load_file  # the other half would import torch

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def unpacked(body: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of an update, whose handle is that of a ``FileBuffer``."""
    import numpy

    update = body["update_info"]
    (handle,) = pickle.loads(base64.b64decode(update["ipc_handles_pickled"])).values()
    content = Path(handle[0]).read_bytes()
    found, start = {}, 0
    columns = [update[key] for key in ("names", "dtype_names", "shapes", "tensor_sizes")]
    for name, dtype, shape, size in zip(*columns, strict=True):
        values = numpy.frombuffer(content[start : start + size], dtype)
        found[name] = values.reshape(shape)
        start += size
    return found


class SocketServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A server on a socket in the file system; it gives its handlers a port as well."""

    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, ("", 0)


def handler(state: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(state.answer(self.path, {}))

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}") or {}
            path = self.path.partition("?")[0]
            with state.lock:
                state.requests.append((self.path, body))
                answer = state.answer(path, body)
            self.reply(state.change(path, answer))

        def reply(self, answer: dict[str, Any]) -> None:
            status = answer.pop("status", 200)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the output clean."""

    return Handler


@contextmanager
def fake_vllm(**options: Any) -> Iterator[FakeVllm]:
    state = FakeVllm(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fake_python(folder: Path, serve: str = "") -> Path:
    """Write an interpreter whose vLLM is this file, or the shell command ``serve``."""
    path = folder / "python-with-vllm"
    serve = serve or f'exec "{sys.executable}" "{__file__}" "$@"'
    path.write_text(f'#!/bin/sh\ncase "$3" in *find_spec*) exit 0;; esac\n{serve}\n')
    path.chmod(0o755)
    return path


def kill_at(count: int) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """Return a change that ends the process instead of its n-th completion."""
    asked = 0

    def change(path: str, answer: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        asked += path in ("/v1/chat/completions", "/inference/v1/generate")
        if asked >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    return change


def main(arguments: list[str]) -> None:
    state = FakeVllm(say=lambda line: print(line, flush=True))
    if "--refuses" in arguments:
        refused = arguments[arguments.index("--refuses") + 1]
        state.change = lambda path, answer: {"status": 500} if path == refused else answer
    if "--kill-at" in arguments:
        state.change = kill_at(int(arguments[arguments.index("--kill-at") + 1]))
    if "--says" in arguments:
        state.said = [int(i) for i in arguments[arguments.index("--says") + 1].split(",")]
    print("gpus:", os.environ.get("CUDA_VISIBLE_DEVICES"))
    print("launcher:", [name for name in os.environ if "RANK" in name or "MASTER" in name])
    print("fake vLLM", *arguments, flush=True)
    folder = Path(arguments[arguments.index("--model") + 1])
    if folder.is_dir():
        state.read(folder)
    if "--uds" in arguments:
        SocketServer(arguments[arguments.index("--uds") + 1], handler(state)).serve_forever()
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), handler(state)).serve_forever()


if __name__ == "__main__":
    main(sys.argv)
