"""Files of benchmarks: several images in one cell, and bad rows between good ones."""

import base64
import json
from pathlib import Path

import pytest

from vaopd.errors import ProblemError
from vaopd.evaluation.items import load_items
from vaopd.evaluation.registry import BENCHMARKS, find_benchmark

IMAGES = [bytes([letter]) * 60 for letter in b"123"]
CODED = [base64.b64encode(image).decode() for image in IMAGES]
HEADER = "index\tid\tquestion\tA\tB\tanswer\tcategory\timage\tsplit\n"


def tsv(folder: Path, *cells: tuple[str, str]) -> Path:
    """Write MMMU's TSV with a question and an image cell in each row."""
    path = folder / "MMMU_DEV_VAL.tsv"
    rows = [
        f'{n}\tvalidation_Art_{n}\t"{question}"\tx\ty\tA\tArt\t{image}\tvalidation\n'
        for n, (question, image) in enumerate(cells)
    ]
    path.write_text(HEADER + "".join(rows))
    return path


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize(
    "cell",
    [str(CODED), quoted(json.dumps(CODED)), quoted(json.dumps(CODED, indent=1)),
     str([f"data:image/png;base64,{code}" for code in CODED])],
    ids=["python", "json", "json in lines", "with media types"],
)  # fmt: skip
def test_several_images_of_mmmus_tsv_stand_where_they_are_named(tmp_path: Path, cell: str):
    path = tsv(tmp_path, ("Is <image 3> like <image 1>?", cell), ("Is it so?", cell))
    named, unnamed = load_items(BENCHMARKS["mmmu"], path).items
    problem = named.problem("mmmu")
    assert problem.prompt.startswith("Is <image> like <image>?\nA. x\nB. y\n\nAnswer with")
    assert problem.images == (IMAGES[2], IMAGES[0])
    assert unnamed.prompt.startswith("<image><image><image>Is it so?")
    assert unnamed.problem("mmmu").images == tuple(IMAGES)


def test_a_row_that_points_to_the_images_of_another_has_all_of_them(tmp_path: Path):
    path = tsv(tmp_path, ("Is it so?", str(CODED[:2])), ("See <image 2>", "0"), ("See", "0"))
    found = load_items(BENCHMARKS["mmmu"], path).items
    assert found[1].problem("mmmu").images == (IMAGES[1],)
    assert found[2].problem("mmmu").images == (IMAGES[0], IMAGES[1])


def test_an_image_that_the_cell_does_not_hold_is_never_another_one(tmp_path: Path):
    path = tsv(tmp_path, ("See <image 3>", str(CODED[:2])))
    with pytest.raises(ProblemError, match=r"row 1: the question names <image 3>, which the row"):
        load_items(BENCHMARKS["mmmu"], path)


def test_a_bad_row_of_a_tsv_is_counted_and_its_neighbours_are_read(tmp_path: Path):
    path = tsv(tmp_path, ("One?", CODED[0]), ("Two?", "['no end"), ("Three?", CODED[2]))
    path.write_text(path.read_text() + "3\ttoo few\n")
    with pytest.raises(ProblemError, match=r"row 2 has an image cell .*--on-bad-row skip"):
        load_items(BENCHMARKS["mmmu"], path)
    found = load_items(BENCHMARKS["mmmu"], path, on_bad_row="skip")
    assert [one.problem("mmmu").images for one in found.items] == [(IMAGES[0],), (IMAGES[2],)]
    assert [reason.split(" has ")[0] for reason in found.skipped] == [
        "MMMU_DEV_VAL.tsv row 2", "MMMU_DEV_VAL.tsv row 4",
    ]  # fmt: skip


GOOD = {"id": "1", "question": "What?", "options": ["x", "y"], "answer": "0", "image": "a.png"}


def test_bad_lines_of_a_jsonl_file_are_counted_and_the_rest_is_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    lines = [json.dumps(GOOD), "{broken", "[1]", json.dumps(GOOD | {"id": "2", "image": "b.png"}),
             json.dumps(GOOD | {"id": "3", "image": "!" * 2000}), json.dumps(GOOD | {"id": "4"})]  # fmt: skip
    path = tmp_path / "sample.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ProblemError, match=r"row 2 is not JSON .*--on-bad-row skip"):
        load_items(BENCHMARKS["ai2d"], path)
    found = load_items(BENCHMARKS["ai2d"], path, on_bad_row="skip")
    assert [one.id for one in found.items] == ["1", "4"]
    says = ("row 2 is not JSON", "row 3 is a JSON list", "row 4: the image", "row 5: an image cell")
    assert len(found.skipped) == len(says)
    for reason, text in zip(found.skipped, says, strict=True):
        assert text in reason


def test_bad_lines_of_a_users_own_file_are_counted_and_the_rest_is_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    good = {"problem": "<image>How many?", "images": ["a.png"], "answer": "4"}
    lines = [
        json.dumps(good),
        "{broken",
        json.dumps(good | {"images": ["b.png"]}),
        json.dumps(good),
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    found = load_items(find_benchmark(str(path)), on_bad_row="skip")
    assert len(found.items) == 2
    assert len(found.skipped) == 2
