"""Warnings that name a likely cause, each said once a run."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vaopd.errors import ConfigError, TrainingError
from vaopd.evaluation.validation import ValidationResult
from vaopd.records import read_rows
from vaopd.rollouts.sampler import Rollout
from vaopd.training.alarms import Alarms, step_warnings, validation_warnings
from vaopd.training.metrics import repeated_share, same_share
from vaopd.training.run import train

# Eq. 3 and 4 for two siblings: z = 1 and -1, so w = 1 / (1 + e^-2) = .880797.
TWO = ("sampling.num_rollouts=2",)

SHORT = ("sampling.num_rollouts=3", "sampling.max_new_tokens=1")


def row(**changes: Any) -> dict[str, Any]:
    """Return a row of a step in which nothing is wrong."""
    usual = {
        "step": 1, "va/mean": 0.1, "weights/rollout_max": 0.77,
        "response/truncated_share": 0.5, "response/unparsed_share": 0.5,
    }  # fmt: skip
    return usual | {key.replace("__", "/"): value for key, value in changes.items()}


def validated(**changes: Any) -> ValidationResult:
    usual: dict[str, Any] = {
        "accuracy": 0.5, "unparsed": 0.0, "truncated": 0.0, "response_length": 9.0,
        "accuracy_by_kind": {},
    }  # fmt: skip
    return ValidationResult(**(usual | changes))


@pytest.mark.parametrize(
    ("changes", "overrides", "name", "cause"),
    [
        ({"va__mean": 0.0}, (), "zero_advantage", "0 nats, which is none: the two views may"),
        ({"response__repeated_share": 0.5}, (), "repetition", "50% of each response repeats"),
        ({"response__same_share": 1.0}, (), "same_responses", "next to no entropy"),
        ({"va__mean": 0.0002}, (), "no_advantage", "0.0002 nats, which is none: the two views may"),
        ({"response__truncated_share": 1.0}, (), "truncated", "sampling.max_new_tokens=6: raise"),
        ({"response__unparsed_share": 1.0}, (), "unparsed", "may not ask for \\boxed"),
        ({"reward__equal_share": 1.0}, (), "equal_rewards", "all right or all wrong"),
        ({"weights__rollout_max": 0.8808}, TWO, "two_siblings", "always 0.881 and 0.119: their"),
        # tau = 2: w = 1 / (1 + e^-1) = .731059.
        ({"weights__rollout_max": 0.7311}, (*TWO, "method.rollout_temperature=2"),
         "two_siblings", "always 0.731 and 0.269"),
    ],
)  # fmt: skip
def test_what_all_responses_of_a_step_share_is_warned_of(
    make_config: Callable, changes: dict, overrides: tuple, name: str, cause: str
):
    found = step_warnings(row(**changes), make_config(*overrides))
    assert list(found) == [name]
    assert cause in found[name]


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({}, ()),
        ({"va__mean": 0.001}, ()),
        ({"reward__equal_share": 0.99}, ()),
        ({"response__repeated_share": 0.49, "response__same_share": 0.99}, ()),
        ({"response__same_share": 1.0}, ("sampling.num_rollouts=1", "method.name=token_only")),
        ({"response__truncated_share": 0.99, "response__unparsed_share": 0.99}, ()),
        # Gains and losses may cancel out.
        ({"va__mean": 0.0}, ("method.advantage=signed",)),
        # The bound of Eq. 3 for two, reached by chance where three were sampled, or not reached.
        ({"weights__rollout_max": 0.8808}, ()),
        ({"weights__rollout_max": 0.7}, TWO),
        ({"weights__rollout_max": 0.8808}, (*TWO, "method.deviation_floor=0.1")),
        ({"weights__rollout_max": 0.8808}, (*TWO, "method.name=token_only")),
    ],
)
def test_a_step_in_which_something_is_to_be_learned_is_not_warned_of(
    make_config: Callable, changes: dict, overrides: tuple
):
    assert step_warnings(row(**changes), make_config(*overrides)) == {}


def test_a_step_without_advantage_or_grades_is_judged_by_the_rest(make_config: Callable):
    bare = {"step": 1, "response/truncated_share": 1.0}
    assert list(step_warnings(bare, make_config("method.name=opd"))) == ["truncated"]
    assert step_warnings(bare | {"response/truncated_share": 0.0}, make_config()) == {}


def test_responses_that_were_cut_off_are_not_blamed_for_having_no_answer(make_config: Callable):
    both = row(response__truncated_share=1.0, response__unparsed_share=1.0)
    assert list(step_warnings(both, make_config())) == ["truncated"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"unparsed": 1.0}, ["unparsed"]),
        ({"truncated": 1.0, "unparsed": 1.0}, ["truncated"]),
        ({"teacher_va": 0.0002}, ["no_advantage"]),
        ({"teacher_va": 0.2}, []),
    ],
)
def test_validations_are_judged_alike(make_config: Callable, changes: dict, names: list[str]):
    assert list(validation_warnings(validated(**changes), make_config())) == names


def test_a_warning_rests_on_sixteen_responses_in_a_row_and_is_said_once(
    make_config: Callable, tmp_path: Path
):
    said: list[str] = []
    alarms = Alarms(make_config(), tmp_path, said.append)
    bad = {"response__truncated_share": 1.0}
    alarms.watch_step(row(step=1, **bad), 8)
    alarms.watch_step(row(step=2), 8)
    alarms.watch_step(row(step=3, **bad), 8)
    # Of other problems, under other settings: it does not go on with the count of training.
    alarms.watch_validation(3, validated(truncated=1.0), 8)
    assert (said, alarms.raised()) == ([], [])
    alarms.watch_step(row(step=4, **bad), 8)
    alarms.watch_step(row(step=5, **bad), 8)
    (raised,) = alarms.raised()
    assert (raised["step"], raised["name"]) == (4, "truncated")
    assert said == [f"warning: {raised['text']}"]


def test_an_advantage_of_zero_everywhere_ends_the_run(make_config: Callable, tmp_path: Path):
    alarms = Alarms(make_config(), tmp_path, print)
    alarms.watch_step(row(step=1, va__mean=0.0), 15)
    with pytest.raises(TrainingError, match=r"is 0 nats, which is none: .*; the run ends here"):
        alarms.watch_step(row(step=2, va__mean=0.0), 1)


@pytest.mark.parametrize(
    ("length", "is_warned"), [(10, True), (11, False), (159, False), (160, True)]
)
def test_lengths_are_compared_with_those_of_the_first_step(
    make_config: Callable, tmp_path: Path, length: float, is_warned: bool
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "response/length": 40.0}\n')
    said: list[str] = []
    Alarms(make_config(), tmp_path, said.append).watch_step(row(response__length=length), 16)
    assert [line.startswith("warning: responses have") for line in said] == [True] * is_warned


def test_views_that_are_equal_are_refused_before_the_run(make_config: Callable, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the two views of all 2 problems .* view.ratio=1.0, so"):
        train(make_config("view.ratio=1"), tmp_path / "run", console=Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def cut_off(make_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of random models, which end no response; and its log."""
    output = tmp_path_factory.mktemp("runs") / "run"
    config = make_config("training.max_steps=5", *SHORT)
    console = Console(file=io.StringIO(), width=80)
    train(config, output, console=console)
    assert isinstance(console.file, io.StringIO)
    return output, console.file.getvalue()


def test_a_run_warns_in_log_and_summary(cut_off: tuple[Path, str]):
    output, log = cut_off
    # Six responses a step, so the third is the first that knows sixteen.
    warnings = read_rows(output / "warnings.jsonl")
    assert [(w["step"], w["name"]) for w in warnings] == [(3, "truncated")]
    assert [line for line in log.splitlines() if line.startswith("warning: ")] == [
        f"warning: {warning['text']}" for warning in warnings
    ]
    assert json.loads((output / "summary.json").read_text())["warnings"] == warnings


def test_a_resumed_run_says_again_only_what_it_takes_back(
    cut_off: tuple[Path, str], make_config: Callable, tmp_path: Path
):
    again = tmp_path / "run"
    shutil.copytree(cut_off[0], again)
    config = make_config("training.max_steps=6", *SHORT)
    console = Console(file=io.StringIO(), width=80)
    train(config, again, resume=True, console=console)
    assert isinstance(console.file, io.StringIO)
    assert "warning: " not in console.file.getvalue()
    assert (again / "warnings.jsonl").read_bytes() == (cut_off[0] / "warnings.jsonl").read_bytes()
    # Without checkpoints all steps are taken again.
    shutil.rmtree(again / "checkpoints")
    train(config, again, resume=True, console=console)
    assert console.file.getvalue().count("warning: ") == 1
    assert [w["step"] for w in read_rows(again / "warnings.jsonl")] == [3]


def test_a_validation_warns_before_the_first_step(make_config: Callable, tmp_path: Path):
    config = make_config(
        "training.max_steps=1", "sampling.max_new_tokens=1", "validation.num_samples=8",
        "data.validation=drawn:validation?count=2",
    )  # fmt: skip
    train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    warnings = read_rows(tmp_path / "run" / "warnings.jsonl")
    assert [(w["step"], w["name"]) for w in warnings] == [(0, "truncated")]


def test_the_share_without_an_answer_is_measured(cut_off: tuple[Path, str]):
    rows = read_rows(cut_off[0] / "metrics.jsonl")
    assert [row["response/unparsed_share"] for row in rows] == [1.0] * 5


def test_the_noise_floor_is_measured_in_the_first_step_only(cut_off: tuple[Path, str]):
    rows = read_rows(cut_off[0] / "metrics.jsonl")
    # On a CPU the same forward gives the same bits.
    assert [row.get("va/noise_floor") for row in rows] == [0.0, None, None, None, None]


@pytest.mark.parametrize(
    ("ids", "share"),
    # Runs of four of 1 2 1 2 1 2 1: 1212, 2121, 1212, 2121; two of four came before.
    [([1, 2, 1, 2, 1, 2, 1], 0.5), ([1, 2, 3, 4, 5], 0.0), ([1, 1, 1], 0.0), ([], 0.0)],
)
def test_repeated_runs_of_four_tokens_are_counted(ids: list[int], share: float):
    assert repeated_share(ids) == share


def test_equal_siblings_are_counted():
    groups = {"a": [(1,), (1,), (2,)], "b": [(1,)]}
    rollouts = [
        Rollout(name, number, ids, "stop")
        for name, siblings in groups.items()
        for number, ids in enumerate(siblings)
    ]
    # Two of four; b's response equals those of another problem.
    assert same_share(rollouts) == 0.5
