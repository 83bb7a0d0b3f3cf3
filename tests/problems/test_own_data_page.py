"""The examples of docs/own_data.md are read as the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems, read_source

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
BLOCKS = dict(re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of the page, and stand beside them."""
    (tmp_path / "figures").mkdir()
    Image.new("L", (8, 6)).save(tmp_path / "figures" / "1.png")
    Image.new("L", (16, 12)).save(tmp_path / "figures" / "2.png")
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(problems: Any) -> list[tuple[str, str | None]]:
    assert all(one.load_images()[0].size == (8, 6) for one in problems)
    return [(one.prompt, one.answer) for one in problems]


ONE = ("<image>How long is AB?", "5")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows.jsonl", [ONE, ONE, ONE]),
        ("rows.json", [("<image>\nHow long is AB?", "5")]),
        ("rows.csv", [ONE, ('<image>Is AB longer than BC, in "cm"?', "yes")]),
        ("figures", [ONE]),
        ("annotated.jsonl", [ONE]),
    ],
)
def test_each_form_is_read(folder: Path, name: str, expected: list[tuple[str, str]]):
    assert asked(load_problems(name)) == expected


def test_the_teacher_has_the_image_of_its_own(folder: Path):
    (problem,) = load_problems("annotated.jsonl")
    assert problem.for_teacher().load_images()[0].size == (16, 12)


def test_the_mapping_is_read(folder: Path):
    data = yaml.safe_load((folder / "mapped.yaml").read_text())["data"]
    assert asked(load_problems(data["train"], columns=data["columns"])) == [ONE]


def test_the_example_in_python_gives_problems(folder: Path):
    names: dict[str, Any] = {}
    exec((folder / "example.py").read_text(), names)
    held_out: list[Problem] = names["data"]["validation"]
    assert held_out[0].prompt == "<image>How long is AB?\nAnswer in cm."
    from vaopd.problems.reading import reading_rules

    problems, bad = read_source(names["rows"], rules=reading_rules(names["config"].data))
    assert ([one.reason for one in bad], asked(problems)) == ([], [ONE])


def test_every_example_is_tested():
    assert set(BLOCKS) == {
        *("rows.jsonl", "rows.json", "rows.csv", "figures/metadata.csv", "annotated.jsonl"),
        *("mapped.yaml", "mapped.jsonl", "example.py"),
    }
