import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vaopd.errors import RunFolderError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem
from vaopd.training import checkpoint as checkpoint_module
from vaopd.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from vaopd.training.step import Step

STATE_FOLDER = "trainer_state"
STATE = {"step": 2, "before": None, "after": {"accuracy": 0.1 + 0.2}}


@pytest.fixture
def trained(make_step: Callable, problems: list[Problem]) -> Step:
    """A student after two updates, so that its moments say something."""
    step = make_step()
    for number in (1, 2):
        step.run(problems, number)
    return step


def moments(step: Step) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, parameter in step.student.model.named_parameters()
        for key, value in step.optimizer.state[parameter].items()
    }


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


def test_weights_moments_and_state_come_back_bit_by_bit(
    trained: Step, make_step: Callable, problems: list[Problem], tmp_path: Path
):
    folder = checkpoint_path(tmp_path, 2)
    save_checkpoint(folder, trained.student, trained.optimizer, STATE)
    fresh = make_step()
    assert load_checkpoint(folder, fresh.student, fresh.optimizer) == STATE
    assert equal(fresh.student.model.state_dict(), trained.student.model.state_dict())
    assert equal(moments(fresh), moments(trained))
    # And they work as one: the next update is the same.
    assert fresh.run(problems, 3).loss == trained.run(problems, 3).loss
    assert equal(fresh.student.model.state_dict(), trained.student.model.state_dict())
    assert equal(moments(fresh), moments(trained))


def test_a_checkpoint_is_a_model_folder_without_anything_pickled(trained: Step, tmp_path: Path):
    folder = checkpoint_path(tmp_path, 2)
    save_checkpoint(folder, trained.student, trained.optimizer, STATE)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
        "trainer_state/optimizer.safetensors",
        "trainer_state/state.json",
    }
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja", ".txt"}
    # A pickle could hide under any name: all other files are text.
    for name in names:
        if not name.endswith(".safetensors"):
            (folder / name).read_text(encoding="utf-8")
    cpu = torch.device("cpu")
    again = load_model(str(folder), device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    assert equal(again.model.state_dict(), trained.student.model.state_dict())


def test_a_failure_while_saving_leaves_no_checkpoint_under_the_name(
    trained: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    message = (
        r"checkpoint .*step_000004 could not be written \(disk full\); checkpoint step_000002 is "
        "as it was: make space and go on from it with --resume"
    )

    save_checkpoint(checkpoint_path(tmp_path, 2), trained.student, trained.optimizer, STATE)
    for name in ("save_file", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, name, fail)
            with pytest.raises(RunFolderError, match=message):
                save_checkpoint(
                    checkpoint_path(tmp_path, 4), trained.student, trained.optimizer, STATE
                )
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]


def test_the_newest_checkpoint_is_the_last_complete_one(tmp_path: Path):
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10):
        state = checkpoint_path(tmp_path, step) / "trainer_state" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"step": step}))
    # What a kill leaves behind, and a folder that someone emptied by half.
    partial = tmp_path / "checkpoints" / ".step_000012.partial" / "trainer_state"
    partial.mkdir(parents=True)
    (partial / "state.json").write_text("{}")
    (tmp_path / "checkpoints" / "step_000011").mkdir()
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 10)


def test_all_but_the_newest_checkpoints_are_removed(tmp_path: Path):
    for step in (2, 4, 10, 12):
        state = checkpoint_path(tmp_path, step) / "trainer_state" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
    (tmp_path / "checkpoints" / "mine").mkdir()
    remove_old_checkpoints(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 4
    remove_old_checkpoints(tmp_path, 2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_000010", "step_000012", "mine"}
    remove_old_checkpoints(tmp_path, 5)
    assert len(checkpoints(tmp_path)) == 2


def test_checkpoints_of_every_so_many_steps_stay_for_good(tmp_path: Path):
    for step in (2, 4, 6, 8, 10):
        state = checkpoint_path(tmp_path, step) / "trainer_state" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
    remove_old_checkpoints(tmp_path, 1, 4)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step_000004", "step_000008", "step_000010"]


@pytest.fixture
def small_files() -> Iterator[Callable[[], None]]:
    """Let no file grow beyond 100 kB, which the system refuses as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_no_more_fails_the_save_and_nothing_else(
    trained: Step, tmp_path: Path, small_files: Callable[[], None]
):
    save_checkpoint(checkpoint_path(tmp_path, 2), trained.student, trained.optimizer, STATE)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    small_files()
    with pytest.raises(
        RunFolderError, match=r"step_000004 could not be written .*step_000002 is as"
    ):
        save_checkpoint(checkpoint_path(tmp_path, 4), trained.student, trained.optimizer, STATE)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]


def test_a_disk_that_is_full_at_the_first_save_promises_no_earlier_checkpoint(
    trained: Step, tmp_path: Path, small_files: Callable[[], None]
):
    small_files()
    with pytest.raises(RunFolderError) as error:
        save_checkpoint(checkpoint_path(tmp_path, 4), trained.student, trained.optimizer, STATE)
    assert "no earlier checkpoint: make space, and --resume begins at step 1" in str(error.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", f"{STATE_FOLDER}/optimizer.safetensors",
             f"{STATE_FOLDER}/state.json"]
)  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_refused_before_it_changes_the_student(
    trained: Step, make_step: Callable, tmp_path: Path, name: str, damage: str
):
    folder = checkpoint_path(tmp_path, 2)
    save_checkpoint(folder, trained.student, trained.optimizer, STATE)
    path = folder / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "gone":
        path.unlink()
    else:
        # The last number is still a number.
        changed = bytearray(path.read_bytes())
        changed[-3] ^= 1
        path.write_bytes(changed)
    fresh = make_step()
    before = {key: value.clone() for key, value in fresh.student.model.state_dict().items()}
    with pytest.raises(RunFolderError, match=r"step_000002 cannot be read .*; remove that folder"):
        load_checkpoint(folder, fresh.student, fresh.optimizer)
    assert equal(fresh.student.model.state_dict(), before)


def test_the_newest_sound_checkpoint_is_offered_in_place_of_a_damaged_one(
    trained: Step, make_step: Callable, tmp_path: Path
):
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), trained.student, trained.optimizer, STATE)
    fresh = make_step()
    remedies = []
    for step in (3, 2, 1):
        moments_file = checkpoint_path(tmp_path, step) / STATE_FOLDER / "optimizer.safetensors"
        moments_file.write_bytes(moments_file.read_bytes()[:-1] + b"\xff")
        with pytest.raises(RunFolderError, match="checksum differs") as error:
            load_checkpoint(checkpoint_path(tmp_path, 3), fresh.student, fresh.optimizer)
        remedies.append(str(error.value).partition("; ")[2])
    offer = "remove that folder to go on from step_00000{}, the newest sound checkpoint"
    assert remedies[:2] == [offer.format(2), offer.format(1)]
    assert "no other checkpoint is sound" in remedies[2]


def test_the_checkpoint_of_another_model_is_refused(
    trained: Step, make_step: Callable, tmp_path: Path
):
    folder = checkpoint_path(tmp_path, 2)
    save_checkpoint(folder, trained.student, trained.optimizer, STATE)
    step = make_step()
    cpu = torch.device("cpu")
    other: VisionLanguageModel = load_model(
        "tiny:new-teacher-l", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )
    with pytest.raises(RunFolderError, match=r"does not fit the student 'tiny:new-teacher-l'"):
        load_checkpoint(folder, other, step.optimizer)
