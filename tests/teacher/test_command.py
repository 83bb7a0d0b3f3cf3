"""``vaopd serve-teacher`` until it serves; the serving itself is in tests/integration."""

import builtins
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.certificates import make_certificate

from vaopd.teacher.remote import server
from vaopd.teacher.remote.server import listen

VARIABLE = "VAOPD_TEACHER_TOKEN"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been served, and nothing is."""
    found: list[tuple] = []

    def take(app: object, listener: object, *files: object) -> None:
        found.append((app, listener, files))
        listener.close()

    monkeypatch.setattr(server, "run_server", take)
    monkeypatch.setattr(server, "make_app", lambda model, info, token: (model, info, token))
    monkeypatch.delenv(VARIABLE, raising=False)
    return found


def test_a_token_is_made_and_printed_where_none_is_given(run: Callable, served: list[tuple]):
    code, out, _ = run("serve-teacher", "tiny:new-teacher-s", "--port", 0)
    assert code == 0
    (_, info, token), _, _ = served[0]
    first, second = out.splitlines()
    assert first == f"{VARIABLE}={token}"
    assert len(token) > 30
    assert second.startswith("serving tiny:new-teacher-s (float32, on cpu): http://127.0.0.1:")
    assert info.max_request_bytes == 1_024_000_000
    assert run("serve-teacher", "tiny:new-teacher-s", "--port", 0)[0] == 0
    assert served[1][0][2] != token


def test_a_token_that_is_given_is_not_printed(
    run: Callable, served: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    file.chmod(0o600)
    monkeypatch.setenv(VARIABLE, "of-the-environment")
    arguments = ("serve-teacher", "tiny:new-teacher-s", "teacher.dtype=bfloat16", "--port", 0)
    for extra, token in ((("--token-file", file), "of-the-file"), ((), "of-the-environment")):
        code, out, _ = run(*arguments, *extra)
        assert (code, token in out) == (0, False)
        (_, info, found), _, _ = served.pop()
        assert (found, info.dtype) == (token, "bfloat16")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_token_that_others_can_read_is_refused_with_the_remedy(
    run: Callable, served: list[tuple], tmp_path: Path, mode: int
):
    file = tmp_path / "a token"
    file.write_text("of-the-file\n")
    file.chmod(mode)
    code, _, err = run("serve-teacher", "tiny:new-teacher-s", "--token-file", file)
    assert code == 2
    assert f"can be read by other users (mode {mode:04o}); run chmod 600 '{file}'" in err
    assert served == []


def test_a_file_that_is_longer_than_a_token_is_not_read(
    run: Callable, served: list[tuple], tmp_path: Path
):
    file = tmp_path / "model.safetensors"
    file.touch(0o600)
    with file.open("r+b") as opened:
        opened.truncate(50 * 2**30)
    code, _, err = run("serve-teacher", "tiny:new-teacher-s", "--token-file", file)
    assert (code, "is longer than a token; name its file" in err) == (2, True)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff\xfe", "schlüssel".encode()])
def test_a_file_without_a_token_is_a_sentence(
    run: Callable, served: list[tuple], tmp_path: Path, content: bytes
):
    file = tmp_path / "token"
    file.write_bytes(content)
    code, _, err = run("serve-teacher", "tiny:new-teacher-s", "--token-file", file)
    assert code == 2
    assert err.startswith(f"error: --token-file {file} ")
    assert served == []


def test_a_taken_port_is_a_sentence_before_a_model_is_loaded(run: Callable, served: list[tuple]):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve-teacher", "no/such-model", "--port", port)
    assert code == 1
    assert err == (
        f"error: cannot listen on 127.0.0.1 port {port} (Address already in use); choose another "
        "--port or --host\n"
    )


def test_without_the_extra_one_sentence_says_how_to_get_it(
    run: Callable, monkeypatch: pytest.MonkeyPatch
):
    real = builtins.__import__

    def without(name: str, *arguments: object, **options: object):
        if name == "vaopd.teacher.remote" and "server" in (arguments[2] or ()):
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = run("serve-teacher", "tiny:new-teacher-s")
    assert (code, err) == (
        2,
        "error: vaopd serve-teacher needs the package fastapi; install it with pip install "
        "'vaopd[serve]'\n",
    )


def test_stopping_by_hand_is_not_a_failure(
    run: Callable, served: list[tuple], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(app: object, listener: object, *files: object) -> None:
        listener.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run_server", interrupted)
    code, out, err = run("serve-teacher", "tiny:new-teacher-s", "--port", 0)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "stopped"


def test_a_wrong_override_is_a_sentence(run: Callable):
    code, _, err = run("serve-teacher", "tiny:new-teacher-s", "teacher.dtyp=bfloat16")
    assert code == 2
    assert "unknown key teacher.dtyp; did you mean teacher.dtype?" in err


def test_a_server_with_a_certificate_is_served_as_https(
    run: Callable, served: list[tuple], tmp_path: Path
):
    made = make_certificate(tmp_path, "teacher")
    options = ("--tls-cert", made.file, "--tls-key", made.key, "--host", "0.0.0.0")
    code, out, err = run("serve-teacher", "tiny:new-teacher-s", "--port", 0, *options)
    assert (code, err) == (0, "")
    assert "(float32, on cpu): https://0.0.0.0:" in out
    assert served[0][2] == (made.file, made.key)


def test_a_file_that_is_no_certificate_is_a_sentence(
    run: Callable, served: list[tuple], tmp_path: Path
):
    made = make_certificate(tmp_path, "teacher")
    options = ("--tls-cert", tmp_path / "missing", "--tls-key", made.key)
    code, _, err = run("serve-teacher", "tiny:new-teacher-s", "--port", 0, *options)
    assert (code, served) == (2, [])
    assert err == (
        f"error: --tls-cert {tmp_path / 'missing'} is not a file; give the path of a PEM file\n"
    )


@pytest.mark.parametrize(("host", "count"), [("0.0.0.0", 1), ("127.0.0.1", 0), ("localhost", 0)])
def test_a_server_without_a_certificate_warns_where_others_can_reach_it(
    run: Callable, served: list[tuple], caplog: pytest.LogCaptureFixture, host: str, count: int
):
    assert run("serve-teacher", "tiny:new-teacher-s", "--port", 0, "--host", host)[0] == 0
    sentence = "without --tls-cert the token and all data travel in the clear"
    assert [r.getMessage() for r in caplog.records].count(sentence) == count
