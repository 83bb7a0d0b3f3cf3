"""https between a trainer and a teacher's server: who is trusted, and what is said otherwise."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.certificates import Certificate, make_certificate
from tests.teacher_service import TOKEN, Serving, description, serve_app

from vaopd.config import RunConfig
from vaopd.errors import ConfigError, EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.remote.client import connect_teacher
from vaopd.teacher.remote.pool import Address, Question
from vaopd.teacher.remote.server import make_app
from vaopd.teacher.remote.tls import check_server_files, client_context, is_exposed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("ours"), "teacher")


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    return load_model("tiny:new-teacher-s", device=CPU, **options)


@pytest.fixture(scope="module")
def served(model: VisionLanguageModel, ours: Certificate) -> Iterator[Serving]:
    app = make_app(model, description(model), TOKEN)
    serving = serve_app(app, ssl_certfile=ours.file, ssl_keyfile=ours.key)
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def student() -> VisionLanguageModel:
    options = {"dtype": torch.float32, "compute_dtype": torch.float32}
    return load_model("tiny:new-student", device=CPU, **options)


Recipe = Callable[..., RunConfig]


def test_a_trainer_uses_a_server_whose_certificate_it_was_given(
    served: Serving, ours: Certificate, student, model, recipe: Recipe, token: str
):
    assert served.url.startswith("https://127.0.0.1:")
    teacher = connect_teacher(recipe(served.url, ca_file=str(ours.file)), student, CPU)
    assert teacher.head.equal(model.head)
    teacher.close()


def test_a_certificate_of_an_unknown_issuer_is_refused_at_once(
    served: Serving, student, recipe: Recipe, token: str
):
    with pytest.raises(EngineError) as caught:
        connect_teacher(recipe(served.url), student, CPU)
    assert str(caught.value) == (
        f"the certificate of {served.url} is refused (self-signed certificate); set "
        "teacher.ca_file to the certificate that issued it, or correct teacher.addresses"
    )


def test_the_certificate_of_another_server_is_refused(
    served: Serving, student, recipe: Recipe, token: str, tmp_path: Path
):
    other = make_certificate(tmp_path, "other")
    with pytest.raises(EngineError, match=r"is refused \(self-signed certificate\)"):
        connect_teacher(recipe(served.url, ca_file=str(other.file)), student, CPU)


def test_a_certificate_of_another_name_is_refused(serve_plain: Callable, tmp_path: Path):
    other = make_certificate(tmp_path, "other", "DNS:teacher.example")
    serving = serve_app(lambda *_: None, ssl_certfile=other.file, ssl_keyfile=other.key)
    try:
        address = Address(serving.url, TOKEN, 60.0, client_context(str(other.file)))
        with pytest.raises(EngineError, match="IP address mismatch"):
            address.ask(Question("GET", "/model"))
    finally:
        serving.stop()


def test_plain_http_to_another_machine_is_warned_about(
    student, recipe: Recipe, token: str, patience: None, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(EngineError, match="no teacher answers"):
        connect_teacher(recipe("http://teacher.invalid:1", "http://127.0.0.1:1"), student, CPU)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "the token and all data travel to http://teacher.invalid:1 in the clear; use https"
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8777", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:8777", False),
        ("http://LOCALHOST:8777", False),
        ("https://10.0.0.5:8777", False),
        ("http://10.0.0.5:8777", True),
        ("http://[fe80::1]:8777", True),
        ("http://localhost.example:8777", True),
        ("http://0.0.0.0:8777", True),
    ],
)
def test_only_http_to_other_machines_is_exposed(url: str, expected: bool):
    assert is_exposed(url) is expected


@pytest.mark.parametrize("url", ["http://[::1", "http://a:b", "http://[zz]:1", "https://☃.com"])
def test_an_address_that_cannot_be_one_is_a_sentence(student, recipe: Recipe, token: str, url: str):
    with pytest.raises(ConfigError, match=r"which is not an address \(.*\); write it as https://"):
        connect_teacher(recipe(url), student, CPU)


# --- files --------------------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "text": b"no certificate\n",
    "cut": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_of_certificates_is_a_sentence(
    ours: Certificate, tmp_path: Path, content: bytes
):
    file = tmp_path / "damaged.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    for cert, key in ((file, ours.key), (ours.file, file)):
        with pytest.raises(ConfigError, match=r"^--tls-cert .* cannot be used \(not PEM, or .*\);"):
            check_server_files(cert, key)
    with pytest.raises(ConfigError, match=r"^teacher.ca_file .*damaged.pem cannot be used \("):
        client_context(str(file))


def test_a_file_that_is_missing_or_too_large_is_a_sentence(ours: Certificate, tmp_path: Path):
    large, missing = tmp_path / "large", tmp_path / "missing"
    with large.open("wb") as file:
        file.truncate(50 * 2**30)
    for path, sentence in (
        (missing, "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        (large, "is longer than a file of certificates"),
    ):
        for check in (
            lambda path: check_server_files(path, ours.key),
            lambda path: check_server_files(ours.file, path),
            lambda path: client_context(str(path)),
        ):
            with pytest.raises(ConfigError, match=sentence):
                check(path)


def test_a_certificate_and_the_key_of_another_are_a_sentence(ours: Certificate, tmp_path: Path):
    other = make_certificate(tmp_path, "other")
    with pytest.raises(
        ConfigError, match=r"cannot be used \(.*\); give a PEM file of the server's"
    ):
        check_server_files(ours.file, other.key)
    check_server_files(other.file, other.key)


def test_one_file_without_the_other_is_a_sentence(ours: Certificate):
    with pytest.raises(ConfigError, match="--tls-cert is given without --tls-key; give both"):
        check_server_files(ours.file, None)
    with pytest.raises(ConfigError, match="--tls-key is given without --tls-cert; give both"):
        check_server_files(None, ours.key)
    check_server_files(None, None)


def test_a_key_that_others_can_read_is_refused_with_the_remedy(ours: Certificate, tmp_path: Path):
    key = tmp_path / "key"
    key.write_bytes(ours.key.read_bytes())
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"--tls-key .* \(mode 0644\); run chmod 600 "):
        check_server_files(ours.file, key)
