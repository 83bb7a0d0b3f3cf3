"""Building an environment with vLLM by stand-ins for uv, pip and the interpreter."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vaopd.rollouts.vllm.environment import recorded_python
from vaopd.rollouts.vllm.setup import LOCKS, MARKER, VllmBuild, torch_requirement

Run = Callable[..., tuple[int, str, str]]

UV = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = venv ]; then
    for folder in "$@"; do :; done
    mkdir -p "$folder/bin" "$folder/lib/python3.11/site-packages"
    cp {interpreter} "$folder/bin/python"
fi
{further}
"""
INTERPRETER = """#!/bin/sh
case "$*" in
    *pip*) echo "$@" >> {log} ;;
    *"import vllm"*) {answer} ;;
    *) exit 9 ;;
esac
"""


class Machine:
    """A machine on which uv, if it has it, only writes down what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log = folder, folder / "log"
        self.target = folder / "my vllm"
        self.interpreter = folder / "interpreter"
        self.imports("echo INFO; echo 0.32.0")
        self.uv = folder / "bin" / "uv"
        self.uv.parent.mkdir()
        self.installs("")
        monkeypatch.setenv("PATH", f"{self.uv.parent}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "settings"))

    def write(self, path: Path, text: str, **values: object) -> None:
        quoted = {"log": shlex.quote(str(self.log)), "interpreter": self.interpreter}
        path.write_text(text.format(**{**quoted, **values}))
        path.chmod(0o755)

    def imports(self, answer: str) -> None:
        self.write(self.interpreter, INTERPRETER, answer=answer)

    def installs(self, further: str) -> None:
        self.write(self.uv, UV, further=further)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def is_complete(self) -> bool:
        return json.loads((self.target / MARKER).read_text())["is_complete"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_an_environment_is_built_from_the_lock_and_found_afterwards(machine: Machine, run: Run):
    code, out, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert code == 0, err
    python = machine.target / "bin" / "python"
    assert machine.asked == [
        f"venv --quiet --allow-existing --python {sys.executable} {machine.target}",
        f"pip install --python {python} --no-deps --require-hashes --requirement {LOCKS}/cuda.txt",
    ]
    assert out == (
        f"vLLM 0.32.0 is ready in {machine.target}\n"
        f"sampling.engine=auto finds it; a recipe names it by sampling.vllm.python={python}\n"
    )
    assert "for cuda with uv" in err
    assert recorded_python() == str(python)
    assert machine.is_complete


def test_a_cpu_gets_its_own_torch_and_a_torchvision_that_loads(machine: Machine, run: Run):
    assert run("setup-vllm", machine.target, "--device", "cpu")[0] == 0
    packages, torch = machine.asked[1:]
    assert packages.endswith(f"--require-hashes --requirement {LOCKS}/cpu.txt")
    assert torch.endswith(
        "--no-deps --extra-index-url https://download.pytorch.org/whl/cpu " + torch_requirement()
    )
    (site,) = machine.target.glob("lib/*/site-packages")
    assert "DeclareOperators" in (site / "sitecustomize.py").read_text()


def test_the_index_of_torch_can_be_left_to_the_settings_of_the_installer(tmp_path: Path):
    build = VllmBuild(folder=tmp_path, variant="cpu", torch_index="")
    assert not any(
        "--extra-index-url" in word for command in build.commands("uv") for word in command
    )


def test_building_again_installs_nothing_and_records_it_again(machine: Machine, run: Run):
    run("setup-vllm", machine.target, "--device", "cuda")
    before = len(machine.asked)
    (machine.folder / "settings" / "vaopd" / "vllm.json").unlink()
    code, _, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert code == 0 and "is complete; nothing is installed" in err
    assert len(machine.asked) == before
    assert recorded_python() is not None


def test_other_locked_versions_are_installed_into_the_same_folder(machine: Machine, run: Run):
    run("setup-vllm", machine.target, "--device", "cuda")
    marker = machine.target / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "lock": "an older one"}))
    assert run("setup-vllm", machine.target, "--device", "cuda")[0] == 0
    assert len(machine.asked) == 4


def test_a_failed_installer_is_one_sentence_and_is_repeated_next_time(machine: Machine, run: Run):
    machine.installs('[ "$1" = venv ] || exit 7')
    code, out, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ") and "ended with exit code 7" in err
    assert not machine.is_complete and recorded_python() is None
    machine.installs("")
    assert run("setup-vllm", machine.target, "--device", "cuda")[0] == 0
    assert machine.is_complete


def test_a_build_that_was_killed_is_continued_by_the_same_command(machine: Machine):
    command = [sys.executable, "-m", "vaopd", "setup-vllm", machine.target, "--device", "cuda"]
    machine.installs('[ "$1" = venv ] || kill -9 $PPID')
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert not machine.is_complete and recorded_python() is None
    machine.installs("")
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert machine.is_complete and recorded_python() == str(machine.target / "bin" / "python")


def test_a_vllm_that_cannot_be_imported_is_not_recorded(machine: Machine, run: Run):
    machine.imports("echo 'ImportError: libcuda.so.1 is missing' >&2; exit 1")
    code, _, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert code == 1
    assert "cannot be imported (ImportError: libcuda.so.1 is missing)" in err
    assert not machine.is_complete and recorded_python() is None


def test_folders_of_others_are_refused_and_left_alone(machine: Machine, run: Run):
    machine.target.mkdir()
    (machine.target / "thesis.tex").write_text("mine")
    code, _, err = run("setup-vllm", machine.target)
    assert code == 2
    assert f"{machine.target} is not empty and was not made by vaopd setup-vllm" in err
    assert [path.name for path in machine.target.iterdir()] == ["thesis.tex"]
    code, _, err = run("setup-vllm", machine.target / "thesis.tex")
    assert code == 2 and "is a file and was not made by" in err
    assert machine.asked == []


def test_an_environment_for_a_cpu_does_not_become_one_for_a_gpu(machine: Machine, run: Run):
    run("setup-vllm", machine.target, "--device", "cpu")
    code, _, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert code == 2
    assert "with variant cpu, and cuda is wanted; choose another folder" in err


def test_without_uv_the_python_of_the_command_builds_it(
    machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch
):
    machine.uv.unlink()
    # In place of this interpreter: makes the folder, as `python -m venv DIR` does.
    script = '#!/bin/sh\necho "$@" >> {log}\nmkdir -p "$3/bin"\ncp {interpreter} "$3/bin/python"\n'
    python = machine.folder / "python3"
    machine.write(python, script)
    monkeypatch.setattr(sys, "executable", str(python))
    code, _, err = run("setup-vllm", machine.target, "--device", "cuda")
    assert code == 0, err
    assert "with venv and pip" in err
    assert machine.asked == [
        f"-m venv {machine.target}",
        f"-m pip install --no-deps --require-hashes --requirement {LOCKS}/cuda.txt",
    ]


def test_a_gpu_that_is_there_decides_what_is_built(
    machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch
):
    for there, variant in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("vaopd.devices.has_gpu", lambda there=there: there)
        _, _, err = run("setup-vllm", machine.folder / variant)
        assert f"for {variant} with uv" in err
