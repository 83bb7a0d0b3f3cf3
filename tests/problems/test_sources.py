import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems


def png(shade: int = 0) -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (8, 6), shade).save(encoded, "PNG")
    return encoded.getvalue()


def geometry_row(shade: int = 0, **changes: Any) -> dict[str, Any]:
    image = {"bytes": png(shade), "path": None}
    return {"images": [image], "problem": "<image>Find x.", "answer": "5", **changes}


def virl_row(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "question": "<image>\nFind x.",
        "answer": "\\boxed{5}",
        "image": [f"images/{name}-0.png"],
        "qid": name,
        "category": "Geometry",
        "PassRate_7BBase": -1.0,
        **changes,
    }


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def write_image(folder: Path, name: str = "a-0.png", shade: int = 0) -> None:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / name).write_bytes(png(shade))


def jsonl_row(**changes: Any) -> dict[str, Any]:
    return geometry_row() | {"images": ["images/a-0.png"]} | changes


def one(problems: list[Problem]) -> Problem:
    (problem,) = problems
    return problem


def test_parquet_rows_keep_the_encoded_bytes(tmp_path: Path):
    path = write_parquet(tmp_path / "made.parquet", geometry_row(3), geometry_row(4))
    first, second = load_problems(str(path))
    assert first == Problem(
        id="made:train:0",
        prompt="<image>Find x.",
        images=(png(3),),
        answer="5",
        source="made",
        split="train",
    )
    assert second.id == "made:train:1"
    assert second.load_images()[0].getpixel((0, 0)) == 4


def test_bare_bytes_in_parquet_are_an_image(tmp_path: Path):
    path = write_parquet(tmp_path / "made.parquet", geometry_row(images=[png(3)]))
    assert one(load_problems(str(path))).images == (png(3),)


def test_optional_columns_are_read(tmp_path: Path):
    row = geometry_row(id=7, kind="angle", references=["One.", "Two."], choices=["4", "5"])
    problem = one(load_problems(str(write_parquet(tmp_path / "made.parquet", row))))
    assert (problem.id, problem.kind, problem.references) == ("7", "angle", ("One.", "Two."))


def test_jsonl_paths_are_relative_to_the_file(tmp_path: Path):
    write_image(tmp_path, shade=9)
    path = write_jsonl(tmp_path / "made.jsonl", jsonl_row(answer=5), jsonl_row(answer=None))
    first, second = load_problems(str(path))
    assert first.images == (tmp_path / "images/a-0.png",)
    assert first.load_images()[0].getpixel((0, 0)) == 9
    assert (first.answer, second.answer) == ("5", None)


def test_several_images_follow_the_placeholders(tmp_path: Path):
    row = geometry_row(images=[png(1), png(2)], problem="<image> and <image>: which is darker?")
    problem = one(load_problems(str(write_parquet(tmp_path / "made.parquet", row))))
    assert problem.images == (png(1), png(2))


def test_the_virl39k_folder_is_read(tmp_path: Path):
    write_image(tmp_path, "a-0.png", 1)
    write_image(tmp_path, "b-0.png", 2)
    write_parquet(tmp_path / "39Krelease.parquet", virl_row("a"), virl_row("b", answer="6 cm"))
    first, second = load_problems(str(tmp_path))
    assert (first.id, first.answer, first.kind) == ("a", "5", "Geometry")
    assert first.images == (tmp_path / "images/a-0.png",)
    assert second.answer == "6 cm"


@pytest.mark.parametrize(
    ("cell", "bare"),
    [
        (r"\boxed{5}", "5"),
        ("5", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} cm", r"\boxed{5} cm"),
        (r"\boxed{1}, \boxed{2}", r"\boxed{1}, \boxed{2}"),
        (r"\boxed{5", r"\boxed{5"),
        ("", None),
        (" ", None),
    ],
)
def test_only_a_box_around_the_whole_answer_is_taken_off(
    tmp_path: Path, cell: str, bare: str | None
):
    path = write_parquet(tmp_path / "made.parquet", geometry_row(answer=cell))
    assert one(load_problems(str(path))).answer == bare


def test_a_folder_in_the_layout_of_the_hub_is_read_by_split(tmp_path: Path):
    for name, shades in {
        "train-00001-of-00002": [2],
        "train-00000-of-00002": [1],
        "test-00000-of-00001": [3],
    }.items():
        write_parquet(tmp_path / f"data/{name}.parquet", *map(geometry_row, shades))
    assert [problem.images for problem in load_problems(str(tmp_path))] == [(png(1),), (png(2),)]
    test = one(load_problems(f"{tmp_path}@test"))
    assert (test.images, test.split) == ((png(3),), "test")
    with pytest.raises(ProblemError, match="no files of the split dev; append one of @test, @trai"):
        load_problems(f"{tmp_path}@dev")


def test_a_folder_without_split_names_is_one_split(tmp_path: Path):
    write_parquet(tmp_path / "part1.parquet", geometry_row(1))
    write_parquet(tmp_path / "part2.parquet", geometry_row(2))
    assert len(load_problems(str(tmp_path))) == 2


def test_a_folder_of_jsonl_is_read_by_split(tmp_path: Path):
    write_image(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", jsonl_row())
    write_jsonl(tmp_path / "validation.jsonl", jsonl_row(), jsonl_row())
    assert len(load_problems(f"{tmp_path}@validation")) == 2
    write_jsonl(tmp_path / "data.jsonl", jsonl_row(), jsonl_row(), jsonl_row())
    assert len(load_problems(str(tmp_path))) == 1
    (tmp_path / "train.jsonl").unlink()
    assert len(load_problems(str(tmp_path))) == 3


def test_a_file_of_one_split_never_stands_in_for_another(tmp_path: Path):
    write_image(tmp_path)
    path = write_jsonl(tmp_path / "data.jsonl", jsonl_row())
    with pytest.raises(ProblemError, match=r"holds no data\.jsonl, test\.jsonl"):
        load_problems(f"{tmp_path}@test")
    for source in (f"{path}@test", f"{path}@train"):
        with pytest.raises(ProblemError, match=r"has no splits; leave @\w+ out"):
            load_problems(source)
    with pytest.raises(ProblemError, match="ViRL39K has no splits; leave @test out"):
        load_problems("TIGER-Lab/ViRL39K@test")


def test_splits_are_found_anywhere_in_the_names_of_files(tmp_path: Path):
    for number, split in enumerate(("train", "test"), start=1):
        write_parquet(tmp_path / f"geometry3k_{split}.parquet", geometry_row(number))
    assert one(load_problems(str(tmp_path))).images == (png(1),)
    assert one(load_problems(f"{tmp_path}@test")).images == (png(2),)


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ProblemError, match=r"holds no data\.jsonl, train\.jsonl or \*\.parquet"):
        load_problems(str(tmp_path))


def test_the_ten_packaged_problems_are_complete():
    problems = load_problems("package:geometry3k_sample")
    assert [problem.id for problem in problems] == [f"geometry3k-{n}" for n in range(11, 21)]
    assert {problem.kind for problem in problems} == {"angle", "length"}
    assert problems[4].answer == r"5 \sqrt { 3 }"
    assert problems[0].load_images()[0].size == (250, 251)
    assert len({problem.content_hash() for problem in problems}) == 10


def test_an_unknown_package_is_refused():
    with pytest.raises(ConfigError, match="package:mnist does not ship with vaopd"):
        load_problems("package:mnist")


def test_drawn_problems_get_their_options():
    problems = load_problems("drawn:validation?count=3&seed=5")
    assert [problem.split for problem in problems] == ["validation"] * 3
    assert problems != load_problems("drawn:validation?count=3&seed=6")
    assert load_problems("drawn:validation?count=3&seed=5", limit=2) == problems[:2]


@pytest.mark.parametrize("query", ["count", "count=1&count=2", "&"])
def test_options_that_do_not_read_are_refused(query: str):
    with pytest.raises(ConfigError, match="do not read as name=value, each once"):
        load_problems(f"drawn:train?{query}")


def test_a_sample_is_that_of_the_official_release(tmp_path: Path):
    # The first and last of sorted(random.Random(42).sample(range(300), 200)).
    path = write_jsonl(tmp_path / "d.jsonl", *[jsonl_row(id=str(i)) for i in range(300)])
    write_image(tmp_path)
    ids = [int(p.id) for p in load_problems(f"{path}?sample=200&seed=42")]
    assert ids == sorted(random.Random(42).sample(range(300), 200))
    assert (len(set(ids)), ids[:5], ids[-3:]) == (200, [0, 2, 3, 4, 7], [294, 296, 298])
    assert [p.id for p in load_problems(f"{path}?sample=200")] == [str(i) for i in ids]
    assert [int(p.id) for p in load_problems(f"{path}?sample=200&seed=1")] != ids


def test_a_sample_of_a_split_of_a_folder_is_taken(tmp_path: Path):
    write_jsonl(tmp_path / "test.jsonl", *[jsonl_row(id=str(i)) for i in range(5)])
    write_image(tmp_path)
    (problem,) = load_problems(f"{tmp_path}@test?sample=1")
    assert problem.split == "test"


@pytest.mark.parametrize(
    "query", ["sample=0", "sample=x", "seed=3", "sample=2&count=3", "", "sample=2&seed=x"]
)
def test_a_sample_that_does_not_read_is_refused(tmp_path: Path, query: str):
    path = write_jsonl(tmp_path / "d.jsonl", jsonl_row(), jsonl_row())
    write_image(tmp_path)
    with pytest.raises(ConfigError, match="do not read as sample=N&seed=S"):
        load_problems(f"{path}?{query}")


def test_a_sample_of_more_than_there_is_is_refused(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", jsonl_row(), jsonl_row())
    write_image(tmp_path)
    with pytest.raises(ConfigError, match="sample=3 is more than the 2 problems"):
        load_problems(f"{path}?sample=3")


def test_a_limit_reads_only_the_front(tmp_path: Path):
    path = tmp_path / "made.jsonl"
    write_image(tmp_path)
    path.write_text(json.dumps(jsonl_row()) + "\nthis line is never reached\n")
    assert len(load_problems(str(path), limit=1)) == 1
    with pytest.raises(ConfigError, match="limit is 0, expected at least 1"):
        load_problems(str(path), limit=0)


# ---- bad rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (jsonl_row(images=["images/gone.png"]), r"the image images/gone\.png is not in "),
        (jsonl_row(images=[]), "problem made:train:1 has no image"),
        (jsonl_row(images="images/a-0.png"), "images is of type str; write a list of images"),
        (jsonl_row(images=[3]), "images holds 3; expected encoded image bytes, or a path"),
        (jsonl_row(images=None), "images is of type NoneType; write a list"),
        (jsonl_row(problem="Find x."), "problem made:train:1 has 0 <image> in its prompt"),
        (jsonl_row(problem=["Find x."]), "problem is of type list; write it as text"),
        (jsonl_row(answer={"value": 5}), "answer is of type dict; write it as text"),
        (jsonl_row(references="One."), "references is not a list of texts"),
        ({"prompt": "Find x."}, "problem made:train:1 has no image"),
        ({"query": "Find x."}, "the columns are query; rename them to images, problem"),
        ({}, "the columns are none; rename them"),
        ({**jsonl_row(), **virl_row()}, "the columns are PassRate_7BBase, answer, category"),
    ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path: Path, row: dict[str, Any], message: str):
    write_image(tmp_path)
    path = write_jsonl(tmp_path / "made.jsonl", jsonl_row(), row)
    with pytest.raises(ProblemError, match=rf"^made\.jsonl row 2: {message}"):
        load_problems(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"is not JSON \("),
        (b'{"problem": "\xff"}', r"is not JSON \("),
        (b"[1]", "is a JSON list; write one object on each line"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, message: str):
    write_image(tmp_path)
    path = tmp_path / "made.jsonl"
    # The empty line counts, as in an editor.
    path.write_bytes(json.dumps(jsonl_row()).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ProblemError, match=rf"^made\.jsonl row 3 {message}"):
        load_problems(str(path))


def test_a_bad_parquet_row_is_named_across_batches(tmp_path: Path):
    # 64 rows are read at a time.
    rows = [geometry_row() for _ in range(70)]
    rows[66]["problem"] = "Find x."
    path = write_parquet(tmp_path / "made.parquet", *rows)
    with pytest.raises(ProblemError, match=r"^made\.parquet row 67: problem made:train:66 has 0 "):
        load_problems(str(path))


def test_unknown_parquet_columns_are_all_named(tmp_path: Path):
    path = write_parquet(tmp_path / "made.parquet", {"answer": "5", "picture": "x", "query": "?"})
    with pytest.raises(ProblemError, match=r"made\.parquet: the columns are answer, picture, quer"):
        load_problems(str(path))


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path):
    path = tmp_path / "made.parquet"
    path.write_bytes(b"an error page")
    with pytest.raises(ProblemError, match=r"made\.parquet cannot be read as parquet: "):
        load_problems(str(path))


def test_an_id_that_comes_twice_is_an_error_that_names_both_rows(tmp_path: Path):
    rows = [geometry_row(id="a"), geometry_row(id="b"), geometry_row(id="a")]
    path = write_parquet(tmp_path / "made.parquet", *rows)
    with pytest.raises(ProblemError, match=r"row 3 has the id a of made\.parquet row 1; give"):
        load_problems(str(path))


def test_a_truncated_image_is_named_when_it_is_decoded(tmp_path: Path):
    path = write_parquet(tmp_path / "made.parquet", geometry_row(images=[png()[:40]]))
    with pytest.raises(ProblemError, match="image 1 of problem made:train:0 cannot be decoded"):
        one(load_problems(str(path))).load_images()


def test_an_empty_file_is_an_error(tmp_path: Path):
    (tmp_path / "made.jsonl").write_text("\n")
    with pytest.raises(ProblemError, match=r"made \(train\) has no rows"):
        load_problems(str(tmp_path / "made.jsonl"))


@pytest.mark.parametrize("source", ["gone.parquet", "some/gone.jsonl", "gone", "a/b/c", ""])
def test_a_source_that_is_nowhere_is_an_error_that_lists_the_kinds(source: str):
    with pytest.raises(ProblemError, match=r"does not exist; name a \.parquet, \.jsonl"):
        load_problems(source or "no such thing")


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "made.xlsx").write_text("a,b")
    with pytest.raises(ProblemError, match=r"made\.xlsx is not a \.parquet, \.jsonl, \.json or "):
        load_problems(str(tmp_path / "made.xlsx"))


# ---- hub -----------------------------------------------------------------------------------


def test_a_hub_name_that_cannot_be_reached_says_what_to_do():
    # tests/conftest.py keeps the hub client offline.
    with pytest.raises(
        ProblemError, match=r"someone/thing@train cannot be loaded from the hub.*fol"
    ):
        load_problems("someone/thing")


def test_the_unreachable_virl39k_says_what_to_do():
    with pytest.raises(ProblemError, match="TIGER-Lab/ViRL39K cannot be loaded from the hub"):
        load_problems("TIGER-Lab/ViRL39K")


def test_hub_rows_keep_the_encoded_bytes(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, *options: Any, split: str, revision: Any) -> datasets.Dataset:
        asked.append((name, *options, split, revision))
        rows = datasets.Dataset.from_list([geometry_row(3), geometry_row(4)])
        return rows.cast_column("images", datasets.List(datasets.Image()))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problem = one(load_problems("hiyouga/geometry3k@validation", limit=1))
    assert asked == [("hiyouga/geometry3k", None, "validation", None)]
    assert list(problem.stored_images()) == [png(3)]
    assert problem.id == "hiyouga/geometry3k:validation:0"


def test_virl39k_from_the_hub_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    write_parquet(tmp_path / "39Krelease.parquet", virl_row("a"))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/a-0.png", png(1))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert one(load_problems("TIGER-Lab/ViRL39K")).load_images()[0].getpixel((0, 0)) == 1
    (tmp_path / "images.zip").unlink()
    assert one(load_problems("TIGER-Lab/ViRL39K")).id == "a"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["39Krelease.parquet", "images"]
