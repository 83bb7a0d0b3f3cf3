"""Reading through `datasets.load_dataset`, from a mirror in the layout of the hub.

The hub itself is not asked: what is tested is everything behind the download (configurations from
the card, splits, image features, rows without their images), and the sentence without a connection.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.evaluation.items import load_items
from vaopd.evaluation.registry import BENCHMARKS
from vaopd.problems.problem import Problem
from vaopd.problems.reading import ReadingRules, placed_problems
from vaopd.problems.sources import Location

CARD = """---
configs:
- config_name: Art
  data_files:
  - split: dev
    path: Art/dev-*
  - split: validation
    path: Art/validation-*
- config_name: Math
  data_files:
  - split: validation
    path: Math/validation-*
---
"""
MMMU = replace(BENCHMARKS["mmmu"], configs=("Art", "Math"))


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()


def row(id: str, *greys: int) -> dict[str, Any]:
    places = " and ".join(f"<image {number}>" for number in range(1, len(greys) + 1))
    images = {f"image_{n}": None for n in range(1, 8)} | {
        f"image_{n}": {"bytes": png(grey), "path": None} for n, grey in enumerate(greys, start=1)
    }
    return {"id": id, "question": f"See {places}", "options": "['x', 'y']", "answer": "A",
            "question_type": "multiple-choice", **images}  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {name: datasets.Value("string") for name in rows[0] if name not in features}
    data = datasets.Dataset.from_list(rows, features=datasets.Features(text | features))
    data.to_parquet(path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``owner/name`` is the copy of a hub repository; datasets look there too."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path / "hub")
    datasets.disable_progress_bars()
    return tmp_path / "hub"


@pytest.fixture
def mmmu(mirror: Path) -> Path:
    images = {f"image_{number}": datasets.Image() for number in range(1, 8)}
    folder = mirror / "MMMU" / "MMMU"
    shards = {
        "Art/dev": [row("dev_Art_1", 1)],
        "Art/validation": [row("validation_Art_1", 10), row("validation_Art_2", 20, 21)],
        "Math/validation": [row("validation_Math_1", 30)],
    }
    for name, rows in shards.items():
        write_parquet(folder / f"{name}-00000-of-00001.parquet", rows, images)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.mark.usefixtures("mmmu")
def test_every_configuration_is_read_and_images_are_the_bytes_of_the_repository():
    found = load_items(MMMU)
    assert [one.id for one in found.items] == [
        "validation_Art_1", "validation_Art_2", "validation_Math_1",
    ]  # fmt: skip
    assert found.source == f"MMMU/MMMU@{MMMU.revision}"
    assert found.items[1].problem("mmmu").images == (png(20), png(21))
    assert found.items[2].problem("mmmu").images == (png(30),)
    assert found.items[0].reference["category"] == "Art"


@pytest.mark.usefixtures("mmmu")
def test_rows_come_without_decoding_an_image(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", fail)
    found = load_items(MMMU)
    assert found.items[0].problem("mmmu").images == (png(10),)


@pytest.mark.usefixtures("mmmu")
@pytest.mark.parametrize(
    "change",
    [{"split": "nowhere"}, {"configs": ("History",)}, {"hub_id": "no-owner/no-name"}],
    ids=["split", "configuration", "name"],
)
def test_what_is_not_there_is_one_sentence(change: dict[str, Any]):
    with pytest.raises(
        ProblemError, match=r"cannot be loaded from the hub .*download it elsewhere"
    ):
        load_items(replace(MMMU, **change))


@pytest.mark.usefixtures("mmmu")
def test_a_bad_row_of_the_hub_is_named_by_its_configuration_and_number(mmmu: Path, mirror: Path):
    images = {f"image_{number}": datasets.Image() for number in range(1, 8)}
    bad = row("validation_Math_2", 40) | {"answer": "Q"}
    write_parquet(
        mmmu / "Math" / "validation-00000-of-00001.parquet",
        [row("validation_Math_1", 30), bad],
        images,
    )
    with pytest.raises(
        ProblemError, match=r"^mmmu: MMMU/MMMU/Math@validation row 2: the answer 'Q'"
    ):
        load_items(MMMU)
    found = load_items(MMMU, on_bad_row="skip")
    assert (len(found.items), len(found.skipped)) == (3, 1)


def test_training_problems_come_in_the_encoded_bytes_of_their_split(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = mirror / "hiyouga" / "geometry3k"
    for split, grey in (("train", 50), ("validation", 60)):
        rows = [{"images": [{"bytes": png(grey + n), "path": None}], "problem": "<image>x?",
                 "answer": "5 \\sqrt { 3 }"} for n in range(2)]  # fmt: skip
        write_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet",
            rows,
            {"images": datasets.List(datasets.Image())},
        )
    # A folder of that name would be read as a folder; the hub's way is meant here.
    hub = Location("hiyouga/geometry3k", "validation", None, None)
    found = [one for _, one in placed_problems(hub.rows(), hub.name, hub.split, ReadingRules())]
    problems = [one for one in found if isinstance(one, Problem)]
    assert [list(one.stored_images()) for one in problems] == [[png(60)], [png(61)]]
    assert problems[1].id == "hiyouga/geometry3k:validation:1"
