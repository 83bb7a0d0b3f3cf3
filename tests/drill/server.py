"""A teacher's server under two hundred clients at a time: none gets a wrong answer or no answer.

The server is the real command in a process of its own; only its scorer is replaced, by one that
takes no time. The clients are threads of the drill.
"""

import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from tests.drill.children import Child
from tests.drill.runs import Drill
from tests.teacher_service import TOKEN, EchoTeacher, echo_request, is_echo

from vaopd.errors import EngineError
from vaopd.teacher.remote import connections, server
from vaopd.teacher.remote.pool import Question, TeacherServers

CLIENTS = 200
ROUNDS = 3
"""Requests of each client, one after the other."""

MOST_MB = 300
"""By which the server's memory may grow over that of the first answer."""

TIMEOUT_SECONDS = 120.0
LEAK = re.compile(rb"Traceback|File \"|\.py\b|/(home|root|tmp|usr|work)/")


def run(drill: Drill) -> None:
    """Ask at once, die, dawdle, send rubbish, and kill the server."""
    cases: dict[str, Callable[[Served, random.Random], str]] = {
        "server: 200 clients": ask_at_once,
        "server: clients that die": die,
        "server: slow clients": dawdle,
        "server: rude requests": be_rude,
        "server: killed": kill,
    }
    for name, case in cases.items():
        while drill.left(name) > 0:
            draw = random.Random(f"{drill.seed} {name} {drill.tally.count(name).tried}")
            served = Served(drill.log)
            try:
                found = case(served, draw) or served.fault()
            finally:
                served.child.kill()
            kind = "lost" if found.startswith("lost") else "wrong"
            drill.tally.add(name, kind if found else "survived", 1, found)


def prepare() -> None:
    """Replace the scorer of the child and shorten its patience."""
    server.LocalTeacher = EchoTeacher  # pyright: ignore[reportAttributeAccessIssue]
    connections.HEADER_SECONDS = 2.0
    server.GRACE_SECONDS = connections.STALL_SECONDS = 0.5
    server.RETRY_SECONDS = 1
    server.MAX_WAITING = 64


class Served:
    """A server that was started, and what it needs to be asked."""

    def __init__(self, log: Path) -> None:
        """Start the server and wait until it names its address."""
        self.log = log
        arguments = ["serve-teacher", "tiny:new-teacher-s", "--port", "0"]
        environment = {"VAOPD_TEACHER_TOKEN": TOKEN}
        log.unlink(missing_ok=True)  # it names the address of an earlier server
        self.child = Child(arguments, log, prepare=prepare, environment=environment)
        while (found := re.search(r"http://127.0.0.1:(\d+)\n", self.child.text())) is None:
            assert self.child.poll() is None, self.child.text()
            time.sleep(0.01)
        self.port = int(found[1])
        first_answer = self.ask(random.Random(0))
        assert first_answer == "", (first_answer, self.child.text())
        self.memory = self.megabytes()

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, draw: random.Random, times: int = 1, urls: Sequence[str] = ()) -> str:
        """Ask this server or some as a trainer does; return what is wrong, or ''."""
        servers = TeacherServers(urls or [self.url], TOKEN, TIMEOUT_SECONDS, verify=False)
        try:
            for _ in range(times):
                ids = [draw.randrange(640) for _ in range(draw.randint(1, 40))]
                question = Question("POST", "/score", echo_request(ids))
                if not servers.ask(0, question, lambda answer, ids=ids: is_echo(answer, ids)):
                    return "an answer to another request"
        except EngineError as error:
            return f"lost: {error}"
        finally:
            servers.close()
        return ""

    def open(self) -> socket.socket:
        """Return a new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS)

    def megabytes(self) -> float:
        """Return the most memory that the server has had."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def fault(self) -> str:
        """Return what is wrong with the server after a case, or ''."""
        if self.child.poll() is not None:
            return f"lost: the server ended: {self.child.text()[-300:]}"
        if found := self.ask(random.Random(1)):
            return found
        if (grown := self.megabytes() - self.memory) > MOST_MB:
            return f"the server's memory grew by {grown:.0f} MB"
        if "Traceback" in self.child.text():
            return f"a traceback in the log: {self.child.text()[-300:]}"
        return ""


def first(results: list[str]) -> str:
    """Return the first result that is not ''."""
    return next(filter(None, results), "")


def ask_at_once(served: Served, draw: random.Random) -> str:
    """Ask from all clients at once: each gets its own answers, and /health answers meanwhile."""
    seeds = [draw.random() for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        asked = [threads.submit(served.ask, random.Random(seed), ROUNDS) for seed in seeds]
        if httpx2.get(f"{served.url}/health", timeout=TIMEOUT_SECONDS).status_code != 200:
            return "lost: /health did not answer"
        return first([one.result() for one in asked])


def message(body: bytes, length: int | None = None, token: str = TOKEN) -> bytes:
    """Return a request to score as it travels."""
    lines = ["POST /score HTTP/1.1", "Host: x", f"Authorization: Bearer {token}"]
    lines.append("Connection: close")
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def die(served: Served, draw: random.Random) -> str:
    """Reset connections at any byte of a request, or while its answer is sent."""
    for _ in range(CLIENTS):
        whole = message(echo_request([1] * draw.choice([1, 20_000])))
        with served.open() as one:
            one.sendall(whole[: draw.choice([draw.randrange(len(whole)), len(whole)])])
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *[0] * 7]))
    return ""


def dawdle(served: Served, draw: random.Random) -> str:
    """Keep connections with half a header, half a body or an unread answer; others are served."""
    header, body = message(b"")[:30], message(b"half", 1000)
    unread = message(echo_request([1] * 20_000))
    slow = [served.open() for _ in range(CLIENTS)]
    for one in slow:
        one.sendall(draw.choice([b"", header, header, body, unread]))
    found = served.ask(draw, ROUNDS)
    for one in slow:
        try:
            while one.recv(1 << 20):
                pass
        except TimeoutError:
            found = found or "lost: a slow connection was never closed"
        except ConnectionError:
            pass
        one.close()
    return found


def be_rude(served: Served, draw: random.Random) -> str:
    """Send rubbish of many kinds; no answer may be a fault or say anything about the machine."""
    good = echo_request([1, 2, 3])

    def rubbish() -> bytes:
        changed = bytearray(good)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        kinds = [
            draw.randbytes(draw.randint(1, 2000)) + b"\r\n\r\n",
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            message(good, token="wrong"),
            message(b"", 10**15),
            message(b"", 10**15, token="wrong"),
            message(bytes(changed)),
            message(good[: draw.randrange(len(good))]),
            message(draw.randbytes(200)),
        ]
        return draw.choice(kinds)

    for _ in range(CLIENTS):
        sent, answer = rubbish(), b""
        with served.open() as one:
            try:
                one.sendall(sent)
                while part := one.recv(65536):
                    answer += part
            except ConnectionError:
                pass
        if answer.startswith(b"HTTP/1.1 5") or LEAK.search(answer):
            return f"{sent[:100]!r} was answered by {answer[:300]!r}"
    return ""


def kill(served: Served, draw: random.Random) -> str:
    """Kill one of two servers under its clients: the other answers all of them."""
    other = Served(served.log.with_name("other.log"))
    urls, seeds = [served.url, other.url], [draw.random() for _ in range(20)]
    with ThreadPoolExecutor(len(seeds)) as threads:
        asked = [threads.submit(other.ask, random.Random(seed), 20, urls) for seed in seeds]
        time.sleep(draw.uniform(0, 1))
        served.child.kill()
        found = first([one.result() for one in asked])
    served.child = other.child
    served.port, served.memory = other.port, other.memory
    return found
