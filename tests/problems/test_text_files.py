"""Problems in JSON files of one array and in CSV files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems.files import count_rows
from vaopd.problems.problem import Problem
from vaopd.problems.rows import csv_rows
from vaopd.problems.sources import load_problems, read_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    Image.new("L", (8, 6), 7).save(tmp_path / "figures" / "1.png")
    return tmp_path


def csv_file(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "made.csv").write_bytes(text.encode(encoding))
    return str(folder / "made.csv")


def json_file(folder: Path, content: Any) -> str:
    path = folder / "made.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


ROW = {"images": ["figures/1.png"], "problem": "<image>How long is AB?", "answer": "5"}


# --- JSON -----------------------------------------------------------------------------------------


def test_a_json_array_is_read_as_the_same_rows_of_jsonl(folder: Path):
    rows = [ROW, {**ROW, "id": "b", "references": ["It is 5."]}]
    (folder / "made.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = json_file(folder, rows)
    assert load_problems(source) == load_problems(str(folder / "made.jsonl"))
    assert count_rows(Path(source), "train") == 2


def test_a_json_array_of_conversations_is_read(folder: Path):
    row = {
        "conversations": [
            {"from": "human", "value": "<image>How long is AB?"},
            {"from": "gpt", "value": "\\boxed{5}"},
        ],
        "image": "figures/1.png",
    }
    (one,) = load_problems(json_file(folder, [row]))
    assert (one.prompt, one.answer) == ("<image>How long is AB?", "5")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"problem": ""}', r"^made\.json is a JSON dict; write one array of objects"),
        ('{"a": 1}\n{"a": 2}', r"made\.json is not JSON \(Extra data.*; write one array .*\.jsonl"),
        ("[{]", r"made\.json is not JSON \(Expecting property name"),
        ("[" * 100_000, r"made\.json is not JSON \(nested too deeply\)"),
        ("[]", r"made \(train\) has no rows"),
    ],
)
def test_a_json_file_that_is_not_an_array_is_one_sentence(
    folder: Path, content: str, sentence: str
):
    with pytest.raises(ProblemError, match=sentence):
        load_problems(json_file(folder, content))


def test_elements_of_a_json_array_that_are_not_objects_are_bad_rows(folder: Path):
    problems, bad = read_source(json_file(folder, [ROW, [1], ROW]))
    assert [one.id for one in problems] == ["made:train:0", "made:train:2"]
    assert [one.reason for one in bad] == [
        "made.json row 2 is a JSON list; write an array of objects"
    ]


def test_a_json_file_too_large_to_be_read_whole_is_refused(folder: Path):
    path = Path(json_file(folder, ""))
    with path.open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(ProblemError, match=r"has 2147483648 bytes, over the .*; write it as \.jso"):
        load_problems(str(path))


# --- CSV ------------------------------------------------------------------------------------------

TABLE = """\
id,question,image,answer,note
a,How long is AB?,figures/1.png,5,x
b,"What is <image>, in ""cm""?",figures/1.png,"5, or so",

c,"Two
lines",figures/1.png,,
"""


def test_rows_of_csv_are_problems_with_an_image_beside_the_file(folder: Path):
    first, second, third = load_problems(csv_file(folder, TABLE))
    assert first == Problem(
        id="a",
        prompt="<image>How long is AB?",
        images=(folder / "figures/1.png",),
        answer="5",
        source="made",
        split="train",
    )
    assert (second.prompt, second.answer) == ('What is <image>, in "cm"?', "5, or so")
    assert (third.prompt, third.answer) == ("<image>Two\nlines", None)
    assert count_rows(folder / "made.csv", "train") == 3


def test_excels_byte_order_mark_and_line_ends_are_read(folder: Path):
    text = "question,image,answer\r\nWie groß?,figures/1.png,5\r\n"
    (one,) = load_problems(csv_file(folder, text, "utf-8-sig"))
    assert one.prompt == "<image>Wie groß?"


def test_a_csv_cell_may_hold_several_images_and_references_as_json(folder: Path):
    cells = ['["figures/1.png", "figures/1.png"]', "Which?", '["One.", "Two."]']
    text = io.StringIO()
    csv.writer(text).writerows([["images", "problem", "references"], cells])
    (one,) = load_problems(csv_file(folder, text.getvalue()))
    assert one.prompt == "<image><image>Which?"
    assert len(one.images) == 2
    assert one.references == ("One.", "Two.")


def test_a_csv_with_prompt_and_solution_is_read_as_jsonl_with_them(folder: Path):
    (one,) = load_problems(csv_file(folder, "prompt,image,solution\nHow?,figures/1.png,5\n"))
    assert (one.prompt, one.answer) == ("<image>How?", "5")


H = "question,image,answer\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("text,image\nx,y\n", r"^made\.csv has no column for the question; its columns are ima"),
        ("question,file\nx,y\n", r"^made\.csv has no column for the image; its columns are file"),
        ("question;image;answer\n", r"^made\.csv line 1 is question;image;answer, without a comma"),
        ("a,image,a\n", r"^made\.csv line 1 names the column a twice; rename one"),
        (H + 'x,figures/1.png,5\n"y,z\nw\n', r"^made\.csv line 3 begins a cell with a quote that"),
        (H + '"x"y,z,5\n', r"^made\.csv line 2 is not CSV \(.*; write a quote inside"),
        (H + "\n\nx,y,5,6\n", r"^made\.csv line 4 has 4 cells and the header 3; put quotes around"),
        (H + "x,figures/1.png\n", r"^made\.csv line 2 has 2 cells and the header 3; put quotes"),
        (H + "x,gone.png,5\n", r"^made\.csv line 2: the image gone\.png is not in "),
        (H + ",figures/1.png,5\n", r"^made\.csv line 2: question is empty; write the question"),
        (H + "x,,5\n", r"^made\.csv line 2: problem made:train:0 has no image"),
        (H + '"x' + "y" * 2**24 + '",z,5', r"made\.csv has a line of more than 16 MiB; write"),
        (H + '"x' + "y\n" * 2**24, r"^made\.csv line 2 begins a cell with a quote that is not clo"),
        ("", r"^made\.csv has no column for the question; its columns are none; rename"),
        (H, r"made \(train\) has no rows"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_csv_that_is_not_well_formed_is_one_sentence(folder: Path, text: str, sentence: str):
    with pytest.raises(ProblemError, match=sentence) as caught:
        load_problems(csv_file(folder, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_csv_that_is_not_utf_8_is_one_sentence(folder: Path):
    source = csv_file(folder, H + "Wie groß?,figures/1.png,5\n", "latin-1")
    with pytest.raises(ProblemError, match=r"^made\.csv line \d or a later one is not UTF-8 \("):
        load_problems(source)


def test_a_row_with_too_many_cells_is_counted_and_the_others_keep_their_ids(folder: Path):
    text = H + "x,figures/1.png,5\nx,y,z,5\n" + "x,figures/1.png,5\n"
    problems, bad = read_source(csv_file(folder, text))
    assert [one.id for one in problems] == ["made:train:0", "made:train:2"]
    assert len(bad) == 1


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n",'), min_size=1)


@settings(max_examples=100)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
):
    path = tmp_path_factory.mktemp("csv") / "made.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "image"), *rows])
    found = [dict(row.cells) for row in csv_rows(path) if not isinstance(row, ProblemError)]
    assert found == [{"question": question, "image": image} for question, image in rows]


def test_folders_of_json_and_csv_are_read_by_split(folder: Path):
    Path(json_file(folder, [ROW])).rename(folder / "data.json")
    assert len(load_problems(str(folder))) == 1
    (folder / "test.csv").write_text(H + "x,figures/1.png,5\n" * 2)
    assert len(load_problems(f"{folder}@test")) == 2
    with pytest.raises(ProblemError, match=r"holds no data\.jsonl, dev\.jsonl or \*\.parquet \("):
        load_problems(f"{folder}@dev")
