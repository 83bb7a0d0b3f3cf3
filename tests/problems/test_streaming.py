"""``?streaming=true``: rows of a data set that is not downloaded whole, here of local files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.problem import MappedImage
from vaopd.problems.sources import load_problems, locate, stream_line

Run = Callable[..., tuple[int, str, str]]
ROWS = 150
"""More than the rows that are written together."""

LOAD = datasets.load_dataset


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stream local parquet files for the hub's; return the options that each stream got."""
    for shard in range(2):
        numbers = range(shard * 75, shard * 75 + 75)
        rows = [
            {"image": {"bytes": png(n), "path": None}, "question": f"{n}?", "answer": str(n)}
            for n in numbers
        ]
        made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        made.to_parquet(str(tmp_path / f"train-{shard}.parquet"))
    calls: list[dict[str, Any]] = []

    def load_dataset(name: str, config: Any, **options: Any) -> Any:
        calls.append({"name": name, "config": config, **options})
        if not options.get("streaming"):
            raise AssertionError("the set would be downloaded whole")
        return LOAD(
            "parquet",
            data_files={"train": str(tmp_path / "train-*.parquet")},
            split=options["split"],
            streaming=True,
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return calls


def answers(source: str) -> list[str | None]:
    return [one.answer for one in load_problems(source)]


def test_the_first_rows_are_read_once_and_kept_with_their_images(opened: list[dict[str, Any]]):
    source = "hub:a/b?revision=v1&streaming=true&count=100"
    problems = load_problems(source)
    assert [one.answer for one in problems] == [str(n) for n in range(100)]
    assert problems[70].prompt == "<image>70?"
    assert isinstance(problems[70].images[0], MappedImage)
    assert list(problems[70].stored_images()) == [png(70)]
    assert [one.id for one in problems[:2]] == ["a/b:train:0", "a/b:train:1"]
    again = load_problems(source)
    assert [one.content_hash() for one in again] == [one.content_hash() for one in problems]
    assert [one["revision"] for one in opened] == ["v1"]


def test_a_seed_shuffles_files_and_rows_the_same_way_each_time(
    opened: list[dict[str, Any]], tmp_path: Path
):
    source = "hub:a/b?streaming=true&count=60&seed=7"
    found = answers(source)
    (kept,) = (tmp_path / "cache" / "vaopd").iterdir()
    kept.unlink()
    assert answers(source) == found
    assert found != [str(n) for n in range(60)]
    assert len(set(found)) == 60
    assert max(int(one or 0) for one in found) >= 75  # also from the second file
    assert answers(source.replace("seed=7", "seed=8")) != found
    assert len(opened) == 3


def test_more_rows_than_there_are_leave_nothing_kept(opened: list[dict[str, Any]], tmp_path: Path):
    with pytest.raises(ConfigError, match=f"count=151 is more than the {ROWS} rows of a/b@train"):
        load_problems("hub:a/b?streaming=true&count=151")
    assert list((tmp_path / "cache" / "vaopd").iterdir()) == []
    assert len(answers(f"hub:a/b?streaming=true&count={ROWS}")) == ROWS


def test_images_that_a_stream_names_are_fetched_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image, file = tmp_path / "a.png", tmp_path / "named.parquet"
    image.write_bytes(png(5))
    text = datasets.Value("string")
    kinds = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    row = {"image": {"bytes": None, "path": str(image)}, "question": "5?", "answer": "5"}
    named = pyarrow.Table.from_pylist([row], schema=kinds.arrow_schema)
    pyarrow.parquet.write_table(named, file)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, **options: LOAD(
            "parquet", data_files={"train": str(file)}, split="train", streaming=True
        ),
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (problem,) = load_problems("hub:a/b?streaming=true&count=1")
    image.unlink()
    assert list(problem.stored_images()) == [png(5)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("streaming=true", "a stream has no length and a run needs one"),
        ("streaming=true&count=0", "a stream has no length and a run needs one"),
        ("streaming=true&count=x", "a stream has no length and a run needs one"),
        ("streaming=yes&count=5", "a stream has no length and a run needs one"),
        ("streaming=true&count=5&seed=x", "a stream has no length and a run needs one"),
        ("streaming=true&count=5&sample=3", "has streaming and sample; leave sample out"),
        ("count=5", "do not read as sample=N&seed=S"),
    ],
)
def test_options_of_a_stream_that_do_not_read_are_one_sentence(options: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        locate(f"hub:a/b?{options}")


def test_only_a_name_on_the_hub_is_streamed(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not a name on the hub"):
        locate(f"{tmp_path}?streaming=true&count=5")
    with pytest.raises(ProblemError, match="has its images in one file; leave streaming out"):
        locate("hub:TIGER-Lab/ViRL39K?streaming=true&count=5")


def test_a_sentence_says_what_is_read_and_where_it_is_kept(
    opened: list[dict[str, Any]], tmp_path: Path, run: Run
):
    source = "hub:a/b?streaming=true&count=60&seed=7"
    load_problems(source)
    (kept,) = (tmp_path / "cache" / "vaopd").iterdir()
    expected = (
        "a/b@train: the first 60 rows of the stream, shuffled with seed 7 in a buffer of 1000 "
        f"rows, are read once and kept in {kept}"
    )
    assert stream_line(source) == expected
    code, out, err = run("data", "check", source)
    assert (code, expected in err) == (0, True)
    assert "60 rows, 60 can be used" in out
    for other in ("drawn:train", "hub:a/b", "python:train", str(tmp_path)):
        assert stream_line(other) == ""
