"""Tables of ``datasets``: hub names with options, saved folders, image folders, objects."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vaopd.errors import ConfigError, ProblemError
from vaopd.problems import files
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import MappedImage
from vaopd.problems.sources import load_problems, locate, read_source


def png(shade: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (8, 6), shade).save(encoded, "PNG")
    return encoded.getvalue()


def table(*shades: int, **columns: Any) -> datasets.Dataset:
    rows = [
        {"images": [{"bytes": png(s), "path": None}], "problem": "<image>x?", "answer": str(s)}
        for s in shades
    ]
    made = datasets.Dataset.from_list([{**row, **columns} for row in rows])
    return made.cast_column("images", datasets.List(datasets.Image()))


def shades(problems: Any) -> list[Any]:
    return [one.load_images()[0].getpixel((0, 0)) for one in problems]


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answer for the hub; return the name, configuration, split and revision that it was asked."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: Any, *, split: str, revision: Any) -> datasets.Dataset:
        calls.append((name, config, split, revision))
        if config == "gone":
            raise ValueError("BuilderConfig 'gone' not found.\nAvailable: ['plain', 'hard']\nmore")
        return table(3, 4)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("source", "call", "first"),
    [
        ("hub:a/b", ("a/b", None, "train", None), "a/b:train:0"),
        ("hub:a/b@test", ("a/b", None, "test", None), "a/b:test:0"),
        ("a/b?config=plain", ("a/b", "plain", "train", None), "a/b/plain:train:0"),
        ("hub:a/b?config=plain&split=dev", ("a/b", "plain", "dev", None), "a/b/plain:dev:0"),
        ("a/b?revision=v1&sample=1&seed=0", ("a/b", None, "train", "v1"), "a/b:train:1"),
    ],
)
def test_a_name_on_the_hub_has_a_configuration_a_split_and_a_revision(
    asked: list[tuple[Any, ...]], source: str, call: tuple[Any, ...], first: str
):
    problems = load_problems(source)
    assert asked == [call]
    assert problems[0].id == first
    assert isinstance(problems[0].images[0], MappedImage)


def test_a_name_after_hub_never_means_a_folder_here(
    asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert len(load_problems("hub:a/b")) == 2
    assert asked == [("a/b", None, "train", None)]


def test_an_unknown_configuration_is_named_with_those_there_are(asked: list[tuple[Any, ...]]):
    with pytest.raises(ProblemError, match=r"a/b/gone@train cannot be loaded \(.*'plain', 'hard'"):
        load_problems("hub:a/b?config=gone")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("hub:a b", "a b is not a name on the hub, which alone has config and split and revision"),
        ("{folder}?config=x", "is not a name on the hub"),
        ("hub:a/b?config=x&confg=y", "do not read as sample=N&seed=S"),
        ("hub:a/b?split=test&sample=0", "do not read as sample=N&seed=S"),
        ("hub:TIGER-Lab/ViRL39K?config=x", "has no splits or configurations; leave them out"),
        ("python:train", "stands for problems that were given in Python; give them again"),
    ],
)
def test_options_that_do_not_belong_to_the_source_are_refused(
    source: str, sentence: str, tmp_path: Path
):
    with pytest.raises((ConfigError, ProblemError), match=sentence):
        locate(source.replace("{folder}", str(tmp_path)))


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path):
    table(1, 2).save_to_disk(tmp_path / "one")
    problems = load_problems(str(tmp_path / "one"))
    assert shades(problems) == [1, 2]
    assert problems[1].id == "one:train:1"
    assert files.count_rows(tmp_path / "one", "train") == 2
    with pytest.raises(ProblemError, match=r"one has no split test; append one of @train"):
        load_problems(f"{tmp_path / 'one'}@test")


def test_a_folder_of_several_splits_is_read_by_split(tmp_path: Path):
    many = datasets.DatasetDict({"train": table(1), "test": table(2, 3)})
    many.save_to_disk(tmp_path / "many")
    assert shades(load_problems(f"{tmp_path / 'many'}@test")) == [2, 3]
    with pytest.raises(ProblemError, match="no split dev; append one of @train, @test"):
        load_problems(f"{tmp_path / 'many'}@dev")


def test_a_damaged_folder_of_save_to_disk_is_one_sentence(tmp_path: Path):
    table(1).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(ProblemError, match=r"one cannot be read \(.*; save it to disk again"):
        load_problems(str(tmp_path / "one"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_folder_of_images_is_read_with_its_metadata(suffix: str, tmp_path: Path):
    (tmp_path / "test").mkdir()
    for folder, shade in ((tmp_path, 5), (tmp_path / "test", 6)):
        (folder / "a.png").write_bytes(png(shade))
        text = "file_name,question,answer\na.png,How long?,5\n"
        if suffix == ".jsonl":
            text = json.dumps({"file_name": "a.png", "question": "How long?", "answer": "5"})
        (folder / f"metadata{suffix}").write_text(text)
    (one,) = load_problems(str(tmp_path))
    assert (one.prompt, one.answer, shades([one])) == ("<image>How long?", "5", [5])
    assert shades(load_problems(f"{tmp_path}@test")) == [6]


def test_images_of_large_parquet_files_are_read_when_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table(*range(70)).to_parquet(tmp_path / "made.parquet")
    source = str(tmp_path / "made.parquet")
    small = load_problems(source)
    monkeypatch.setattr(files, "MAX_PARQUET_BYTES", 100)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    large = load_problems(source)
    assert all(isinstance(one.images[0], MappedImage) for one in large)
    assert all(isinstance(one.images[0], bytes) for one in small)
    assert [one.content_hash() for one in large] == [one.content_hash() for one in small]
    assert [(one.id, one.prompt, one.answer) for one in large] == [
        (one.id, one.prompt, one.answer) for one in small
    ]
    assert shades(large) == list(range(70))
    assert large[3].image_sizes() == [(8, 6)]
    # The cache has the file as it was; another one is read anew.
    table(*range(1, 71)).to_parquet(tmp_path / "made.parquet")
    assert shades(load_problems(source)) == list(range(1, 71))
    (tmp_path / "made.parquet").write_bytes(b"nothing " * 50)
    with pytest.raises(ProblemError, match=r"made\.parquet cannot be read as parquet: "):
        load_problems(source)


def test_paths_in_large_parquet_files_and_in_saved_folders_are_relative_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "MAX_PARQUET_BYTES", 100)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_list([{"images": ["a.png"], "problem": "<image>?", "answer": "5"}])
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "a.png").write_bytes(png(9))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(png(8))
    made.to_parquet(tmp_path / "folder" / "made.parquet")
    assert shades(load_problems(str(tmp_path / "saved"))) == [9]
    assert shades(load_problems(str(tmp_path / "folder"))) == [8]


# --- objects of Python ----------------------------------------------------------------------------


def test_a_dataset_is_a_source():
    problems = load_problems(table(1, 2))
    assert [one.id for one in problems] == ["dataset:train:0", "dataset:train:1"]
    assert shades(problems) == [1, 2]
    assert len(load_problems(table(1, 2), limit=1)) == 1


def test_a_dataset_of_decoded_images_and_columns_of_its_own_is_a_source():
    rows = {"figure": [Image.new("L", (8, 6), 9)], "text": ["x?"], "solution": ["5"]}
    made = datasets.Dataset.from_dict(rows)
    (one,) = load_problems(made, columns={"image": "figure", "question": "text"})
    assert (one.prompt, one.answer, shades([one])) == ("<image>x?", "5", [9])
    with pytest.raises(ConfigError, match="the column figures, which the data set does not have"):
        load_problems(made, columns={"image": "figures", "question": "text"})


@pytest.mark.parametrize(
    "cell", [png(9), [png(9)], {"bytes": png(9)}, [{"bytes": png(9), "path": "a.png"}]]
)
def test_images_are_encoded_bytes_in_every_layout(cell: Any):
    rows = [{"image": cell, "text": f"{number}?"} for number in range(3)]
    problems = load_problems(datasets.Dataset.from_list(rows), columns={"question": "text"})
    assert all(isinstance(one.images[0], MappedImage) for one in problems)
    assert shades(problems) == [9, 9, 9]


@pytest.mark.parametrize("cell", [3, [3], {"bytes": None, "path": None}, None])
def test_a_cell_without_an_image_is_a_bad_row(cell: Any):
    made = datasets.Dataset.from_list([{"image": cell, "question": "x?", "answer": "5"}])
    with pytest.raises(ProblemError, match=r"^the data set row 1: "):
        load_problems(made)


def test_one_image_and_a_question_without_a_placeholder_are_enough():
    rows = [{"image": png(9), "question": "How long?", "answer": "5"}]
    (one,) = load_problems(datasets.Dataset.from_list(rows))
    assert (one.prompt, one.answer, shades([one])) == ("<image>How long?", "5", [9])


def test_a_list_of_problems_is_a_source():
    problems = list(DrawnProblems(num_problems=3))
    assert load_problems(problems) == problems
    asked = load_problems(problems, limit=2, prompt_suffix="Box it.")
    assert [one.prompt for one in asked] == [f"{one.prompt}\nBox it." for one in problems[:2]]


def test_drawn_problems_stay_lazy_as_a_source():
    drawn = DrawnProblems(num_problems=10**6)
    assert load_problems(drawn) == drawn


def test_problems_with_one_id_are_bad_rows():
    (one,) = DrawnProblems(num_problems=1)
    problems, bad = read_source([one, one])
    assert (len(problems), bad[0].reason) == (1, f"problem 2 has the id {one.id} of an earlier one")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([{"problem": "x"}], "element 1 of the problems is a dict; give objects of vaopd.Problem"),
        (3, "the data set is a int; give one split of it as a datasets.Dataset"),
        (datasets.DatasetDict({"train": table(1)}), "the data set is a DatasetDict; give one spl"),
    ],
)
def test_another_object_is_refused(source: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        load_problems(source)


def test_an_empty_list_is_refused():
    with pytest.raises(ProblemError, match="the data set has no rows; give at least one problem"):
        load_problems([])
