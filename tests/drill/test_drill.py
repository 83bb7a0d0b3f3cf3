"""The quick drill: a little of every class of faults, without loss and without wrong results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.drill.sizes import FULL, QUICK
from tests.drill.tally import Tally

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_drill_loses_nothing(tmp_path: Path):
    output = tmp_path / "drill.json"
    command = [sys.executable, "-m", "tests.drill", "--quick", "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(output.read_text())
    assert {name for name, size in QUICK.items() if size} <= counts.keys()
    assert all(count["tried"] == count["survived"] > 0 for count in counts.values())


def test_both_drills_have_the_same_classes():
    assert QUICK.keys() == FULL.keys()
    assert sum(size for name, size in FULL.items() if name.startswith("SIGKILL")) == 1200


def test_counts_survive_the_end_of_the_drill(tmp_path: Path):
    Tally(tmp_path / "state.json").add_all({"one": 3, "two": 1}, "survived")
    again = Tally(tmp_path / "state.json")
    again.add("one", "lost", 1, "why")
    assert again.as_json()["one"] == {"tried": 4, "survived": 3, "lost": 1, "wrong": 0}
    assert (again.is_clean, again.notes) == (False, ["one: lost: why"])
