"""``vaopd data check`` and ``vaopd data prepare``."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from vaopd.problems.bad_rows import BadRow
from vaopd.problems.duplicates import close_pairs, difference_hash
from vaopd.problems.sources import load_problems
from vaopd.records import damage
from vaopd.training.data_check import bars, kinds_of, spread

Run = Callable[..., tuple[int, str, str]]
SAMPLE = "package:geometry3k_sample"


def noise(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), "RGB")
    return small.resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, *rows: dict[str, Any], name: str = "made.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(image: str = "0.png", **changes: Any) -> dict[str, Any]:
    return {"images": [image], "problem": "<image>How long is AB?", "answer": "5", **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        noise(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    return tmp_path


# --- check ----------------------------------------------------------------------------------------


def test_a_good_source_is_described_with_exit_code_0(run: Run):
    code, out, _ = run("data", "check", SAMPLE)
    assert code == 0
    assert f"{SAMPLE}: 10 rows, 10 can be used" in out
    assert "images: 10" in out
    assert "not examined: lengths of prompts in tokens; name a model with --model" in out


def test_prompts_are_counted_in_tokens_of_a_model(run: Run):
    code, out, _ = run("data", "check", SAMPLE, "--model", "tiny:student", "--json")
    report = json.loads(out)
    assert (code, report["skipped"]) == (0, [])
    prompt, image = report["prompt_tokens"], report["image_tokens"]
    assert 0 < image["smallest"] < prompt["smallest"] <= prompt["median"] <= prompt["largest"]
    assert sum(count for _, _, count in prompt["histogram"]) == 10
    _, text, _ = run("data", "check", SAMPLE, "--model", "tiny:student")
    assert f"prompt tokens: {prompt['smallest']} to {prompt['largest']}" in text
    assert text.count("#") > 20


def test_a_recipe_decides_how_data_is_read_and_for_whom_tokens_are_counted(run: Run):
    arguments = ("data", "check", SAMPLE, "--recipe", "quickstart", "--json")
    _, plain, _ = run(*arguments)
    _, longer, _ = run(*arguments, "--set", "data.prompt_suffix=Put it in a box.")
    counts = [json.loads(text)["prompt_tokens"]["smallest"] for text in (plain, longer)]
    assert counts[0] < counts[1]


def test_refused_rows_are_counted_by_kind_with_exit_code_1(run: Run, folder: Path):
    rows = [row(), row(problem="?"), row("gone.png"), row(problem="x"), row("broken.png")]
    long = row(problem="<image>" + "How long is it? " * 60)
    source = write(folder, *rows, long)
    options = ("--model", "tiny:student", "--set", "data.max_prompt_tokens=80")
    code, out, _ = run("data", "check", source, *options, "--json")
    report = json.loads(out)
    assert (code, report["rows"], report["good"]) == (1, 6, 1)
    assert [one["count"] for one in report["refused"]] == [2, 1, 1, 1]
    reasons = [one["reason"] for one in report["refused"]]
    assert reasons[0].startswith("made.jsonl row 2: problem made:train:1 has 0 <image> in its")
    assert "the image gone.png is not in" in reasons[1]
    assert "image 1 of problem made:train:4" in reasons[2]
    assert "problem made:train:5 has a prompt of" in reasons[3]
    code, out, _ = run("data", "check", source, *options)
    assert code == 1
    assert "refused: 5 of 6 rows\n  2 x made.jsonl row 2: problem" in out


def test_ten_kinds_of_refusals_are_listed_and_the_others_counted():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "more"]
    kinds = kinds_of([BadRow(f"made.jsonl row {n}: {word}") for n, word in enumerate(words)])
    assert len(kinds) == 11


def test_what_cannot_be_read_at_all_is_the_usual_error(run: Run):
    code, _, err = run("data", "check", "gone.csv")
    assert (code, "gone.csv does not exist" in err) == (1, True)
    code, _, err = run("data", "check", SAMPLE, "--set", "data.columns={image: picture}")
    assert (code, "data.columns maps image to the column picture" in err) == (2, True)
    code, _, err = run("data", "check", SAMPLE, "--set", "data.train=x")
    assert (code, "names another source than SOURCE; leave it out" in err) == (2, True)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_every_value_is_in_one_bar(values: list[int]):
    found = spread(values)
    assert found is not None
    assert sum(count for _, _, count in found.histogram) == len(values)
    assert len(found.histogram) <= 10
    for low, high, count in found.histogram:
        assert count == sum(low <= value <= high for value in values)
    assert len(bars(found)) == len(found.histogram)


# --- near-duplicates ------------------------------------------------------------------------------


def distance(one: Image.Image, other: Image.Image) -> int:
    return (difference_hash(one) ^ difference_hash(other)).bit_count()


def test_a_hash_tells_whether_the_grey_rises_from_cell_to_cell():
    rising = Image.linear_gradient("L").rotate(90, expand=True)
    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0


def test_scaling_compression_and_brightness_change_few_bits():
    for seed in range(20):
        image = noise(seed)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=40)
        for other in (
            image.resize((45, 30)),
            Image.open(stream),
            ImageEnhance.Brightness(image).enhance(0.8),
        ):
            assert distance(image, other) <= 4
        assert distance(image, noise(seed + 100)) > 10


def test_a_transparent_drawing_is_seen_on_white():
    drawn = Image.new("RGBA", (90, 60), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (20, 20, 50, 50))
    white = Image.new("RGB", (90, 60), "white")
    white.paste("black", (20, 20, 50, 50))
    assert distance(drawn, white) == 0


HASH = st.integers(0, 2**64 - 1)


@given(st.lists(HASH, max_size=8), st.lists(HASH, max_size=8), st.integers(0, 64))
def test_pairs_are_those_of_a_plain_comparison(first: list[int], second: list[int], limit: int):
    hashed, others = (np.array(one, dtype=np.uint64) for one in (first, second))
    found = list(close_pairs(hashed, others, limit))
    assert found == [
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (a ^ b).bit_count() <= limit
    ]
    within = {(i, j) for i, j, _ in close_pairs(hashed, None, limit)}
    assert within == {(i, j) for i, j, _ in close_pairs(hashed, hashed, limit) if i < j}


# --- prepare --------------------------------------------------------------------------------------


def test_a_prepared_folder_is_read_as_the_source_is(run: Run, folder: Path):
    rows = [row("0.png", id="a"), row("1.png", id="b", answer=None, references=["It is 5."])]
    source, output = write(folder, *rows), folder / "out"
    code, out, err = run("data", "prepare", source, output)
    assert code == 0, err
    assert f"2 rows, 2 images: {output}" in out
    old, new = load_problems(source), load_problems(str(output))
    for one, other in zip(old, new, strict=True):
        assert one.content_hash() == other.content_hash()
        assert (one.id, one.answer, one.references) == (other.id, other.answer, other.references)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["rows"], manifest["source"]) == (2, source)
    assert manifest["columns"] == ["id", "problem", "images", "answer", "kind", "references"]
    assert damage(output) == ""
    shown = datasets.Dataset.from_parquet(str(output / "train.parquet"), cache_dir=str(folder))
    assert shown[0]["images"][0].size == (90, 60)


def test_images_of_the_teacher_are_counted_and_prepared(run: Run, folder: Path):
    rows = [row("0.png", teacher_images=["1.png"]), row("1.png", teacher_images=[])]
    source = write(folder, *rows)
    _, out, _ = run("data", "check", source)
    assert "problems with teacher_images: 1" in out
    code, _, err = run("data", "prepare", source, folder / "out")
    assert code == 0, err
    first, second = load_problems(str(folder / "out"))
    assert first.teacher_images == ((folder / "1.png").read_bytes(),)
    assert second.teacher_images == ()
    assert "teacher_images" in json.loads((folder / "out" / "manifest.json").read_text())["columns"]
    broken = write(folder, row("0.png", teacher_images=["broken.png"]))
    code, out, _ = run("data", "check", broken)
    assert code == 1
    assert "  1 x teacher_images: image 1 of problem made:train:0" in out
    code, _, err = run("data", "prepare", broken, folder / "no")
    assert (code, "teacher_images: image 1 of problem" in err) == (1, True)
    assert not (folder / "no").exists()


def test_near_duplicates_are_reported_within_the_set_and_against_others(run: Run, folder: Path):
    Image.open(folder / "0.png").resize((180, 120)).save(folder / "large.png")
    Image.open(folder / "1.png").save(folder / "test.jpg")
    source = write(folder, row("0.png", id="a"), row("1.png", id="b"), row("large.png", id="c"))
    test = write(folder, row("test.jpg", id="t", problem="<image>x"), name="test.jsonl")
    code, out, err = run("data", "prepare", source, folder / "out", "--against", test)
    assert code == 0, err
    assert "near-duplicates (4 of 64 bits or fewer differ): 2 pairs" in out
    pairs = json.loads((folder / "out" / "manifest.json").read_text())["near_duplicates"]
    found = {(one["id"], one["other"], one["source"], one["is_same_question"]) for one in pairs}
    assert found == {("a", "c", "", True), ("b", "t", test, False)}


def test_columns_are_mapped_and_added_texts_are_not_written(run: Run, folder: Path):
    source = write(folder, {"text": "How?", "figure": "0.png", "solution": "5"})
    mapping = "data.columns={question: text, image: figure}"
    options = ("--set", mapping, "--set", "data.prompt_suffix=Box it.")
    code, _, err = run("data", "prepare", source, folder / "out", *options)
    assert code == 0, err
    assert [one.prompt for one in load_problems(str(folder / "out"))] == ["<image>How?"]


def test_a_folder_that_exists_and_a_bad_row_leave_nothing_written(run: Run, folder: Path):
    (folder / "there").mkdir()
    code, _, err = run("data", "prepare", SAMPLE, folder / "there")
    assert (code, "exists; name a folder that does not" in err) == (2, True)
    source = write(folder, row(), row("broken.png"))
    code, _, err = run("data", "prepare", source, folder / "out")
    assert (code, "image 1 of problem made:train:1" in err) == (1, True)
    assert not (folder / "out").exists()
    assert not list(folder.glob(".*"))
