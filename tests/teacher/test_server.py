"""The service by its wire: what it refuses, and that it goes on."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest
import torch
from safetensors.torch import load, save

from vaopd.config import DataConfig, ViewConfig
from vaopd.errors import EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher import local
from vaopd.teacher.remote.messages import RequestOptions, pack_request
from vaopd.teacher.remote.server import listen

CPU = torch.device("cpu")
OPTIONS = RequestOptions(
    with_degraded=True,
    with_hidden=True,
    with_divergence=False,
    with_degraded_hidden=False,
    hidden_dtype="float32",
    batch_tokens=10_000,
    share_prefix=True,
)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return load_model(
        "tiny:new-teacher-s", device=CPU, dtype=torch.float32, compute_dtype=torch.float32
    )


@pytest.fixture(scope="module")
def body(model: VisionLanguageModel) -> bytes:
    return request_body(model, [[torch.tensor([5, 6, 7]), torch.tensor([8])]])


def request_body(model: VisionLanguageModel, responses: list[list[torch.Tensor]]) -> bytes:
    data = DataConfig(train="drawn:train", min_pixels=1, max_pixels=96 * 96)
    encoder = PromptEncoder(model, data, ViewConfig())
    original, degraded = encoder.both(DrawnProblems(num_problems=1)[0])
    return pack_request([original], [degraded], responses, OPTIONS, "float32")


def metadata_of(body: bytes) -> dict[str, str]:
    length = int.from_bytes(body[:8], "little")
    return json.loads(body[8 : 8 + length])["__metadata__"]


def changed(body: bytes, *drop: str, **header: object) -> bytes:
    """Return a request without some tensors, or with other values in its JSON."""
    length = int.from_bytes(body[:8], "little")
    metadata = json.loads(body[8 : 8 + length])["__metadata__"]
    request = json.loads(metadata["request"]) | header
    tensors = {name: value for name, value in load(body).items() if name not in drop}
    return save(tensors, {"request": json.dumps(request)})


@pytest.fixture
def client(serve: Callable, model: VisionLanguageModel, token: str) -> Iterator[httpx2.Client]:
    served = serve(model, max_request_bytes=1_000_000)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client


def meters(client: httpx2.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = [line.split() for line in lines if line.startswith("vaopd_teacher_")]
    return {name.removeprefix("vaopd_teacher_"): float(value) for name, value in pairs}


@pytest.mark.parametrize("path", ["/model", "/head", "/metrics", "/score"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "a-token-of-the-tests", "Bearer x"])
def test_everything_but_health_asks_for_the_token(
    client: httpx2.Client, path: str, header: str | None
):
    if header is None:
        del client.headers["Authorization"]
    else:
        client.headers["Authorization"] = header
    method = "POST" if path == "/score" else "GET"
    assert client.request(method, path).status_code == 401
    assert client.get("/health").json() == {"status": "ok"}


def test_the_pages_that_frameworks_add_are_not_there(client: httpx2.Client):
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json")] == [404, 404]


def test_a_request_is_answered_and_counted(client: httpx2.Client, body: bytes):
    before = meters(client)
    answer = client.post("/score", content=body)
    assert answer.status_code == 200
    assert {name: tuple(t.shape) for name, t in load(answer.content).items()} == {
        "hidden": (4, 112),
        "original_logprobs": (4,),
        "degraded_logprobs": (4,),
    }
    after = meters(client)
    grown = {name: after[name] - before[name] for name in before if "created" not in name}
    assert grown.pop("seconds_total") > 0
    assert grown == {
        "requests_total": 1,
        "tokens_total": 4,
        "received_bytes_total": len(body),
        "sent_bytes_total": len(answer.content),
    }


def in_chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_over_the_limit_is_refused_before_it_is_read(
    client: httpx2.Client, body: bytes, is_chunked: bool
):
    large = bytes(1_000_001)
    answer = client.post("/score", content=in_chunks(large) if is_chunked else large)
    assert answer.status_code == 413
    assert "over 1.0 MB; raise --max-request-mb" in answer.json()["detail"]
    counted = meters(client)
    assert counted['errors_total{status="413"}'] == 1
    assert counted["received_bytes_total"] == 0
    # It goes on, and a chunked request below the limit is as good as another.
    assert client.post("/score", content=in_chunks(body)).status_code == 200


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda body: b"garbage", "the body is not a safetensors file"),
        (lambda body: b"", "the body is not a safetensors file"),
        (lambda body: body[:-9], "the body is not a safetensors file"),
        (lambda body: save({"a": torch.zeros(1)}), "names no protocol"),
        (lambda body: changed(body, protocol=7), "has protocol 7 and this side 3; install"),
        (lambda body: changed(body, problems=[{"id": "p"}]), "the request is malformed"),
        (lambda body: changed(body, surprise=1), "the request is malformed"),
        (lambda body: changed(body, "0.input_ids"), "the tensors do not fit the request"),
        (lambda body: changed(body, "0.original.pixel_values"), "the tensors do not fit"),
    ],
)
def test_a_malformed_request_is_answered_by_one_sentence(
    client: httpx2.Client, body: bytes, make: Callable[[bytes], bytes], sentence: str
):
    answer = client.post("/score", content=make(body))
    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]
    assert client.post("/score", content=body).status_code == 200


@pytest.mark.parametrize("bad", [-1, 1 << 40])
def test_ids_without_a_row_never_reach_the_model(client: httpx2.Client, model, bad: int):
    answer = client.post("/score", content=request_body(model, [[torch.tensor([5, bad])]]))
    assert answer.status_code == 400
    assert "problem drawn:train:0:0 has ids from" in answer.json()["detail"]


def test_tensors_of_another_kind_are_refused(client: httpx2.Client, body: bytes):
    tensors = load(body)
    for name, value in (
        ("0.input_ids", tensors["0.input_ids"].float()),
        ("0.responses", tensors["0.responses"][:-1]),
        ("0.position_ids", tensors["0.position_ids"][:2]),
    ):
        length = int.from_bytes(body[:8], "little")
        metadata = json.loads(body[8 : 8 + length])["__metadata__"]
        answer = client.post("/score", content=save({**tensors, name: value}, metadata))
        assert (answer.status_code, name) == (400, name)
        assert "the tensors do not fit the request" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        # A model allocates memory by the grid, of which the ids know only the sum.
        ("0.original.image_grid_thw", lambda grid: grid * torch.tensor([1, -1, -1])),
        ("0.original.image_grid_thw", lambda grid: grid * 0 + (1 << 30)),
        ("0.original.image_grid_thw", lambda grid: grid.flatten()),
        ("0.original.image_grid_thw", lambda grid: grid.float()),
        ("0.original.image_grid_thw", lambda grid: torch.cat([grid, grid])),
        ("0.original.pixel_values", lambda pixels: pixels[:-1]),
        ("0.original.pixel_values", lambda pixels: pixels.long()),
        ("0.degraded.pixel_values", lambda pixels: pixels[:-1]),
        ("0.degraded.pixel_values", lambda pixels: pixels.bfloat16()),
        ("0.position_ids", lambda positions: positions.float()),
        ("0.responses", lambda ids: ids[None]),
    ],
)
def test_tensors_that_do_not_fit_each_other_never_reach_the_model(
    client: httpx2.Client, body: bytes, name: str, edit: Callable[[torch.Tensor], torch.Tensor]
):
    tensors = load(body)
    tensors[name] = edit(tensors[name]).contiguous()
    answer = client.post("/score", content=save(tensors, metadata_of(body)))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("the tensors do not fit the request (")


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"batch_tokens": 0}, 400),
        ({"batch_tokens": -5}, 400),
        ({"batch_tokens": "many"}, 400),
        ({"batch_tokens": 10**15}, 200),
        ({"hidden_dtype": "int8"}, 400),
        ({"with_hidden": 3}, 400),
    ],
)
def test_options_of_a_request_are_checked(
    client: httpx2.Client, body: bytes, options: dict[str, object], status: int
):
    values = OPTIONS.model_dump() | options
    assert client.post("/score", content=changed(body, options=values)).status_code == status


@pytest.mark.parametrize(
    "problem",
    [
        {"lengths": [-1, 5]},
        {"lengths": [4, 1]},
        {"lengths": [2**70]},
        {"next_position": -1},
        {"next_position": 2**62},
        {"images": ["nothing"]},
        {"id": 5},
        {"id": None},
    ],
)
def test_headers_of_a_problem_are_checked(
    client: httpx2.Client, body: bytes, problem: dict[str, object]
):
    (usual,) = json.loads(metadata_of(body)["request"])["problems"]
    answer = client.post("/score", content=changed(body, problems=[usual | problem]))
    assert answer.status_code == 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "null", "3", "{bad"])
def test_a_header_that_is_no_object_is_refused(client: httpx2.Client, text: str):
    answer = client.post("/score", content=save({"a": torch.zeros(1)}, {"request": text}))
    assert answer.status_code == 400
    assert "names no protocol" in answer.json()["detail"]


def test_no_answer_names_a_file_of_the_server(
    client: httpx2.Client, body: bytes, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/home/me/secret/model.bin")

    monkeypatch.setattr(local, "score_view", fails)
    answers = [client.post("/score", content=body), client.get("/../etc"), client.post("/model")]
    assert [answer.status_code for answer in answers] == [500, 404, 405]
    for answer in answers:
        assert not re.search(r"/home|/tmp|/usr|Traceback|\.py|line \d", answer.text)


def test_a_fault_of_the_server_is_500_and_the_next_request_is_served(
    client: httpx2.Client, body: bytes, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in /home/me/model.py")

    with monkeypatch.context() as patch:
        patch.setattr(local, "score_view", broken)
        answer = client.post("/score", content=body)
    assert (answer.status_code, meters(client)['errors_total{status="500"}']) == (500, 1)
    sentence = "scoring failed (ZeroDivisionError); the server's log has the reason"
    assert answer.json()["detail"] == sentence
    assert client.post("/score", content=body).status_code == 200


def test_out_of_memory_names_the_remedy(
    client: httpx2.Client, body: bytes, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Process 7 has 80 GiB")

    monkeypatch.setattr(local, "score_view", full)
    answer = client.post("/score", content=body)
    assert answer.status_code == 507
    assert (
        answer.json()["detail"]
        == "the request does not fit into memory; lower teacher.batch_tokens"
    )


def test_one_request_is_computed_at_a_time_and_the_service_answers_meanwhile(
    client: httpx2.Client, body: bytes, monkeypatch: pytest.MonkeyPatch
):
    entered, proceed = threading.Semaphore(0), threading.Semaphore(0)
    active: list[int] = []
    most: list[int] = []
    real = local.score_view

    def slow(*arguments: object, **options: object):
        active.append(1)
        most.append(len(active))
        entered.release()
        assert proceed.acquire(timeout=60)
        try:
            return real(*arguments, **options)
        finally:
            active.pop()

    monkeypatch.setattr(local, "score_view", slow)
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(client.post("/score", content=body).status_code)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert entered.acquire(timeout=60)
    # While the first one is computed and the others wait, the service says that it is there.
    deadline = time.monotonic() + 60
    while meters(client)["requests_total"] < 4:
        assert time.monotonic() < deadline
    assert client.get("/health").status_code == 200
    # One is computed, one waits in memory, two wait unread.
    assert meters(client)["received_bytes_total"] == 2 * len(body)
    proceed.release(8)
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert max(most) == 1


def test_a_port_that_is_taken_is_a_sentence():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1 port {port} .*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(EngineError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
