import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from fake_vllm import fake_python

from vaopd.errors import ConfigError, EngineError
from vaopd.rollouts.vllm.server import PYTHON_VARIABLE, VllmServer, find_python


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interpreter_without_vllm_or_none_is_wrong_usage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"not installed for .*by --vllm-python or VAOPD_VLLM_PY"):
        find_python(None, "--vllm-python")
    with pytest.raises(ConfigError, match="'/nowhere/python' is not a Python interpreter"):
        find_python("/nowhere/python", "--vllm-python")


def test_the_variable_names_the_interpreter_and_the_option_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other").mkdir()
    given, by_variable = fake_python(tmp_path), fake_python(tmp_path / "other")
    monkeypatch.setenv(PYTHON_VARIABLE, str(by_variable))
    assert find_python(None, "--vllm-python") == str(by_variable)
    assert find_python(str(given), "--vllm-python") == str(given)


def test_a_folder_called_vllm_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not installed"):
        find_python(sys.executable, "--vllm-python")


def test_a_server_answers_until_it_is_closed(tmp_path: Path):
    lines: list[str] = []
    log = tmp_path / "logs" / "vllm.log"
    python = str(fake_python(tmp_path))
    server = VllmServer(
        "folder", python=python, log=log, arguments=["--dtype", "float32"], say=lines.append
    )
    try:
        assert httpx2.get(f"{server.address}/health").status_code == 200
        server.check()
        assert server.address.startswith("http://127.0.0.1:")
    finally:
        server.close()
    assert server.process.returncode == -signal.SIGTERM
    assert not is_running(server.process.pid)
    text = log.read_text()
    assert "--model folder --host 127.0.0.1" in text
    assert text.rstrip().endswith("--enforce-eager --max-num-batched-tokens 32768 --dtype float32")
    assert str(log) in lines[0] and "vLLM answers after" in lines[-1]


def test_a_server_that_fails_to_start_is_one_sentence_with_its_log(tmp_path: Path):
    python = fake_python(tmp_path, "echo no memory; exit 3")
    log = tmp_path / "vllm.log"
    with pytest.raises(EngineError, match=rf"ended with exit code 3; see {log}"):
        VllmServer("folder", python=str(python), log=log)
    assert log.read_text() == "no memory\n"


def test_a_server_that_was_killed_is_noticed_and_its_workers_end_with_it(tmp_path: Path):
    # The server starts a worker of its own, as vLLM does, before it serves.
    script = fake_python(tmp_path).read_text().splitlines()[-1]
    worker = tmp_path / "worker"
    python = fake_python(tmp_path, f'sleep 600 & echo $! > "{worker}"\n{script}')
    server = VllmServer("folder", python=str(python), log=tmp_path / "vllm.log")
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    with pytest.raises(EngineError, match="exit code -9"):
        server.check()
    pid = int(worker.read_text())
    assert is_running(pid)
    server.close()
    wait_until_gone(pid)


def test_a_trainer_that_is_killed_takes_its_server_along(tmp_path: Path):
    code = (
        "import sys, time, pathlib\n"
        "from vaopd.rollouts.vllm.server import VllmServer\n"
        f"server = VllmServer('m', python={sys.executable!r}, log=pathlib.Path(sys.argv[1]))\n"
    )
    # The launch code itself, with a module in vLLM's place that only waits.
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    pid_file = tmp_path / "pid"
    (package / "api_server.py").write_text(
        f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    launcher = tmp_path / "python"
    launcher.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{tmp_path / "site"}"\nexec "{sys.executable}" "$@"\n'
    )
    launcher.chmod(0o755)
    code = code.replace(repr(sys.executable), repr(str(launcher)))
    trainer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "vllm.log")])
    deadline = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int(pid_file.read_text())
    trainer.kill()
    trainer.wait()
    wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 120
    while is_running(pid):
        # A process that ended may wait for its parent, which is not us.
        state = Path(f"/proc/{pid}/stat")
        if state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)
