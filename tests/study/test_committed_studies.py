"""The numbers of docs/study.md follow from the records in studies/."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
CELL = re.compile(r"\| (none|[+-]?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)")
"""An estimate with its interval in a table."""


@pytest.mark.slow
def test_a_committed_study_follows_from_its_records_without_training(tmp_path: Path):
    folder = tmp_path / "gain"
    shutil.copytree(ROOT / "studies" / "gain", folder)
    (folder / "study.json").unlink()
    command = [
        "study",
        "study_gain",
        "--tables",
        "target,weight,divergence",
        "--output",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "vaopd", *command, "--budget-minutes", "0.001"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "55 runs, 55 of them finished before" in done.stderr + done.stdout
    found, written = (
        json.loads((place / "study.json").read_text())
        for place in (folder, ROOT / "studies" / "gain")
    )
    for part in ("rows", "means", "comparisons"):
        assert found[part] == written[part], part


def test_the_page_shows_the_numbers_of_the_committed_study():
    study = json.loads((ROOT / "studies" / "gain" / "study.json").read_text())
    means, gaps = (
        [one for one in study[part] if one["metric"] == "accuracy"]
        for part in ("means", "comparisons")
    )
    assert (len(means), len(gaps)) == (11, 8)
    for one in means:
        assert shown(one["arm"], one["mean"], one["low"], one["high"]), one
    for one in gaps:
        contains_zero = one["low"] < 0 < one["high"]
        # The page writes none for a difference that is not distinguishable.
        middle = None if contains_zero else one["difference"]
        assert shown(one["arm"], middle, one["low"], one["high"]), one


def test_what_the_page_says_of_single_seeds_follows_from_the_committed_study():
    study = json.loads((ROOT / "studies" / "gain" / "study.json").read_text())
    points = {
        (one["arm"], one["seed"]): 100 * one["value"]
        for one in study["rows"]
        if (one["table"], one["metric"]) == ("target", "accuracy")
    }

    def over(arm: str, other: str, seeds: range) -> list[float]:
        return [points[arm, seed] - points[other, seed] for seed in seeds]

    assert sum(gain > 0 for gain in over("contrast", "opd", range(10))) == 9
    assert fmean(over("contrast", "opd", range(5, 10))) == pytest.approx(1.3)
    assert fmean(over("sharpened", "opd", range(5, 10))) == pytest.approx(-0.8)
    assert fmean(over("contrast", "sharpened", range(10))) == pytest.approx(1.375)


def shown(arm: str, middle: float | None, low: float, high: float) -> bool:
    """Return whether a row of an arm has an estimate with its interval, rounded to 0.1 points."""
    wanted = [low, high] if middle is None else [middle, low, high]
    for row in (ROOT / "docs" / "study.md").read_text().splitlines():
        if row.startswith((f"| {arm} |", f"| {arm} (")):
            for found in CELL.findall(row):
                numbers = [float(text) for text in found if text != "none"]
                pairs = list(zip(numbers, wanted, strict=False))
                if len(numbers) == len(wanted) and all(abs(a - 100 * b) < 0.0501 for a, b in pairs):
                    return True
    return False


@pytest.mark.parametrize("file", sorted((ROOT / "studies").rglob("*.json")), ids=lambda f: f.name)
def test_a_committed_file_names_no_folder_of_a_machine(file: Path):
    assert not re.search(r'"/|(/tmp|/home|/root)/', file.read_text())
