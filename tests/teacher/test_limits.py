"""A service under many, slow, dying and rude clients: it goes on, in bounded memory."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
import torch
from tests.teacher_service import TOKEN, EchoTeacher, Serving, echo_request, is_echo

from vaopd.errors import EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.remote import connections, pool, server
from vaopd.teacher.remote.pool import Address, Busy, Question, TeacherServers

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    return load_model("tiny:new-teacher-s", device=torch.device("cpu"), **options)


@pytest.fixture
def served(serve: Callable, model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setattr(server, "LocalTeacher", EchoTeacher)
    return serve(model)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, ...]]:
    """Return what the scorer releases when it begins, and what it waits for."""
    entered, proceed = threading.Semaphore(0), threading.Semaphore(0)
    echo = EchoTeacher.score

    def waits(self, *arguments: object, **options: object):
        entered.release()
        assert proceed.acquire(timeout=PATIENCE)
        return echo(self, *arguments, **options)

    monkeypatch.setattr(EchoTeacher, "score", waits)
    yield entered, proceed
    proceed.release(1000)


def score(served: Serving, ids: list[int]) -> httpx2.Response:
    body = echo_request(ids)
    return httpx2.post(f"{served.url}/score", content=body, headers=HEADERS, timeout=PATIENCE)


@contextmanager
def connection(served: Serving, **options: int) -> Iterator[socket.socket]:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as one:
        for name, value in options.items():
            one.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        one.settimeout(PATIENCE)
        one.connect((host, int(port)))
        yield one


def head_of(path: str, length: int, token: str = TOKEN) -> bytes:
    method = "POST" if length else "GET"
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "\r\n"]).encode()


def is_closed(one: socket.socket) -> bool:
    """Read until the server closes; fails by the time limit of the socket if it does not."""
    try:
        while one.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


# --- many clients -------------------------------------------------------------------------------


def test_a_request_for_which_there_is_no_place_is_told_when_to_come_again(
    served: Serving, blocked: tuple, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "MAX_WAITING", 1)
    entered, proceed = blocked
    with ThreadPoolExecutor(3) as threads:
        kept = [threads.submit(score, served, [1])]
        assert entered.acquire(timeout=PATIENCE)
        # Two are admitted, of which one is computed; the third waits.
        kept += [threads.submit(score, served, [1]) for _ in range(2)]
        while requests_of(served) < 3:
            pass
        refused = score(served, [1])
        proceed.release(4)
        assert [one.result().status_code for one in kept] == [200] * 3
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json() == {
        "detail": "1 requests wait already; come again, or start more servers"
    }
    assert score(served, [1]).status_code == 200


def requests_of(served: Serving) -> float:
    text = httpx2.get(f"{served.url}/metrics", headers=HEADERS).text
    return float(text.split("\nvaopd_teacher_requests_total ")[1].split()[0])


def test_every_one_of_many_clients_gets_its_own_answer(
    served: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "MAX_WAITING", 8)
    monkeypatch.setattr(server, "RETRY_SECONDS", 1)
    barrier = threading.Barrier(60)

    def ask(number: int) -> bool:
        servers = TeacherServers([served.url], TOKEN, PATIENCE, verify=False)
        ids = [number, number + 1]
        question = Question("POST", "/score", echo_request(ids))
        barrier.wait()
        try:
            return servers.ask(0, question, lambda answer: is_echo(answer, ids))
        finally:
            servers.close()

    with ThreadPoolExecutor(60) as threads:
        assert all(threads.map(ask, range(60)))


def test_connections_beyond_the_limit_are_closed(served: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    with connection(served) as one, connection(served) as two:
        for used in (one, two):
            used.sendall(head_of("/health", 0))
            assert used.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connection(served) as third:
            assert is_closed(third)
    while len(served.server.server_state.connections):
        pass
    assert score(served, [5]).status_code == 200


# --- slow and dying clients ---------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /health HTT", b"GET /health HTTP/1.1\r\nX: "])
def test_a_connection_without_a_whole_header_is_closed(
    served: Serving, monkeypatch: pytest.MonkeyPatch, sent: bytes
):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with connection(served) as one:
        one.sendall(sent)
        assert is_closed(one)
    assert score(served, [5]).status_code == 200


def test_a_header_that_drips_is_cut_off(served: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connection(served) as one:
        one.settimeout(0.05)
        with pytest.raises(ConnectionError):
            one.sendall(b"GET /health HTTP/1.1\r\nX: ")
            while True:
                one.sendall(b"x")
                try:
                    assert one.recv(100) == b""
                    raise ConnectionResetError
                except TimeoutError:
                    pass


def test_the_endless_body_of_a_refused_request_is_cut_off(
    served: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connection(served) as one:
        one.sendall(head_of("/score", 10**9, token="wrong"))
        assert one.recv(65536).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(ConnectionError):
            while True:
                one.sendall(bytes(1000))


def test_a_long_request_is_not_taken_for_a_slow_one(
    served: Serving, blocked: tuple, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    entered, proceed = blocked
    with ThreadPoolExecutor(1) as threads:
        kept = threads.submit(score, served, [5])
        assert entered.acquire(timeout=PATIENCE)
        with connection(served) as idle:
            assert is_closed(idle)  # so the limit of this one has passed as well
        proceed.release()
        assert kept.result().status_code == 200


def test_a_body_that_drips_frees_its_turn(served: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "ADMITTED", 1)
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.1)
    with connection(served) as one:
        one.sendall(head_of("/score", 1000) + b"abc")
        answer = one.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the request did not arrive in 0 s" in answer + one.recv(65536)
    assert score(served, [5]).status_code == 200


def test_a_steady_body_may_take_longer_than_the_grace(
    served: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(server, "MIN_BYTES_PER_SECOND", 1)
    body = echo_request(list(range(50)))
    with connection(served) as one:
        one.sendall(head_of("/score", len(body)) + body[:-1])
        pause = threading.Event()
        pause.wait(0.5)
        one.sendall(body[-1:])
        assert one.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_clients_that_die_in_any_moment_leave_nothing(served: Serving):
    body = echo_request([5, 6])
    whole = head_of("/score", len(body)) + body
    for cut in (1, 20, len(whole) - len(body), len(whole) - 1, len(whole)):
        for _ in range(5):
            with connection(served) as one:
                one.sendall(whole[:cut])
                # Closed by a reset, as the system does for a process that is killed.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *[0] * 7]))
    answer = score(served, [7])
    assert is_echo(answer.content, [7])
    while len(served.server.server_state.connections) > 1:
        pass


def test_an_answer_that_nobody_reads_is_forgotten(
    served: Serving, model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.1)
    # More than the system keeps for a connection: 9 MB of hidden states.
    body = echo_request([5] * 20_000)
    for _ in range(server.ANSWERS):
        with connection(served, SO_RCVBUF=4096) as one:
            one.sendall(head_of("/score", len(body)) + body)
            assert one.recv(10).startswith(b"HTTP/1.1 2")
            while len(served.server.server_state.connections):
                pass
    # Otherwise no answer had room now.
    assert score(served, [5]).status_code == 200


def test_no_more_answers_are_computed_than_have_room(
    served: Serving, monkeypatch: pytest.MonkeyPatch
):
    body = echo_request([5] * 20_000)
    computed: list[int] = []
    echo = EchoTeacher.score

    def counts(self, *arguments: object, **options: object):
        computed.append(1)
        return echo(self, *arguments, **options)

    monkeypatch.setattr(EchoTeacher, "score", counts)
    with connection(served, SO_RCVBUF=4096) as one:
        rude = [one]
        stack = [connection(served, SO_RCVBUF=4096) for _ in range(server.ANSWERS)]
        rude += [each.__enter__() for each in stack]
        for each in rude:
            each.sendall(head_of("/score", len(body)) + body)
        while len(computed) < server.ANSWERS:
            pass
        assert httpx2.get(f"{served.url}/health").status_code == 200
        assert len(computed) == server.ANSWERS
        for each in stack:
            each.__exit__(None, None, None)
    assert score(served, [5]).status_code == 200


# --- a trainer at a busy server -----------------------------------------------------------------


class Pauses(threading.Event):
    """Remembers how long a client wanted to wait, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


Answer = Callable[[httpx2.Request], httpx2.Response]


def servers_of(*answers: Answer, timeout: float = PATIENCE) -> tuple[TeacherServers, Pauses]:
    names = [f"http://{number}" for number in range(len(answers))]
    found = TeacherServers(names, TOKEN, timeout, verify=False)
    for address, answer in zip(found.addresses, answers, strict=True):
        transport = httpx2.MockTransport(answer)
        address.http = httpx2.Client(base_url=address.url, transport=transport)
    found.stopped = Pauses()
    return found, found.stopped


def busy(times: int, retry_after: str = "7") -> Answer:
    left = iter(range(times))

    def answer(request: httpx2.Request) -> httpx2.Response:
        if next(left, None) is None:
            return httpx2.Response(200, stream=httpx2.ByteStream(b"well"))
        headers = {"Retry-After": retry_after}
        stream = httpx2.ByteStream(b'{"detail": "no place"}')
        return httpx2.Response(503, headers=headers, stream=stream)

    return answer


QUESTION = Question("GET", "/head")


def test_a_trainer_waits_for_a_busy_server_as_often_as_it_says():
    servers, pauses = servers_of(busy(10))
    assert servers.ask(0, QUESTION, bytes) == b"well"
    assert pauses.seconds == [7.0] * 10


def test_another_server_is_asked_before_a_trainer_waits():
    servers, pauses = servers_of(busy(1000), busy(0))
    assert servers.ask(0, QUESTION, bytes) == b"well"
    assert pauses.seconds == [0.0]
    assert not servers.addresses[0].is_resting


def test_a_server_that_is_busy_for_ever_is_left_when_an_answer_is_overdue(
    monkeypatch: pytest.MonkeyPatch,
):
    now = iter(range(100_000))
    monkeypatch.setattr(pool.time, "monotonic", lambda: float(next(now)))
    servers, pauses = servers_of(busy(10_000), timeout=50.0)
    with pytest.raises(EngineError, match=r"no teacher answers: http://0 \(no place\)"):
        servers.ask(0, QUESTION, bytes)
    assert 3 < len(pauses.seconds) < 50


@pytest.mark.parametrize(("header", "seconds"), [("0", 1), ("5", 5), ("9" * 30, 60)])
def test_a_wait_that_a_server_wants_is_bounded(header: str, seconds: int):
    servers, _ = servers_of(busy(1, header))
    with pytest.raises(Busy) as caught:
        servers.addresses[0].ask(QUESTION)
    assert caught.value.retry_seconds == seconds


@pytest.mark.parametrize("header", ["", "soon", "-5", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_503_without_a_number_of_seconds_is_a_failure(header: str):
    servers, pauses = servers_of(busy(10, header))
    with pytest.raises(EngineError, match="no teacher answers"):
        servers.ask(0, QUESTION, bytes)
    assert pauses.seconds == [1.0, 2.0]


def test_an_address_of_these_tests_is_a_real_one():
    assert Address("http://127.0.0.1:1/", TOKEN, 1.0).url == "http://127.0.0.1:1"
