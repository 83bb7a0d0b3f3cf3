from dataclasses import replace
from pathlib import Path

import pytest

from vaopd.errors import ConfigError
from vaopd.problems import drawn as drawn_module
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.manifest import MANIFEST, check_unchanged, manifest
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems
from vaopd.records import write_json


def problem(id: str, *, prompt: str = "<image>What?", image: bytes = b"one") -> Problem:
    return Problem(id, prompt, (image,), "1", source="s", split="train")


TRAIN = [problem("a"), problem("b", image=b"two"), problem("c", prompt="<image>How?")]


def test_every_held_out_problem_is_listed_with_the_hash_of_its_content():
    held_out = [problem("x", image=b"three"), problem("y", image=b"four")]
    written = manifest(TRAIN, held_out)
    assert written["validation"] == [{"id": p.id, "sha256": p.content_hash()} for p in held_out]
    assert written["train"]["problems"] == 3
    assert manifest(TRAIN, None)["validation"] is None


def test_a_shared_id_is_one_sentence_with_the_count_and_the_first_ids():
    held_out = [problem(id, image=id.encode()) for id in ("x", "c", "b", "a")]
    with pytest.raises(
        ConfigError,
        match=r"^3 of 4 problems of data\.validation .* \(3 by id, 0 by question and image\), "
        r"the first: c, b, a; .* data\.allow_overlap=true$",
    ) as error:
        manifest(TRAIN, held_out)
    assert error.value.exit_code == 2


def test_the_same_question_and_image_under_another_id_is_found():
    with pytest.raises(ConfigError, match=r"^1 of 2 .*\(0 by id, 1 by question and image\).*: y;"):
        manifest(TRAIN, [problem("x", image=b"three"), problem("y", image=b"two")])


def test_an_image_with_another_question_or_a_question_with_another_image_is_not_an_overlap():
    written = manifest(TRAIN, [problem("x", prompt="<image>Why?"), problem("y", image=b"three")])
    assert len(written["validation"]) == 2


def test_an_overlap_can_be_meant():
    written = manifest(TRAIN, TRAIN, allow_overlap=True)
    assert len(written["validation"]) == 3


def test_content_is_compared_also_where_images_are_files(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(b"one")
    stored = replace(TRAIN[0], id="x", images=(tmp_path / "one.png",))
    with pytest.raises(ConfigError, match="1 by question and image"):
        manifest(TRAIN, [stored])


def test_drawn_training_problems_are_not_drawn_to_be_compared(monkeypatch: pytest.MonkeyPatch):
    train = DrawnProblems(num_problems=10**9)
    drawn = list(DrawnProblems("validation", 2))
    canvas, canvases = drawn_module.Canvas, []
    monkeypatch.setattr(drawn_module, "Canvas", lambda *given: canvases.append(1) or canvas(*given))
    assert manifest(train, drawn)["train"]["problems"] == 10**9
    # The type checks of the tests look at an item or two of every sequence that is handed on.
    assert len(canvases) < 100


def test_drawn_problems_of_the_same_stream_overlap():
    train = DrawnProblems(num_problems=4, seed=3)
    with pytest.raises(ConfigError, match=r"^4 of 6 .* the first: drawn:train:3:0, "):
        manifest(train, list(DrawnProblems(num_problems=6, seed=3)))
    for other in (DrawnProblems("validation", 6, 3), DrawnProblems("train", 6, 4)):
        manifest(train, list(other))


@pytest.mark.parametrize("id", ["drawn:train:0:4", "drawn:train:0:", "drawn:train:0:-1", "0"])
def test_ids_beyond_a_drawn_sequence_are_not_its_own(id: str):
    assert not DrawnProblems(num_problems=4).has_id(id)
    assert DrawnProblems(num_problems=4).has_id("drawn:train:0:3")


def test_a_sample_of_the_training_file_overlaps_and_the_rest_of_a_split_does_not():
    source = "package:geometry3k_sample"
    train = load_problems(source)
    with pytest.raises(ConfigError, match=r"^4 of 4 .*\(4 by id, 4 by question and image\)"):
        manifest(train, load_problems(f"{source}?sample=4&seed=42"))
    manifest(train[:5], train[5:])


# --- going on with other data ----------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json(tmp_path / MANIFEST, manifest(TRAIN, [problem("x", image=b"three")]))
    return tmp_path


def test_other_images_of_the_teacher_are_noticed(tmp_path: Path):
    held_out = [replace(problem("x", image=b"three"), teacher_images=(b"large",))]
    write_json(tmp_path / MANIFEST, manifest(TRAIN, held_out))
    check_unchanged(tmp_path, manifest(TRAIN, held_out))
    for images in ((), (b"other",)):
        changed = [replace(held_out[0], teacher_images=images)]
        with pytest.raises(ConfigError, match=r"data\.validation has changed"):
            check_unchanged(tmp_path, manifest(TRAIN, changed))
    annotated = [replace(TRAIN[0], teacher_images=(b"large",)), *TRAIN[1:]]
    with pytest.raises(ConfigError, match=r"data\.train has changed"):
        check_unchanged(tmp_path, manifest(annotated, held_out))


def test_the_same_data_is_not_a_change(run: Path):
    check_unchanged(run, manifest(list(TRAIN), [problem("x", image=b"three")]))


@pytest.mark.parametrize(
    "train",
    [
        TRAIN[:2],
        TRAIN[::-1],
        [*TRAIN[:2], replace(TRAIN[2], id="d")],
        [*TRAIN[:2], replace(TRAIN[2], answer="2")],
        [*TRAIN[:2], replace(TRAIN[2], references=("because",))],
    ],
    ids=["fewer", "order", "id", "answer", "reference"],
)
def test_other_training_problems_are_noticed(run: Path, train: list[Problem]):
    with pytest.raises(
        ConfigError, match=r"^data\.train has changed .*3 problems then, . now"
    ) as e:
        check_unchanged(run, manifest(train, [problem("x", image=b"three")]))
    assert e.value.exit_code == 2


@pytest.mark.parametrize(
    ("held_out", "first"),
    [
        ([problem("x", image=b"four")], "x"),
        ([problem("y", image=b"three")], "x, y"),
        ([problem("x", image=b"three"), problem("y", image=b"four")], "y"),
        (None, "x"),
    ],
    ids=["content", "id", "more", "none"],
)
def test_other_held_out_problems_are_noticed(run: Path, held_out: list[Problem] | None, first: str):
    with pytest.raises(ConfigError, match=rf"data\.validation has changed .* the first: {first};"):
        check_unchanged(run, manifest(TRAIN, held_out))


def test_drawn_training_problems_of_another_kind_are_noticed(tmp_path: Path):
    write_json(tmp_path / MANIFEST, manifest(DrawnProblems(num_problems=4), None))
    check_unchanged(tmp_path, manifest(DrawnProblems(num_problems=4), None))
    with pytest.raises(ConfigError, match=r"data\.train has changed"):
        check_unchanged(tmp_path, manifest(DrawnProblems(num_problems=4, variety=0.5), None))


def test_a_run_without_a_manifest_goes_on(tmp_path: Path):
    check_unchanged(tmp_path, manifest(TRAIN, None))
