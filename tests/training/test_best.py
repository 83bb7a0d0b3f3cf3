import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from vaopd.config import RunConfig
from vaopd.evaluation.validation import Validation, ValidationResult, Validator
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.records import read_rows
from vaopd.training import run as run_module
from vaopd.training import setup
from vaopd.training.best import Best, best_path, better, mark_best, restore_best
from vaopd.training.checkpoint import checkpoint_path, checkpoints, save_checkpoint
from vaopd.training.run import RunResult, train
from vaopd.training.step import Step

ACCURACIES = {0: 0.9, 1: 0.2, 2: 0.6, 3: 0.4, 4: 0.6, 5: 0.5}
"""What the scripted validations give; the student before the first step is no candidate."""


def quiet() -> Console:
    return Console(file=io.StringIO())


def result(accuracy: float) -> ValidationResult:
    return ValidationResult(
        accuracy=accuracy, unparsed=0.0, truncated=0.0, response_length=1.0, accuracy_by_kind={}
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations give the accuracy that stands for the number of updates taken."""

    def examine(
        self: Validator, student: VisionLanguageModel, progress: Callable, version: int
    ) -> Validation:
        steps = [state["step"].item() for state in optimizers[-1].state.values()]
        return Validation(result(ACCURACIES[int(max(steps, default=0))]), [])

    optimizers: list[torch.optim.Optimizer] = []
    make = setup.make_optimizer
    monkeypatch.setattr(
        setup,
        "make_optimizer",
        lambda *parts: optimizers.append(make(*parts)) or optimizers[-1],
    )
    monkeypatch.setattr(Validator, "examine", examine)


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    def make(*overrides: str) -> RunConfig:
        return make_config(
            "data.validation=drawn:validation?count=1",
            "method.name=sft",
            "data.train=drawn:train?count=8&kinds=number",
            "training.max_steps=5",
            "training.epochs=2",
            "training.validate_every=1",
            "training.save_every=null",
            "training.keep_checkpoints=1",
            *overrides,
        )

    return make


def marked(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "best.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("values", "step"),
    [([0.5], 1), ([0.5, 0.7, 0.7], 2), ([0.7, 0.5, 0.6], 1), ([0.0, 0.0], 1), ([None, 0.1], 2)],
)
def test_the_earliest_of_the_highest_is_best(values: Sequence[float | None], step: int):
    best = None
    for number, value in enumerate(values, start=1):
        best = better(best, number, None if value is None else result(value))
    assert best is not None
    assert (best.metric, best.step, best.value) == ("accuracy", step, values[step - 1])


@pytest.mark.usefixtures("scripted")
def test_a_step_that_is_not_saved_can_be_best_and_retention_leaves_it(
    config: Callable, tmp_path: Path
):
    done = train(config(), tmp_path / "run", console=quiet())
    assert done.best == Best("accuracy", 2, 0.6)
    assert marked(done.output) == {"metric": "accuracy", "step": 2, "value": 0.6}
    assert json.loads((done.output / "summary.json").read_text())["best"] == marked(done.output)
    assert [path.name for path in checkpoints(done.output)] == ["step_000005"]
    # The same run that keeps everything has the weights after two steps.
    whole = train(
        config("training.save_every=1", "training.keep_checkpoints=null"),
        tmp_path / "whole",
        console=quiet(),
    )
    assert weights(best_path(done.output)) == weights(checkpoint_path(whole.output, 2))
    assert weights(best_path(done.output)) != weights(checkpoint_path(whole.output, 4))
    # Only validations that are best so far save what was not due.
    assert len(checkpoints(whole.output)) == 5


def stored(folder: Path) -> int:
    """Return the bytes of the weights and moments on disk: a file of several names counts once."""
    found = {(f := path.stat()).st_ino: f.st_size for path in folder.rglob("*.safetensors")}
    return sum(found.values())


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("overrides", "weights", "moments"),
    [
        # The checkpoint after the last step, and the best weights of step 2.
        ((), 2, 1),
        (("training.save_dtype=bfloat16",), 2.5, 1),
        # The last step is the best.
        (("training.max_steps=2",), 1, 1),
        # Steps 1 and 2 were the best so far; 3 and 5 are newer.
        (("training.save_every=1", "training.keep_checkpoints=null"), 5, 5),
    ],
)
def test_no_weight_is_stored_twice(
    config: Callable, tmp_path: Path, overrides: tuple[str, ...], weights: float, moments: int
):
    done = train(config(*overrides), tmp_path / "run", console=quiet())
    loaded = load_file(done.output / "final" / "model.safetensors")
    numbers = sum(tensor.numel() for tensor in loaded.values())
    expected = 4 * numbers * weights + 2 * 4 * numbers * moments
    assert expected < stored(done.output) < 1.02 * expected
    seen = checkpoint_path(done.output, done.steps) / "model.safetensors"
    assert all(t.to(loaded[n].dtype).equal(loaded[n]) for n, t in load_file(seen).items())


@pytest.mark.usefixtures("scripted")
def test_without_validation_nothing_is_best(config: Callable, tmp_path: Path):
    done = train(config("data.validation=null"), tmp_path / "run", console=quiet())
    assert done.best is None
    assert not best_path(done.output).exists()


def interrupted(
    config: RunConfig,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: int,
    then: RunConfig | None = None,
) -> RunResult:
    """Train until ``run_module.NAME`` is called for the step, fail there, and resume."""
    call = getattr(run_module, name)

    def fail(*parts: Any) -> None:
        # save_checkpoint(folder, ..) and mark_best(run, best).
        if parts[0] == checkpoint_path(output, step) or parts[1] == Best("accuracy", step, 0.6):
            raise KeyboardInterrupt
        call(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, name, fail)
        with pytest.raises(KeyboardInterrupt):
            train(config, output, console=quiet())
    return train(then or config, output, resume=True, console=quiet())


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("name", ["save_checkpoint", "mark_best"])
def test_a_kill_before_the_save_or_before_the_mark_leaves_the_same_best(
    config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    options = config("training.save_every=3")
    whole = train(options, tmp_path / "whole", console=quiet())
    resumed = interrupted(options, tmp_path / "run", monkeypatch, name, 2)
    assert resumed.best == whole.best == Best("accuracy", 2, 0.6)
    assert marked(resumed.output) == marked(whole.output)
    assert weights(best_path(resumed.output)) == weights(best_path(whole.output))
    rows = [read_rows(done.output / "validation.jsonl") for done in (resumed, whole)]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("scripted")
def test_what_a_kill_forgot_is_not_best_when_it_is_never_validated_again(
    config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Killed between the validation of step 2 and its save; the resumed run validates at the end.
    seldom = config("training.validate_every=null")
    done = interrupted(config(), tmp_path / "run", monkeypatch, "save_checkpoint", 2, seldom)
    assert [row["step"] for row in read_rows(done.output / "validation.jsonl")] == [0, 1, 5]
    assert done.best == Best("accuracy", 5, 0.5)
    assert weights(best_path(done.output)) == weights(checkpoint_path(done.output, 5))


# --- the folder ------------------------------------------------------------------------------


@pytest.fixture
def saved(make_step: Callable[..., Step], tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 2 and 4, of other weights each."""
    step = make_step()
    for number in (2, 4):
        save_checkpoint(checkpoint_path(tmp_path, number), step.student, step.optimizer, {})
        with torch.no_grad():
            next(iter(step.student.model.parameters())).add_(1.0)
    return tmp_path


def test_best_is_a_model_folder_that_survives_copying_and_the_end_of_its_checkpoint(saved: Path):
    mark_best(saved, Best("accuracy", 2, 0.5))
    expected = weights(checkpoint_path(saved, 2))
    source = best_path(saved) / "model.safetensors"
    assert os.path.samefile(source, checkpoint_path(saved, 2) / "model.safetensors")
    shutil.rmtree(checkpoint_path(saved, 2))
    shutil.copytree(best_path(saved), saved / "elsewhere")
    shutil.rmtree(best_path(saved))
    assert weights(saved / "elsewhere") == expected
    assert not any(path.is_symlink() for path in saved.rglob("*"))
    assert not (saved / "elsewhere" / "trainer_state").exists()
    cpu = torch.device("cpu")
    load_model(
        str(saved / "elsewhere"), device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )


def test_what_a_user_edits_in_best_is_not_edited_in_the_checkpoint(saved: Path):
    mark_best(saved, Best("accuracy", 2, 0.5))
    before = (checkpoint_path(saved, 2) / "config.json").read_bytes()
    with (best_path(saved) / "config.json").open("a") as file:
        file.write("\n")
    assert (checkpoint_path(saved, 2) / "config.json").read_bytes() == before


def test_where_there_are_no_hard_links_the_weights_are_copied(
    saved: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    mark_best(saved, Best("accuracy", 4, 0.5))
    assert weights(best_path(saved)) == weights(checkpoint_path(saved, 4))


def test_a_new_best_replaces_the_old_one(saved: Path):
    for number in (2, 4):
        mark_best(saved, Best("accuracy", number, number / 10))
        assert weights(best_path(saved)) == weights(checkpoint_path(saved, number))
        assert marked(saved)["step"] == number
    hidden = [path.name for path in (saved / "checkpoints").iterdir() if path.name[0] == "."]
    assert hidden == []


@pytest.mark.parametrize("lost", ["best", "best.json"])
def test_resuming_mends_a_mark_that_a_kill_cut_off(saved: Path, lost: str):
    best = Best("accuracy", 4, 0.5)
    mark_best(saved, best)
    path = saved / "checkpoints" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert restore_best(saved, dataclasses.asdict(best)) == best
    assert weights(best_path(saved)) == weights(checkpoint_path(saved, 4))
    assert marked(saved)["step"] == 4


def test_a_best_whose_checkpoint_is_long_gone_stays(saved: Path):
    best = Best("accuracy", 2, 0.5)
    mark_best(saved, best)
    shutil.rmtree(checkpoint_path(saved, 2))
    assert restore_best(saved, dataclasses.asdict(best)) == best
    assert best_path(saved).is_dir()


def test_going_back_behind_the_best_takes_the_one_before_or_none(saved: Path):
    # Step 4 was best; its checkpoint turned out damaged and was removed by hand.
    mark_best(saved, Best("accuracy", 4, 0.5))
    shutil.rmtree(checkpoint_path(saved, 4))
    before = Best("accuracy", 2, 0.4)
    assert restore_best(saved, dataclasses.asdict(before)) == before
    assert weights(best_path(saved)) == weights(checkpoint_path(saved, 2))
    mark_best(saved, before)
    shutil.rmtree(checkpoint_path(saved, 2))
    assert restore_best(saved, {"metric": "accuracy", "step": 1, "value": 0.3}) is None
    assert not best_path(saved).exists()
    assert not (saved / "checkpoints" / "best.json").exists()
