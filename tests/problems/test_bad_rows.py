import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems.sources import load_problems, read_source


def row(**changes: Any) -> dict[str, Any]:
    return {"images": ["a.png"], "problem": "<image>Find x.", "answer": "5", **changes}


def write(folder: Path, *rows: dict[str, Any] | str) -> str:
    Image.new("L", (8, 6)).save(folder / "a.png")
    path = folder / "made.jsonl"
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_bad_rows_are_read_beside_the_good_ones_in_their_order(tmp_path: Path):
    twice = [row(id="same"), row(id="same")]
    source = write(tmp_path, row(), "{broken", row(problem="Find x."), *twice, row())
    problems, bad = read_source(source)
    # The number of a row stays in the id, so a corrected row changes no other problem's noise.
    assert [one.id for one in problems] == ["made:train:0", "same", "made:train:5"]
    assert [one.reason.partition(":")[0].partition(" (")[0] for one in bad] == [
        "made.jsonl row 2 is not JSON",
        "made.jsonl row 3",
        "made.jsonl row 5 has the id same of made.jsonl row 4; give every problem an id of its own,"
        " or drop the id column",
    ]


def test_one_bad_row_is_one_sentence(tmp_path: Path):
    with pytest.raises(ProblemError) as error:
        load_problems(write(tmp_path, row(), row(problem="Find x.")))
    assert str(error.value).startswith("made.jsonl row 2: problem made:train:1 has 0 <image>")
    assert "\n" not in str(error.value)


def test_ten_bad_rows_are_listed_and_the_others_counted(tmp_path: Path):
    source = write(tmp_path, row(), *[row(problem="Find x.") for _ in range(13)])
    with pytest.raises(ProblemError) as error:
        load_problems(source)
    first, *lines = str(error.value).splitlines()
    assert first == f"13 of 14 rows of {source} cannot be used; correct them:"
    places = [line.partition(":")[0] for line in lines[:10]]
    assert places == [f"  made.jsonl row {number}" for number in range(2, 12)]
    assert lines[10:] == ["  and 3 more"]


def test_a_sample_takes_the_same_rows_whether_they_are_bad_or_not(tmp_path: Path):
    good = write(tmp_path, *[row() for _ in range(20)])
    expected = [one.id for one in load_problems(f"{good}?sample=9&seed=3")]
    chosen = sorted(random.Random(3).sample(range(20), 9))
    assert expected == [f"made:train:{index}" for index in chosen]
    spoiled = {chosen[4], next(index for index in range(20) if index not in chosen)}
    rows = [row(answer=[]) if index in spoiled else row() for index in range(20)]
    problems, bad = read_source(f"{write(tmp_path, *rows)}?sample=9&seed=3")
    assert [one.id for one in problems] == expected[:4] + expected[5:]
    assert [one.reason.partition(":")[0] for one in bad] == [f"made.jsonl row {chosen[4] + 1}"]
