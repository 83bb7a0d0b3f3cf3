"""Images at addresses: public servers only, within limits, each once; no test uses a network."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems import fetching
from vaopd.problems.fetching import ImageFetcher, is_public
from vaopd.problems.images import ImageRules
from vaopd.problems.sources import load_problems

Answer = Callable[[httpx2.Request], httpx2.Response]
PUBLIC = "93.184.215.14"


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6)).save(stream, "PNG")
    return stream.getvalue()


def ok(content: bytes) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(content))


class Web:
    """A stand-in for the internet: names, their addresses and the answers of their servers."""

    def __init__(self, folder: Path, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.names = {"a.example": [PUBLIC], "b.example": ["2606:2800:220:1::1"]}
        self.answer: Answer = lambda request: ok(png())
        self.asked: list[httpx2.Request] = []
        self.fetcher = ImageFetcher(
            folder,
            resolve=self.resolve,
            transport=httpx2.MockTransport(self.respond),
            clock=clock,
        )

    def resolve(self, host: str, port: int) -> list[str]:
        if host not in self.names:
            raise OSError(-2, "Name or service not known")
        return self.names[host]

    def respond(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return self.answer(request)

    def refusal(self, address: str = "https://a.example/x.png") -> str:
        with pytest.raises(ProblemError) as caught:
            self.fetcher.fetch(address)
        assert list(self.fetcher.folder.glob("*")) == []
        return str(caught.value)


@pytest.fixture
def web(tmp_path: Path) -> Web:
    return Web(tmp_path / "cache")


def test_an_image_is_downloaded_once_from_the_address_that_was_checked(web: Web):
    path = web.fetcher.fetch("https://a.example/x.png?size=1")
    assert path.read_bytes() == png()
    assert web.fetcher.fetch("https://a.example/x.png?size=1") == path
    (request,) = web.asked
    # Another look-up of the name might give another address than the one that was checked.
    assert str(request.url) == f"https://{PUBLIC}/x.png?size=1"
    assert request.headers["host"] == "a.example"
    assert request.extensions["sni_hostname"] == "a.example"
    assert [one.name for one in web.fetcher.folder.iterdir()] == [path.name]


def test_rows_name_addresses_if_that_is_allowed(web: Web, tmp_path: Path):
    row = '{"images": ["http://b.example:81/x"], "problem": "<image>Find x.", "answer": 5}'
    (tmp_path / "made.jsonl").write_text(row)
    rules = ImageRules(fetch=web.fetcher.fetch)
    (problem,) = load_problems(str(tmp_path / "made.jsonl"), images=rules)
    assert problem.load_images()[0].size == (8, 6)
    assert web.asked[0].headers["host"] == "b.example:81"


PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1",
    "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:93.184.215.14", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:53aa:64c::1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_never_asked(web: Web, address: str):
    assert not is_public(address)
    # One public address beside it makes the name no better.
    web.names["a.example"] = [PUBLIC, address]
    sentence = web.refusal()
    assert f"a.example is {address}, which is not a public address; download it your" in sentence
    assert web.asked == []


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1/", "127.0.0.1 is not a known host"),
        ("http://inside.example/", "inside.example is 10.0.0.5, which is not a public address"),
        ("file:///etc/passwd", "file:/etc/passwd is not an address of a web server"),
        ("//inside.example/", "inside.example is 10.0.0.5, which is not a public address"),
        ("/again", "it redirects more than 3 times"),
    ],
)
def test_a_redirect_is_checked_like_an_address(web: Web, location: str, reason: str):
    web.names["inside.example"] = ["10.0.0.5"]
    web.answer = lambda request: httpx2.Response(302, headers={"location": location})
    assert reason in web.refusal()
    assert {request.url.host for request in web.asked} == {PUBLIC}


def test_a_redirect_to_a_public_server_is_followed(web: Web):
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.headers["host"] == "a.example":
            return httpx2.Response(301, headers={"location": "https://b.example/y.png"})
        return ok(png())

    web.answer = answer
    assert web.fetcher.fetch("https://a.example/x.png").read_bytes() == png()
    assert str(web.asked[1].url) == "https://[2606:2800:220:1::1]/y.png"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://", "is not an address of a web server"),
        ("http://nowhere.example/", "nowhere.example is not a known host"),
        ("http://a.example:99999/", "http://a.example:99999/ is not an address of a web ser"),
        ("http://[::1/", "InvalidURL"),
        ("http://a b/", "a%20b is not a known host"),
        ("http://" + "x" * 300 + ".example/", "is not a known host"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(web: Web, address: str, reason: str):
    sentence = web.refusal(address)
    assert reason in sentence and sentence.endswith("; download it yourself and name the file")


@pytest.mark.parametrize("status", [204, 400, 401, 404, 500])
def test_an_answer_that_is_not_200_is_one_sentence(web: Web, status: int):
    web.answer = lambda request: httpx2.Response(status, content=b"no")
    assert f"the server answers with status {status}; download" in web.refusal()


def test_a_server_that_breaks_off_is_one_sentence(web: Web):
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("no bytes for 10 s")

    web.answer = answer
    assert "cannot be downloaded: ReadTimeout: no bytes for 10 s; download it" in web.refusal()


def test_an_endless_answer_ends_at_the_limit_of_size(web: Web):
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(2**20)

    web.answer = lambda request: httpx2.Response(200, content=endless())
    assert "it has more than 32 MiB; download it yourself" in web.refusal()
    assert len(sent) == 33


def test_an_answer_that_drips_ends_at_the_limit_of_time(tmp_path: Path):
    now = iter(range(1000))
    web = Web(tmp_path / "cache", clock=lambda: float(next(now)))
    dripped: list[int] = []

    def drips() -> Iterator[bytes]:
        while True:
            dripped.append(1)
            yield b"."

    web.answer = lambda request: httpx2.Response(200, content=drips())
    assert "it did not arrive in 30 s; download it yourself" in web.refusal()
    assert len(dripped) == fetching.SECONDS + 1


def test_a_bomb_that_unpacks_itself_is_not_unpacked(web: Web):
    web.answer = lambda request: httpx2.Response(
        200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(b"\x1f\x8b packed")
    )
    assert web.fetcher.fetch("https://a.example/x").read_bytes() == b"\x1f\x8b packed"
    assert web.asked[0].headers["accept-encoding"] == "identity"
