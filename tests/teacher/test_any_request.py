"""Random requests along the service's own OpenAPI schema: never a fault, a file or a traceback.

``VAOPD_FUZZ=100`` tries a hundred times as many.
"""

import json
import os
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from starlette.testclient import TestClient
from tests.teacher_service import TOKEN, description

from vaopd.config import DataConfig, ViewConfig
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.remote.messages import RequestOptions, pack_request
from vaopd.teacher.remote.server import make_app

TIMES = int(os.environ.get("VAOPD_FUZZ", "1"))
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "X"]
LEAK = re.compile(
    r"Traceback|File \"|\.py\b|, line \d|/(home|root|tmp|usr|work|var|etc)/|0x[0-9a-f]{6}"
)


def fuzz(examples: int) -> Callable:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    return load_model("tiny:new-teacher-s", device=torch.device("cpu"), **options)


@pytest.fixture(scope="module")
def client(model: VisionLanguageModel) -> Iterator[TestClient]:
    app = make_app(model, description(model, max_request_bytes=1_000_000), TOKEN)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def paths(client: TestClient) -> dict[str, list[str]]:
    """The methods of every path, from the schema."""
    found = client.app.openapi()["paths"]  # pyright: ignore[reportAttributeAccessIssue]
    return {path: [name.upper() for name in item] for path, item in found.items()}


@pytest.fixture(scope="module")
def body(model: VisionLanguageModel) -> bytes:
    data = DataConfig(train="drawn:train", min_pixels=1, max_pixels=96 * 96)
    original, degraded = PromptEncoder(model, data, ViewConfig()).both(
        DrawnProblems(num_problems=1)[0]
    )
    options = RequestOptions(
        with_degraded=True,
        with_hidden=True,
        with_divergence=True,
        with_degraded_hidden=True,
        hidden_dtype="float32",
        batch_tokens=1000,
        share_prefix=True,
    )
    responses = [[torch.tensor([5, 6, 7]), torch.tensor([8])]]
    return pack_request([original], [degraded], responses, options, "float32")


def check(answer: object, allowed: set[int]) -> None:
    """Check the status of an answer, and that nothing of the server's machine is in it."""
    assert answer.status_code in allowed, (answer.status_code, answer.text[:500])
    if answer.headers.get("content-type") != "application/octet-stream":
        assert not LEAK.search(answer.text), answer.text
        assert len(answer.text) < 5000
    shown = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
    assert not LEAK.search(shown), shown


def test_the_schema_names_every_path(paths: dict[str, list[str]]):
    assert paths == {
        "/health": ["GET"],
        "/model": ["GET"],
        "/metrics": ["GET"],
        "/head": ["GET"],
        "/score": ["POST"],
    }


NAMES = st.sampled_from(
    ["Content-Type", "Content-Length", "Transfer-Encoding", "Accept", "Host", "Range", "Cookie",
     "X-Forwarded-For", "Expect", "Upgrade", "Connection", "Content-Encoding", "If-None-Match"]
)  # fmt: skip
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20) | st.sampled_from(
    ["-1", "9" * 30, "gzip", "chunked", "bytes=0-1", "application/json", "websocket", "../../etc"]
)
TOKENS = st.sampled_from(["", "Bearer", "Bearer x", f"bearer {TOKEN}", f"Bearer {TOKEN} x", TOKEN])


@fuzz(200)
@given(data=st.data())
def test_any_request_to_any_path_is_answered_without_a_fault(
    client: TestClient, paths: dict[str, list[str]], data: st.DataObject
):
    known = st.sampled_from(sorted(paths))
    odd = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=15)
    path = data.draw(known | known.map(lambda p: p + "/") | odd.map(lambda p: "/" + p))
    headers = data.draw(st.dictionaries(NAMES, VALUES, max_size=3))
    is_authorised = data.draw(st.booleans())
    headers["Authorization"] = f"Bearer {TOKEN}" if is_authorised else data.draw(TOKENS)
    content = data.draw(st.binary(max_size=200))
    method = data.draw(st.sampled_from(METHODS))
    try:
        request = client.build_request(method, path, content=content, headers=headers)
    except Exception as error:  # an address that no client can send
        assert type(error).__name__ == "InvalidURL"
        return
    answer = client.send(request, follow_redirects=False)
    allowed = {200, 307, 400, 404, 405, 413} if is_authorised else {200, 307, 401, 404, 405}
    check(answer, allowed)
    if not is_authorised and answer.status_code == 200:
        assert request.url.path == "/health"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 100, 639, 640, 2**31, 2**40, 2**62])
DTYPES = [torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.bool, torch.uint8]


def changed_tensor(data: st.DataObject, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of other values, another shape or another type."""
    kind = data.draw(st.sampled_from(["values", "cut", "shape", "type", "special"]))
    if kind == "values" and tensor.numel():
        tensor = tensor.clone()
        place = data.draw(st.integers(0, tensor.numel() - 1))
        tensor.view(-1)[place] = data.draw(NUMBERS)
    elif kind == "cut":
        tensor = tensor[: data.draw(st.integers(0, len(tensor)))]
    elif kind == "shape":
        tensor = data.draw(st.sampled_from([tensor[None], tensor.flatten(), tensor.sum()]))
    elif kind == "type":
        tensor = tensor.to(data.draw(st.sampled_from(DTYPES)))
    elif tensor.is_floating_point():
        tensor = tensor * data.draw(st.sampled_from([torch.nan, torch.inf, 1e38, 0.0]))
    return tensor.contiguous()


@fuzz(150)
@given(data=st.data())
def test_any_change_of_a_request_to_score_is_answered_or_refused(
    client: TestClient, body: bytes, data: st.DataObject
):
    tensors = load(body)
    length = int.from_bytes(body[:8], "little")
    request = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"])
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2, unique=True)):
        tensors[name] = changed_tensor(data, tensors[name])
    problem = request["problems"][0]
    for owner in data.draw(st.lists(st.sampled_from(["options", "problem"]), max_size=1)):
        part = problem if owner == "problem" else request["options"]
        key = data.draw(st.sampled_from(sorted(part)))
        part[key] = data.draw(JSON | NUMBERS | st.lists(NUMBERS, max_size=3) | st.booleans())
    content = save(tensors, {"request": json.dumps(request)})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    check(client.post("/score", content=content, headers=headers), {200, 400, 413})


@fuzz(150)
@given(header=JSON, tail=st.binary(max_size=50), length=NUMBERS | st.none())
def test_any_container_is_answered_or_refused(
    client: TestClient, header: object, tail: bytes, length: int | None
):
    text = json.dumps({"__metadata__": {"request": json.dumps(header)}, "a": header}).encode()
    size = (len(text) if length is None else length % 2**64).to_bytes(8, "little")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    check(client.post("/score", content=size + text + tail, headers=headers), {400})
