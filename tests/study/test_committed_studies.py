"""The numbers of docs/study.md follow from the records in studies/."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_committed_study_follows_from_its_records_without_training(tmp_path: Path):
    folder = tmp_path / "gain"
    shutil.copytree(ROOT / "studies" / "gain", folder)
    (folder / "study.json").unlink()
    command = ["study", "study_gain", "--tables", "target,weight", "--output", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "vaopd", *command, "--budget-minutes", "0.001"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "30 runs, 30 of them finished before" in done.stderr + done.stdout
    found, written = (
        json.loads((place / "study.json").read_text())
        for place in (folder, ROOT / "studies" / "gain")
    )
    for part in ("rows", "means", "comparisons"):
        assert found[part] == written[part], part


def test_the_page_shows_the_numbers_of_the_committed_study():
    text = (ROOT / "docs" / "study.md").read_text()
    study = json.loads((ROOT / "studies" / "gain" / "study.json").read_text())
    shown = {
        (one["arm"], one["metric"]): one for one in study["means"] if one["metric"] == "accuracy"
    }
    arms = ("base", "opd", "contrast", "sharpened", "va_opd", "no_suppress", "shuffled")
    for arm in arms:
        rows = [line for line in text.splitlines() if line.startswith(f"| {arm} | ")]
        mean = f"{100 * shown[arm, 'accuracy']['mean']:.1f}"
        assert any(f"| {mean} (" in row for row in rows), arm
    for one in study["comparisons"]:
        if one["metric"] == "accuracy" and one["arm"] in arms[2:]:
            low, high = (f"{100 * one[key]:.1f}" for key in ("low", "high"))
            assert f"none ({low} to {high})" in text


@pytest.mark.parametrize("file", sorted((ROOT / "studies").rglob("*.json")), ids=lambda f: f.name)
def test_a_committed_file_names_no_folder_of_a_machine(file: Path):
    assert not re.search(r'"/|(/tmp|/home|/root)/', file.read_text())
