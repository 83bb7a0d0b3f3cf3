"""A stand-in for the API of the Hugging Face hub on 127.0.0.1, as far as a push of a model uses it.

It keeps repositories in memory. Files above ``LARGE`` bytes go to it by LFS, as on the hub.
"""

import base64
import hashlib
import json
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

LARGE = 1_000_000
TOKEN = "hf_standInToken0123456789"
READ_ONLY = "hf_readOnlyToken0123456789"


@dataclass
class Repository:
    """A model repository: files by branch and path."""

    is_private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


class HubServer:
    """The state of the stand-in; ``start`` serves it and ``stop`` ends that."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Method and path of every request, in their order."""

        self.dies_at = ""
        """The server ends without an answer at the first request whose line holds this."""

        self.has_lfs = True
        self.port = 0
        self.http: ThreadingHTTPServer | None = None
        self.ending: Thread | None = None

    @property
    def url(self) -> str:
        """The address, also while nothing listens there."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, after the first time on the same port."""
        if self.ending is not None:
            self.ending.join()
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler_of(self))
        self.port = self.http.server_address[1]
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
        self.http = None

    def die(self) -> None:
        """Stop listening from within a request."""
        self.dies_at = ""
        self.ending = Thread(target=self.stop)
        self.ending.start()


def handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

        def answer(self, status: int, value: Any = None) -> None:
            body = json.dumps({} if value is None else value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_any(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.dies_at and hub.dies_at in hub.requests[-1]:
                hub.die()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if self.path.startswith("/lfs/"):  # its address is a secret of its own, as on the hub
                hub.blobs[self.path.removeprefix("/lfs/")] = body
                self.answer(200)
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in (TOKEN, READ_ONLY):
                self.answer(401, {"error": "Invalid username or password."})
            elif token == READ_ONLY and self.command == "POST":
                self.answer(403, {"error": "You need write access."})
            else:
                self.answer(*respond(hub, self.path, body))

        do_GET = do_POST = do_PUT = handle_any

    return Handler


def respond(hub: HubServer, path: str, body: bytes) -> tuple[int, Any]:
    """Return status and JSON of an authorised request."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[-3:] == ["lfs", "objects", "batch"]:
        return 200, {"objects": [lfs_action(hub, one) for one in json.loads(body)["objects"]]}
    if path == "/api/repos/create":
        return create(hub, json.loads(body))
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    name, action = "/".join(parts[2:4]), parts[4:5]
    if name not in hub.repositories:
        return 404, {"error": "Repository not found"}
    repository = hub.repositories[name]
    if not action:
        return 200, {"id": name, "private": repository.is_private, "sha": "0" * 40, "tags": []}
    branch = parts[5]
    if action == ["branch"]:
        if branch in repository.branches:
            return 409, {"error": "Reference already exists"}
        repository.branches[branch] = dict(repository.branches["main"])
        return 200, {}
    if action == ["preupload"]:
        return 200, {"files": [mode(hub, one) for one in json.loads(body)["files"]]}
    assert action == ["commit"], path
    return commit(hub, name, branch, [json.loads(line) for line in body.splitlines()])


def create(hub: HubServer, wanted: dict[str, Any]) -> tuple[int, Any]:
    name = f"{wanted.get('organization')}/{wanted['name']}"
    url = {"url": f"{hub.url}/{name}"}
    if name in hub.repositories:
        return 409, url | {"error": "You already created this model repo"}
    hub.repositories[name] = Repository(wanted.get("visibility") == "private")
    return 200, url


def mode(hub: HubServer, file: dict[str, Any]) -> dict[str, Any]:
    is_large = hub.has_lfs and file["size"] > LARGE
    found = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular"}
    return found | {"shouldIgnore": False, "oid": None}


def lfs_action(hub: HubServer, wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted["oid"] in hub.blobs:
        return wanted
    return wanted | {"actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}


def commit(hub: HubServer, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
    repository = hub.repositories[name]
    files = repository.branches[branch]
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            repository.messages.append(value["summary"])
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            content = hub.blobs[value["oid"]]
            assert hashlib.sha256(content).hexdigest() == value["oid"]
            files[value["path"]] = content
    oid = f"{len(repository.messages):040x}"
    return 200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid}
