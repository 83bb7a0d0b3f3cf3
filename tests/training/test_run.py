import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from vaopd.config import RunConfig, load_config
from vaopd.display import step_line
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, ModelError, ProblemError, RunFolderError, TrainingError
from vaopd.lock import LOCK, FolderLock
from vaopd.models.loading import load_model
from vaopd.records import read_rows
from vaopd.training.data import read_data
from vaopd.training.ledger import LEDGER, check_records
from vaopd.training.result import RunResult
from vaopd.training.run import build_run, train
from vaopd.training.run_folder import check_free, claim, remove_run
from vaopd.training.schedule import problems_of_step
from vaopd.training.step import Step


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


@dataclasses.dataclass
class Finished:
    result: RunResult
    config: RunConfig
    text: str

    @property
    def folder(self) -> Path:
        return self.result.output

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return read_rows(self.folder / name)


@pytest.fixture(scope="module")
def finished(make_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A whole run of three steps."""
    config = make_config(
        "training.max_steps=3",
        "training.save_every=2",
        "training.validate_every=2",
        "training.log_rollouts_every=2",
        "data.validation=drawn:validation?count=2",
        "validation.pixelated=true",
    )
    console = quiet()
    result = train(config, tmp_path_factory.mktemp("runs") / "run", console=console)
    assert isinstance(console.file, io.StringIO)
    return Finished(result, config, console.file.getvalue())


def test_a_run_leaves_the_files_of_a_run_folder(finished: Finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "manifest.json",
        "metrics.jsonl",
        "validation.jsonl",
        "checksums.jsonl",
        # Random models end no response within six tokens.
        "warnings.jsonl",
        "validation",
        "rollouts",
        "checkpoints",
        "final",
        "summary.json",
    }
    assert [p.name for p in sorted((finished.folder / "checkpoints").iterdir())] == [
        "best",
        "best.json",
        "step_000002",
        "step_000003",
    ]
    assert [p.name for p in (finished.folder / "rollouts").glob("*.jsonl")] == ["step_000002.jsonl"]


def test_every_record_of_a_run_has_its_checksum(finished: Finished):
    check_records(finished.folder, 3)
    noted = [(row["file"], row["step"]) for row in read_rows(finished.folder / LEDGER)]
    folders = ("rollouts", "validation")
    files = [path for name in folders for path in (finished.folder / name).glob("*.jsonl")]
    rows = [
        (name, row["step"])
        for name in ("metrics.jsonl", "validation.jsonl")
        for row in read_rows(finished.folder / name)
    ]
    written = [(f"{path.parent.name}/{path.name}", int(path.stem[5:])) for path in files]
    assert sorted(noted) == sorted(rows + written)


def test_nothing_in_a_run_folder_is_pickled(finished: Finished):
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        ".json", ".jsonl", ".yaml", ".safetensors", ".jinja", ".txt", ".png", ".md"
    }  # fmt: skip
    for path in files:
        if path.suffix not in (".safetensors", ".png"):
            path.read_text(encoding="utf-8")
    # Two checkpoints with moments, the best and the final model.
    assert len([path for path in files if path.suffix == ".safetensors"]) == 2 + 2 + 1 + 1


def test_the_resolved_configuration_is_that_of_the_run(finished: Finished):
    assert load_config(finished.folder / "config.yaml") == finished.config


def test_every_step_has_a_row_of_metrics(finished: Finished):
    rows = finished.rows()
    assert [row["step"] for row in rows] == [1, 2, 3]
    # No warm-up in 3 steps: 1e-3 (1 + cos(0)) / 2, with cos(pi / 3), with cos(2 pi / 3).
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 2.5e-4])
    for row in rows:
        assert {
            "loss", "kl/mean", "va/mean", "va/high_share", "va/high_zero_share", "gradient_norm",
            "response/length", "response/truncated_share", "tokens_per_second", "accuracy",
            "weights/rollout_max", "weights/rollout_min", "weights/effective_share",
            "time/data", "time/sample", "time/score", "time/train",
        } <= row.keys()  # fmt: skip
        assert 0 <= row["va/high_share"] <= 1
        assert row["weights/rollout_max"] >= 1 / 3 >= row["weights/rollout_min"]
        seconds = sum(value for key, value in row.items() if key.startswith("time/"))
        # 2 problems, 3 rollouts each.
        tokens = 6 * row["response/length"]
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds, rel=1e-2)


def test_validations_are_before_every_so_many_steps_and_at_the_end(finished: Finished):
    rows = finished.rows("validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 3]
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert {"step": 0, **summary["before"]} == rows[0]
    assert {"step": 3, **summary["after"]} == rows[2]
    assert summary["steps"] == finished.result.steps == 3


def test_rollout_rows_hold_every_token_with_its_numbers(finished: Finished):
    rows = finished.rows("rollouts/step_000002.jsonl")
    assert len(rows) == 6
    for row in rows:
        num_tokens = len(row["token_ids"])
        for key in ("tokens", "kl", "token_weight", "original_logprobs", "degraded_logprobs",
                    "visual_advantage", "is_high"):  # fmt: skip
            assert len(row[key]) == num_tokens
        for gain, original, degraded in zip(
            row["visual_advantage"], row["original_logprobs"], row["degraded_logprobs"], strict=True
        ):
            assert gain == pytest.approx(max(0, original - degraded), abs=3e-6)
        assert sum(row["token_weight"]) == pytest.approx(row["rollout_weight"], abs=1e-5)
        # ceil(.2 T) tokens.
        assert sum(row["is_high"]) == -(-num_tokens // 5)
    by_problem: dict[str, float] = {}
    for row in rows:
        total = by_problem.get(row["problem_id"], 0)
        by_problem[row["problem_id"]] = total + row["rollout_weight"]
    assert list(by_problem.values()) == pytest.approx([1, 1])


def test_rollout_rows_name_the_pictures_that_the_models_saw(finished: Finished):
    rows = finished.rows("rollouts/step_000002.jsonl")
    names = {(row["images"][0], row["degraded_images"][0]) for row in rows}
    # Two problems of three siblings: each picture is stored once.
    assert len(names) == 2
    stored = list((finished.folder / "rollouts" / "images").iterdir())
    assert len(stored) == 4
    for original, degraded in names:
        with (
            Image.open(finished.folder / "rollouts" / original) as first,
            Image.open(finished.folder / "rollouts" / degraded) as second,
        ):
            assert first.size == second.size
            assert first.tobytes() != second.tobytes()


def test_the_log_line_says_what_a_step_did_and_how_long_its_phases_took(finished: Finished):
    line = next(line for line in finished.text.splitlines() if line.startswith("step 1/3"))
    assert re.fullmatch(
        r"step 1/3  loss \d\.\d{4}  KL \d\.\d{4}  VA \d\.\d{4}  VA in high \d+%  accuracy \d+%  "
        r"\d+ tokens/s  sample \d+\.\ds  score \d+\.\ds  train \d+\.\ds",
        line.strip(),
    )


def test_the_log_line_shows_the_numbers_of_the_row():
    row = {
        "loss": 0.12345, "kl/mean": 0.5, "va/mean": 0.25, "va/high_share": 0.755,
        "accuracy": 0.5, "tokens_per_second": 1234.6,
        "time/data": 9.0, "time/sample": 1.26, "time/score": 2.0, "time/train": 3.04,
    }  # fmt: skip
    assert step_line(row) == (
        "loss 0.1235  KL 0.5000  VA 0.2500  VA in high 76%  accuracy 50%  1235 tokens/s  "
        "sample 1.3s  score 2.0s  train 3.0s"
    )


def test_the_final_model_is_the_last_checkpoint(finished: Finished):
    final = finished.folder / "final" / "model.safetensors"
    last = finished.folder / "checkpoints" / "step_000003" / "model.safetensors"
    assert final.read_bytes() == last.read_bytes()


def test_the_same_recipe_gives_the_same_bits(finished: Finished, tmp_path: Path):
    train(finished.config, tmp_path / "again", console=quiet())
    for name in ("final/model.safetensors", "rollouts/step_000002.jsonl", "validation.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("method", "present", "absent"),
    [
        ("opd", {"kl/mean", "accuracy", "time/score"}, {"va/mean", "nll/mean"}),
        ("rollout_only", {"kl/mean", "va/mean", "accuracy"}, {"nll/mean"}),
        ("token_only", {"kl/mean", "va/mean", "accuracy"}, {"nll/mean"}),
        ("sft", {"nll/mean"}, {"kl/mean", "va/mean", "accuracy"}),
        ("off_policy_kd", {"nll/mean"}, {"kl/mean", "va/mean", "accuracy"}),
    ],
)
def test_every_method_trains_and_logs_what_it_has(
    make_config: Callable, tmp_path: Path, method: str, present: set[str], absent: set[str]
):
    overrides = [f"method.name={method}", "training.max_steps=1", "training.warmup_fraction=1"]
    if method == "sft":
        # Not even looked for.
        overrides.append("teacher.model=no/such-teacher")
    config = make_config(*overrides, "training.log_rollouts_every=1")
    train(config, tmp_path / "run", console=quiet())
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert present <= row.keys()
    assert not absent & row.keys()
    assert (tmp_path / "run" / "rollouts").exists() == (method != "sft")


def test_off_policy_distillation_learns_what_the_teacher_samples(
    make_config: Callable, tmp_path: Path
):
    overrides = ["training.max_steps=1", "training.log_rollouts_every=1"]
    config = make_config("method.name=off_policy_kd", *overrides)
    train(config, tmp_path / "run", console=quiet())
    rows = read_rows(tmp_path / "run" / "rollouts" / "step_000001.jsonl")
    # The same recipe with the teacher as the student samples the same responses on-policy.
    config = make_config("student.model=tiny:new-teacher-s", "method.name=opd", *overrides)
    teacher = load_model(
        "tiny:new-teacher-s",
        device=torch.device("cpu"),
        dtype=torch.float32,
        compute_dtype=torch.float32,
    )
    data = read_data(config, World(), quiet())
    with ExitStack() as resources:
        run = build_run(config, tmp_path / "other", data, quiet(), World(), resources)
        run.student.model.load_state_dict(teacher.model.state_dict())
        expected = run.step.run(problems_of_step(run.problems, 1, config.training), 1).rollouts
    assert [row["token_ids"] for row in rows] == [list(r.response_ids) for r in expected]
    assert all("nll" in row and "kl" not in row for row in rows)


def test_supervised_runs_measure_advantage_with_a_teacher_that_validation_loads(
    make_config: Callable, tmp_path: Path
):
    config = make_config(
        "method.name=sft",
        "training.max_steps=1",
        "data.validation=drawn:validation?count=1",
        "validation.pixelated=true",
        "validation.load_teacher=true",
    )
    result = train(config, tmp_path / "run", console=quiet())
    assert result.after is not None
    assert result.after.student_va is not None
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert "nll/mean" in row


def test_every_validation_leaves_its_responses(finished: Finished):
    files = sorted((finished.folder / "validation").glob("*.jsonl"))
    assert [path.name for path in files] == [f"step_{n:06d}.jsonl" for n in (0, 2, 3)]
    rows = read_rows(files[-1])
    # 2 problems, 1 sample, 2 views.
    assert [row["view"] for row in rows] == ["original"] * 2 + ["degraded"] * 2
    for row in rows:
        assert row["step"] == 3
        assert len(row["tokens"]) == len(row["token_ids"])
        for path in (*row["images"], *row["degraded_images"]):
            with Image.open(finished.folder / "validation" / path) as image:
                assert image.size == (96, 96)
    for seen, blind in zip(rows[:2], rows[2:], strict=True):
        assert seen["problem_id"] == blind["problem_id"]
        lengths = {
            len(seen[key])
            for key in ("token_ids", "visual_advantage", "student_visual_advantage", "is_high")
        }
        assert len(lengths) == 1
        assert blind["is_changed"] == (seen["extracted"] != blind["extracted"])
    numbers = finished.rows("validation.jsonl")[-1]
    assert numbers["accuracy"] == sum(row["is_correct"] for row in rows[:2]) / 2
    assert numbers["answer_change_rate"] == sum(row["is_changed"] for row in rows[2:]) / 2
    assert {"va_correlation", "student_va", "teacher_va"} <= numbers.keys()


def test_the_optimizer_is_adamw_with_the_values_of_the_recipe(make_step: Callable):
    step = make_step(
        "training.learning_rate=2e-5", "training.betas=[0.7, 0.8]", "training.weight_decay=0.03"
    )
    (group,) = step.optimizer.param_groups
    assert type(step.optimizer) is torch.optim.AdamW
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-5, (0.7, 0.8), 0.03)
    assert len(group["params"]) == len(list(step.student.model.parameters()))


# --- folders that exist, and resuming -------------------------------------------------------


def test_a_run_never_writes_into_a_folder_that_exists(make_config: Callable, tmp_path: Path):
    with pytest.raises(RunFolderError, match="exists; choose another --output"):
        train(make_config(), tmp_path, console=quiet())
    assert list(tmp_path.iterdir()) == []


def test_resuming_without_a_run_is_refused(make_config: Callable, tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunFolderError, match="is not a run folder"):
            train(make_config(), folder, resume=True, console=quiet())
    assert list(tmp_path.iterdir()) == []


def test_resuming_with_another_recipe_names_the_changed_keys(finished: Finished):
    values = finished.config.model_dump()
    values["training"]["learning_rate"] = 0.5
    values["view"]["ratio"] = 0.25
    other = RunConfig.model_validate(values)
    with pytest.raises(ConfigError) as error:
        train(other, finished.folder, resume=True, console=quiet())
    message = str(error.value)
    assert "training.learning_rate was 0.001 and is 0.5" in message
    assert "view.ratio was 0.1 and is 0.25" in message
    assert "seed" not in message


def test_resuming_takes_other_values_of_keys_that_teach_nothing(finished: Finished, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(finished.folder, copied)
    for name in ("final", "checkpoints"):
        shutil.rmtree(copied / name)
    values = finished.config.model_dump()
    assert {"batch_tokens", "timeout_seconds"} < finished.config.teacher.free_on_resume()
    assert "learning_rate" not in finished.config.training.free_on_resume()
    values["teacher"]["batch_tokens"] = values["training"]["micro_batch_tokens"] = 1
    other = RunConfig.model_validate(values)
    train(other, copied, resume=True, console=quiet())
    losses = [
        [row["loss"] for row in read_rows(folder / "metrics.jsonl")]
        for folder in (copied, finished.folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert load_config(copied / "config.yaml") == other


def test_resuming_and_overwriting_at_once_is_refused(finished: Finished):
    before = sorted(finished.folder.rglob("*"))
    with pytest.raises(ConfigError, match="give only one"):
        train(finished.config, finished.folder, resume=True, overwrite=True, console=quiet())
    assert sorted(finished.folder.rglob("*")) == before


def test_running_out_of_memory_says_which_values_to_lower(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    with monkeypatch.context() as patch:
        patch.setattr(Step, "apply_gradient", fail)
        with pytest.raises(
            TrainingError, match=r"^memory ran out \(CUDA out of memory\); go on by"
        ):
            train(finished.config, tmp_path / "run", console=quiet())
    train(finished.config, tmp_path / "run", resume=True, console=quiet())
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    assert final == (finished.folder / "final" / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_none_of_its_numbers(finished: Finished, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(finished.folder, copied)
    shutil.rmtree(copied / "final")
    result = train(finished.config, copied, resume=True, console=quiet())
    assert result.before == finished.result.before
    assert result.after == finished.result.after
    for name in ("final/model.safetensors", "metrics.jsonl", "validation.jsonl", "config.yaml"):
        assert (copied / name).read_bytes() == (finished.folder / name).read_bytes()


def test_a_run_killed_before_its_first_checkpoint_begins_again(finished: Finished, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(finished.folder, copied)
    for name in ("final", "checkpoints"):
        shutil.rmtree(copied / name)
    train(finished.config, copied, resume=True, console=quiet())
    assert [row["step"] for row in read_rows(copied / "metrics.jsonl")] == [1, 2, 3]
    for name in ("final/model.safetensors", "validation.jsonl"):
        assert (copied / name).read_bytes() == (finished.folder / name).read_bytes()


def test_overwriting_replaces_an_old_run(finished: Finished, tmp_path: Path):
    old = tmp_path / "run"
    shutil.copytree(finished.folder, old)
    (old / "report.html").touch()
    train(finished.config, old, overwrite=True, console=quiet())
    assert not (old / "report.html").exists()
    assert (old / "final").is_dir()


def test_a_new_run_that_cannot_begin_leaves_the_old_one(
    finished: Finished, make_config: Callable, tmp_path: Path
):
    old = tmp_path / "run"
    shutil.copytree(finished.folder, old)
    with pytest.raises(ConfigError, match="has only 8"):
        train(make_config("training.problems_per_step=9"), old, overwrite=True, console=quiet())
    assert (old / "final" / "model.safetensors").is_file()


def test_overwriting_spares_what_is_no_run(make_config: Callable, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    (tmp_path / "file").write_text("precious")
    for name in ("folder", "file"):
        with pytest.raises(RunFolderError, match="is not a run folder"):
            train(make_config(), tmp_path / name, overwrite=True, console=quiet())
        with pytest.raises(RunFolderError, match="is not a run folder"):
            remove_run(tmp_path / name)
    assert (tmp_path / "folder" / "thesis.tex").exists()
    assert (tmp_path / "file").read_text() == "precious"


def test_removing_a_run_that_is_not_there_does_nothing(tmp_path: Path):
    remove_run(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_being_written_is_neither_resumed_nor_replaced(
    finished: Finished, make_config: Callable, tmp_path: Path
):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    lock = FolderLock(folder, print)
    lock.acquire()
    for flag in ("resume", "overwrite"):
        with pytest.raises(RunFolderError, match=f"is being written by process {os.getpid()} on"):
            train(finished.config, folder, **{flag: True}, console=quiet())
    lock.release()
    assert (folder / "final" / "model.safetensors").is_file()


def test_a_folder_of_which_a_killed_run_left_only_the_lock_is_free(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match="exists"):
        check_free(tmp_path / "run", overwrite=False)
    (tmp_path / "run" / LOCK).touch()
    check_free(tmp_path / "run", overwrite=False)


def test_of_two_new_runs_of_one_name_the_second_to_begin_is_refused(tmp_path: Path):
    locks = [FolderLock(tmp_path / "run", print) for _ in range(2)]
    claim(tmp_path / "run", locks[0], overwrite=False)
    with pytest.raises(RunFolderError, match="is being written"):
        claim(tmp_path / "run", locks[1], overwrite=False)
    (tmp_path / "run" / "config.yaml").touch()
    locks[0].release()
    with pytest.raises(RunFolderError, match="exists; choose another"):
        claim(tmp_path / "run", locks[1], overwrite=False)
    locks[1].release()


# --- failures before the first step leave no folder -----------------------------------------


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Two good rows; the tests spoil one."""
    for name in ("a.png", "b.png"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / name)
    return [
        {"images": [name], "problem": "<image>What is it?", "answer": "1"}
        for name in ("a.png", "b.png")
    ]


@pytest.mark.parametrize("place", ["data.train", "data.validation"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder, row: (folder / "b.png").unlink(), r"row 2: the image b\.png is not in"),
        (
            lambda folder, row: (folder / "b.png").write_bytes(
                (folder / "b.png").read_bytes()[:2000]
            ),
            r"image 1 of problem .* cannot be decoded",
        ),
        (
            lambda folder, row: (folder / "b.png").write_text("no image"),
            r"image 1 of problem .* cannot be decoded",
        ),
        (lambda folder, row: row.update(problem="What?"), r"row 2: problem .* has 0 <image>"),
        (
            lambda folder, row: row.update(problem="<image>" + "long " * 9000),
            r"has a prompt of \d+ tokens, over data\.max_prompt_tokens=8192",
        ),
    ],
    ids=["missing", "truncated", "unreadable", "placeholders", "too long"],
)
def test_bad_data_fails_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list, place: str, spoil: Callable, message: str
):
    spoil(tmp_path, rows[1])
    config = make_config(f"{place}={jsonl(tmp_path, *rows)}")
    with pytest.raises(ProblemError, match=message):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_an_image_behind_the_first_step_is_looked_at_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    rows = [dict(rows[0]) for _ in range(30)] + [rows[1]]
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:2000])
    source = jsonl(tmp_path, *rows)
    with pytest.raises(ProblemError, match=r"problem .*:30 .*b\.png.* cannot be decoded"):
        train(make_config(f"data.train={source}"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()
    careless = make_config(f"data.train={source}", "data.check_images=false")
    assert train(careless, tmp_path / "run", console=quiet()).steps == 2


def test_a_strip_that_the_image_processor_refuses_fails_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    Image.new("RGB", (8, 2000)).save(tmp_path / "b.png")
    config = make_config(f"data.train={jsonl(tmp_path, *rows)}")
    with pytest.raises(ProblemError, match=r"refuses an image .*; crop it"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_held_out_problems_without_answers_fail_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    for row in rows:
        row["answer"] = ""
    config = make_config(f"data.validation={jsonl(tmp_path, *rows)}")
    with pytest.raises(ConfigError, match=r"no problem of data\.validation=.* has an answer"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_training_problems_without_answers_are_enough(
    make_config: Callable, tmp_path: Path, rows: list
):
    for row in rows:
        row["answer"] = ""
    config = make_config(
        f"data.train={jsonl(tmp_path, *rows)}",
        "training.max_steps=1",
        "training.log_rollouts_every=1",
    )
    train(config, tmp_path / "run", console=quiet())
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert "accuracy" not in row
    assert read_rows(tmp_path / "run" / "rollouts" / "step_000001.jsonl")[0]["is_correct"] is None


def other_tokenizer(folder: Path) -> str:
    cpu = torch.device("cpu")
    model = load_model(
        "tiny:new-teacher-s", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )
    model.tokenizer.add_tokens(["<other>"])
    model.save(folder / "other")
    return str(folder / "other")


def test_every_stored_problem_needs_a_reference_for_sft(
    make_config: Callable, tmp_path: Path, rows: list
):
    rows = [{**rows[0], "references": ["1"]} for _ in range(30)] + [rows[1]]
    config = make_config("method.name=sft", f"data.train={jsonl(tmp_path, *rows)}")
    expected = r"^problem .*:30 has no reference response.*skip goes on without it\)$"
    with pytest.raises(ProblemError, match=expected):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_held_out_problems_that_are_trained_on_fail_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    source = jsonl(tmp_path, *rows)
    both = (f"data.train={source}", f"data.validation={source}?sample=1")
    with pytest.raises(
        ConfigError, match=r"^1 of 1 problems of data\.validation are in data\.train"
    ):
        train(make_config(*both), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()
    meant = make_config(*both, "data.allow_overlap=true", "training.max_steps=1")
    assert train(meant, tmp_path / "run", console=quiet()).after is not None


def test_a_resumed_run_notices_other_data(make_config: Callable, tmp_path: Path, rows: list):
    config = make_config(f"data.train={jsonl(tmp_path, *rows)}", "training.max_steps=1")
    train(config, tmp_path / "run", console=quiet())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    jsonl(tmp_path, rows[0], {**rows[1], "answer": "2"})
    with pytest.raises(ConfigError, match=r"^data\.train has changed since"):
        train(config, tmp_path / "run", resume=True, console=quiet())
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["training.device=gpu0"], ConfigError, r"training\.device is 'gpu0'"),
        (["training.device=meta:x"], ConfigError, r"training\.device is 'meta:x'"),
        (["training.problems_per_step=9"], ConfigError, "has only 8"),
        (["student.model=no/such-model"], ModelError, "model 'no/such-model' cannot be loaded"),
        (["student.model=tiny:giant"], ModelError, "no tiny model is called 'giant'"),
        (["teacher.model=tiny:new-giant"], ModelError, "no tiny architecture is called 'giant'"),
        (["data.train=nowhere.jsonl"], ProblemError, r"nowhere\.jsonl does not exist"),
        (["data.validation=drawn:nowhere"], ConfigError, "no split 'nowhere'"),
        (
            ["method.name=sft", "data.train=package:geometry3k_sample"],
            ProblemError,
            r"^10 of 10 rows of data\.train=package:geometry3k_sample cannot be used; .*\n"
            r"  problem .* has no reference response",
        ),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(
    make_config: Callable, tmp_path: Path, overrides: list[str], error: type, message: str
):
    with pytest.raises(error, match=message):
        train(make_config(*overrides), tmp_path / "deep" / "run", console=quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_with_another_tokenizer_fails_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path
):
    config = make_config(f"teacher.model={other_tokenizer(tmp_path)}")
    with pytest.raises(ModelError, match=r"have different tokenizers: token '<other>'"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_sees_other_pixels_fails_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path
):
    cpu = torch.device("cpu")
    model = load_model(
        "tiny:new-teacher-s", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )
    model.processors[0].image_mean = [0.5, 0.5, 0.5]
    model.save(tmp_path / "other")
    with pytest.raises(ModelError, match=r"prepare images differently: image_mean is \[1\.0"):
        train(make_config(f"teacher.model={tmp_path / 'other'}"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_the_recorded_recipe_is_plain_yaml(finished: Finished):
    values = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert values["training"]["betas"] == [0.9, 0.95]


# --- bad rows that are left out -------------------------------------------------------------


@pytest.fixture
def spoiled(tmp_path: Path) -> str:
    """Twelve rows to train on; five cannot be used, each for a reason of its own."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for name in ("a.png", "cut.png"):
        noise.save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    good = {"images": ["a.png"], "answer": "1"}
    rows: list[dict[str, Any]] = [{**good, "problem": f"<image>What is {n}?"} for n in range(12)]
    rows[1] |= {"problem": "What?"}
    rows[3] |= {"images": ["gone.png"]}
    rows[5] |= {"images": ["cut.png"]}
    rows[7] |= {"problem": "<image>" + "long " * 9000}
    rows[9] |= {"problem": "<image><|image_pad|>?"}
    return jsonl(tmp_path, *rows)


USED = [f"data:train:{n}" for n in (0, 2, 4, 6, 8, 10, 11)]


@dataclasses.dataclass
class Skipping:
    config: RunConfig
    folder: Path
    text: str


@pytest.fixture
def skipping(make_config: Callable, tmp_path: Path, spoiled: str) -> Skipping:
    """A run that left out bad rows of both parts."""
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    Image.effect_noise((48, 48), 60).convert("RGB").save(held_out / "b.png")
    good = {"id": "h", "images": ["b.png"], "problem": "<image>How many?", "answer": "2"}
    config = make_config(
        f"data.train={spoiled}",
        f"data.validation={jsonl(held_out, good, {**good, 'id': 'i', 'answer': ''})}",
        "data.on_bad_row=skip",
        "training.epochs=1",
        "training.max_steps=null",
    )
    console = quiet()
    train(config, tmp_path / "run", console=console)
    assert isinstance(console.file, io.StringIO)
    return Skipping(config, tmp_path / "run", console.file.getvalue())


def test_bad_rows_are_listed_together_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    bad = [{**rows[1], "problem": "<image>" + "long " * 9000} for _ in range(12)]
    config = make_config(f"data.train={jsonl(tmp_path, *rows, *bad)}")
    with pytest.raises(ProblemError) as error:
        train(config, tmp_path / "run", console=quiet())
    first, *lines = str(error.value).splitlines()
    assert re.fullmatch(
        r"12 of 14 rows of data\.train=.* cannot be used; correct them, or "
        r"data\.on_bad_row=skip goes on without them:",
        first,
    )
    assert len(lines) == 11 and lines[-1] == "  and 2 more"
    assert all("over data.max_prompt_tokens=8192" in line for line in lines[:10])
    assert not (tmp_path / "run").exists()


def test_a_held_out_row_without_an_answer_fails_before_there_is_a_folder(
    make_config: Callable, tmp_path: Path, rows: list
):
    del rows[1]["answer"]
    config = make_config(f"data.validation={jsonl(tmp_path, rows[0], {**rows[1], 'answer': None})}")
    with pytest.raises(ProblemError, match=r"^problem .*:1 has no answer to validate by"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_bad_rows_that_are_skipped_are_counted_in_log_summary_and_manifest(skipping: Skipping):
    summary = json.loads((skipping.folder / "summary.json").read_text())
    assert summary["skipped_rows"] == {"train": 5, "validation": 1}
    # 7 problems in steps of 2.
    assert summary["steps"] == 3
    manifest = json.loads((skipping.folder / "manifest.json").read_text())
    assert manifest["train"]["problems"] == len(USED)
    assert [row["id"] for row in manifest["validation"]] == ["h"]
    assert [row["id"] for row in manifest["skipped"]["train"]] == [
        None, None, "data:train:5", "data:train:7", "data:train:9"
    ]  # fmt: skip
    reasons = [row["reason"] for row in manifest["skipped"]["train"]]
    assert [reason in skipping.text for reason in reasons] == [True] * 5
    assert "data.train: 5 of 12 rows are left out (data.on_bad_row=skip)" in skipping.text
    assert "data.validation: 1 of 2 rows are left out (data.on_bad_row=skip)" in skipping.text


def test_a_resumed_run_leaves_out_what_it_left_out_before(skipping: Skipping):
    before = (skipping.folder / "manifest.json").read_bytes()
    final = (skipping.folder / "final" / "model.safetensors").read_bytes()
    for name in ("final", "checkpoints"):
        shutil.rmtree(skipping.folder / name)
    # A limit that all prompts keep: checked again, row 8 would be among the problems.
    values = skipping.config.model_dump()
    values["data"]["max_prompt_tokens"] = 100_000
    train(RunConfig.model_validate(values), skipping.folder, resume=True, console=quiet())
    assert (skipping.folder / "manifest.json").read_bytes() == before
    assert (skipping.folder / "final" / "model.safetensors").read_bytes() == final


def test_a_row_that_was_corrected_since_is_noticed_when_resuming(skipping: Skipping, spoiled: str):
    lines = Path(spoiled).read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[0]), "problem": "<image>What else?"})
    Path(spoiled).write_text("\n".join(lines) + "\n")
    expected = r"^data\.train has changed since .* \(7 problems then, 8 now"
    with pytest.raises(ConfigError, match=expected):
        train(skipping.config, skipping.folder, resume=True, console=quiet())


def test_rows_that_are_all_bad_are_an_error_also_where_they_are_skipped(
    make_config: Callable, tmp_path: Path, rows: list
):
    long = [{**row, "problem": "<image>" + "long " * 9000} for row in rows]
    config = make_config(f"data.train={jsonl(tmp_path, *long)}", "data.on_bad_row=skip")
    with pytest.raises(ProblemError, match=r"^2 of 2 rows of data\.train=.* cannot be used"):
        train(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_rows_without_references_are_left_out_of_sft(
    make_config: Callable, tmp_path: Path, rows: list
):
    rows = [{**rows[0], "references": ["1"]} for _ in range(4)] + [rows[1]]
    source = jsonl(tmp_path, *rows)
    config = make_config("method.name=sft", f"data.train={source}", "data.on_bad_row=skip")
    assert train(config, tmp_path / "run", console=quiet()).skipped_rows == {"train": 1}


# --- what is said at the start --------------------------------------------------------------


def test_the_log_says_before_the_first_step_what_images_and_prompts_become(
    make_config: Callable, tmp_path: Path, rows: list
):
    config = make_config(
        f"data.train={jsonl(tmp_path, *rows)}",
        "data.validation=drawn:validation?count=3",
        "data.min_pixels=65536",
        "validation.num_samples=2",
        "validation.pixelated=true",
        "training.max_steps=1",
    )
    console = quiet()
    run = train(config, tmp_path / "run", console=console)
    assert isinstance(console.file, io.StringIO) and run.steps == 1
    lines = console.file.getvalue().splitlines()
    text = "\n".join(lines[: next(n for n, line in enumerate(lines) if "step 1/1" in line)])
    # Merged patches are 16 pixels a side: 256 x 256 pixels are 16 x 16 visual tokens.
    assert (
        "images: 64 x 64 -> 256 x 256 (scaled up to data.min_pixels=65536), 256 visual tokens"
        in text
    )
    assert re.search(r"prompts: (\d+) tokens in the median, \1 in the longest of 2 looked at", text)
    assert "warning: data.min_pixels=65536 scales 2 of 2 images up by more than 4x in area" in text
    assert (
        "a validation samples 3 problems x 2 x 2 views = 12 responses of at most 6 tokens" in text
    )
    assert text.index("a validation samples") < text.index("sampling them takes at most about")
    assert text.index("sampling them takes at most about") < text.index("validation at step 0")
