"""A run on a GPU begins with an allocator whose segments grow, unless the user chose another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vaopd.allocator import GROWING, OLDER, VARIABLE
from vaopd.rollouts.vllm.server import server_environment

# In place of torch: says how its allocator would be set when it is first imported.
TORCH = f"import os; print(os.environ.get({VARIABLE!r}), flush=True); os._exit(0)"

RECIPE = """
student: {model: "tiny:student"}
teacher: {model: "tiny:teacher-s"}
data: {train: "drawn:train?count=4"}
"""


def setting(folder: Path, *arguments: str, **variables: str) -> str:
    """Return the allocator's setting when a run imports torch."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    (folder / "recipe.yaml").write_text(RECIPE)
    kept = {name: text for name, text in os.environ.items() if name not in (VARIABLE, *OLDER)}
    done = subprocess.run(
        [sys.executable, "-m", "vaopd", "train", str(folder / "recipe.yaml"), *arguments],
        env=kept | {"PYTHONPATH": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_segments_grow_before_torch_is_imported(tmp_path: Path, device: str):
    assert setting(tmp_path, f"training.device={device}") == "expandable_segments:True"


def test_a_run_on_a_cpu_sets_no_allocator(tmp_path: Path):
    assert setting(tmp_path, "training.device=cpu") == "None"


@pytest.mark.parametrize("given", ["backend:cudaMallocAsync", ""])
def test_what_the_user_set_stays(tmp_path: Path, given: str):
    assert setting(tmp_path, **{VARIABLE: given}) == given


@pytest.mark.parametrize("name", OLDER)
def test_an_older_name_of_the_variable_counts_too(tmp_path: Path, name: str):
    # Torch would ignore it if the new name were set.
    assert setting(tmp_path, **{name: "max_split_size_mb:512"}) == "None"


def test_a_vllm_server_gets_the_users_allocator_and_not_the_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, GROWING)
    assert VARIABLE not in server_environment({})
    monkeypatch.setenv(VARIABLE, "max_split_size_mb:512")
    assert server_environment({})[VARIABLE] == "max_split_size_mb:512"
