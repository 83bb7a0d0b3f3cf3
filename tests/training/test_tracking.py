import importlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from tests.observed_run import RECIPE
from tests.tracker_stand_ins import Call, stand_in

import vaopd
from vaopd.config import RunConfig, TrackingConfig, parse_config, parse_overrides
from vaopd.errors import ConfigError
from vaopd.evaluation.validation import ValidationResult
from vaopd.training.backends import OPENERS, check_installed
from vaopd.training.tracking import MOST_ROLLOUTS, Tracking, numbers_of, token_rows

RESULT = ValidationResult(
    accuracy=0.5, unparsed=0.0, truncated=0.0, response_length=7.0, accuracy_by_kind={"bars": 0.25}
)


def config_of(*overrides: str) -> RunConfig:
    return parse_config(parse_overrides(overrides, {key: dict(of) for key, of in RECIPE.items()}))


def rollout(sibling: int = 0) -> dict[str, Any]:
    return {
        "problem_id": "p1", "sibling": sibling, "prompt": "How | many?", "answer": "4",
        "response": "4 .", "is_correct": True, "finish_reason": "stop", "rollout_weight": 0.5,
        "tokens": ["4", " ."], "visual_advantage": [1.5, 0.0], "is_high": [True, False],
        "kl": [0.1, 0.2], "token_weight": [0.3, 0.2], "images": ["images/one.png"],
        "degraded_images": ["images/two.png"],
    }  # fmt: skip


def tell_all(tracking: Tracking, folder: Path, *, count: int = 1, step: int = 0) -> None:
    """Let a run of one step and one validation tell a tracking everything."""
    for name, colour in (("one", "red"), ("two", "blue")):
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(folder / "images" / f"{name}.png")
    tracking.on_start(step)
    tracking.on_step(step + 1, {"step": step + 1, "loss": 0.25, "va/mean": 2})
    tracking.on_rollouts(step + 1, [rollout(n) for n in range(count)], folder)
    tracking.on_validation(step + 1, RESULT)
    tracking.on_end()


def text_of(calls: list[Call]) -> str:
    return " ".join(f"{name} {args} {kwargs}" for name, args, kwargs in calls)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a tracker writes into the environment."""
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(name, "before")


@pytest.mark.parametrize("name", sorted(OPENERS))
def test_each_tracker_gets_numbers_tables_and_images_and_is_closed(
    name: str, monkeypatch: pytest.MonkeyPatch, environment: None, tmp_path: Path
):
    calls = stand_in(monkeypatch, name, {"mlflow.search_runs": []})
    config = config_of(
        f"tracking.backend=[{name}]", "tracking.project=sums", "tracking.offline=true"
    )
    said: list[str] = []
    tell_all(Tracking(config, tmp_path, said.append), tmp_path)
    assert said == []
    text = text_of(calls)
    for expected in ("loss", "va/mean", "validation/accuracy", "validation/accuracy_by_kind/bars",
                     "0.25", "visual_advantage", "problem_id", "1.5"):  # fmt: skip
        assert expected in text, expected
    assert "one.png" in text or "p1, original" in text
    last = calls[-1][0]
    assert last.endswith(("finish", "close", "end_run"))
    # Offline: what says where the records go names the run folder or the mode.
    assert str(tmp_path) in text or os.environ["TRACKIO_DIR"].startswith(str(tmp_path))
    assert "mode': 'offline" in text or name not in ("wandb", "swanlab")


def test_a_resumed_run_goes_on_in_the_run_that_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls = stand_in(monkeypatch, "wandb")
    config = config_of("tracking.backend=[wandb]", "tracking.name=mine")
    for step in (0, 5):
        tell_all(Tracking(config, tmp_path, print), tmp_path, step=step)
    first, second = (kwargs for name, _, kwargs in calls if name == "wandb.init")
    assert first == second
    assert (first["resume"], first["name"], first["mode"]) == ("allow", "mine", None)
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"id": first["id"]}


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    stand_in(monkeypatch, "wandb", {"wandb.init.log": ConnectionError("no network\nmore")})
    broken = stand_in(monkeypatch, "mlflow", {"mlflow.search_runs": RuntimeError("no account")})
    kept = stand_in(monkeypatch, "swanlab")
    said: list[str] = []
    config = config_of("tracking.backend=[wandb, mlflow, swanlab]")
    tell_all(Tracking(config, tmp_path, said.append), tmp_path)
    rest = "; it gets nothing more of this run, and the run folder has everything"
    assert said == [
        f"warning: tracking.backend mlflow failed (no account){rest}",
        f"warning: tracking.backend wandb failed at step 1 (no network){rest}",
    ]
    assert broken[-1][0] == "mlflow.search_runs"
    assert kept[-1][0] == "swanlab.finish"


def test_a_tracker_that_is_not_installed_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    stand_in(monkeypatch, "wandb")
    check_installed(TrackingConfig(backend=("wandb",)))
    missing = [name for name in OPENERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    name = missing[0]
    with pytest.raises(ConfigError, match=rf"names {name}, .*pip install 'vaopd\[{name}\]'"):
        vaopd.train(config_of(f"tracking.backend=[{name}]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tables_hold_a_few_rollouts_and_a_row_for_each_of_their_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls = stand_in(monkeypatch, "wandb")
    config = config_of("tracking.backend=[wandb]")
    tell_all(Tracking(config, tmp_path, print), tmp_path, count=MOST_ROLLOUTS + 3)
    tables = [kwargs for name, _, kwargs in calls if name == "wandb.Table"]
    assert [len(table["data"]) for table in tables] == [MOST_ROLLOUTS, 2 * MOST_ROLLOUTS]
    row = dict(zip(tables[1]["columns"], tables[1]["data"][1], strict=True))
    assert (row["token"], row["position"], row["problem_id"]) == (" .", 1, "p1")
    assert (row["visual_advantage"], row["is_high"], row["token_weight"]) == (0.0, False, 0.2)


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
objects = st.recursive(
    leaves, lambda inner: st.dictionaries(st.text("ab", min_size=1), inner, max_size=3)
)


@given(objects)
def test_numbers_are_all_the_numbers_by_their_path(value: Any):
    def count(part: Any) -> int:
        if isinstance(part, dict):
            return sum(map(count, part.values()))
        return isinstance(part, int) and not isinstance(part, bool)

    found = numbers_of({"x": value})
    assert len(found) == count(value)
    assert all(name.startswith("x") and math.isfinite(number) for name, number in found.items())


def test_rows_of_tokens_leave_out_what_a_method_does_not_measure():
    row = {"problem_id": "p", "sibling": 1, "tokens": ["a"], "nll": [0.5], "kl": None}
    assert token_rows(row) == [
        {"problem_id": "p", "sibling": 1, "position": 0, "token": "a", "nll": 0.5}
    ]


class Diary(vaopd.Callback):
    """Writes down what it is told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: list[tuple[str, int]] = []
        self.fails_at = fails_at

    def on_start(self, step: int) -> None:
        self.told.append(("start", step))

    def on_step(self, step: int, metrics: dict[str, Any]) -> None:
        assert metrics["step"] == step
        self.told.append(("step", step))
        if step == self.fails_at:
            raise ValueError("enough")

    def on_validation(self, step: int, result: ValidationResult) -> None:
        assert 0 <= result.accuracy <= 1
        self.told.append(("validation", step))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        assert (folder / "state.json").is_file() or any(folder.iterdir())
        self.told.append(("checkpoint", step))

    def on_end(self) -> None:
        self.told.append(("end", -1))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Diary]:
    def start(*overrides: str, fails_at: int | None = None, **options: Any) -> Diary:
        diary = Diary(fails_at)
        config = config_of(
            "method.name=sft", "data.validation=drawn:validation?count=1", *overrides
        )
        with open(os.devnull, "w") as nowhere:
            vaopd.train(
                config,
                tmp_path / "run",
                callbacks=[diary],
                console=Console(file=nowhere),
                **options,
            )
        return diary

    return start


def test_callbacks_are_told_of_steps_validations_and_checkpoints(run: Callable[..., Diary]):
    diary = run("training.max_steps=1")
    assert diary.told == [
        ("start", 0), ("validation", 0), ("step", 1), ("validation", 1), ("checkpoint", 1),
        ("end", -1),
    ]  # fmt: skip
    more = run("training.max_steps=2", resume=True)
    assert more.told[:2] == [("start", 1), ("step", 2)]


def test_an_error_in_a_callback_ends_the_run(run: Callable[..., Diary], tmp_path: Path):
    with pytest.raises(ValueError, match="enough"):
        run("training.max_steps=2", fails_at=1)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_tensorboard_reads_what_a_run_wrote(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (its extra)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_of("tracking.backend=[tensorboard]")
    said: list[str] = []
    tell_all(Tracking(config, tmp_path, said.append), tmp_path)
    assert said == []
    events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25)]
    assert [e.step for e in events.Images("images/p1, original")] == [1]
    assert "tokens/text_summary" in events.Tags()["tensors"]
