"""``training.rollout_lag``: the next step is prepared beside the learning of this one."""

import copy
import io
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from snapshot import SnapshotSampler

from vaopd.config import RunConfig
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, EngineError
from vaopd.methods import make_method
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem
from vaopd.records import read_rows
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.teacher import TeacherScores
from vaopd.training import setup
from vaopd.training.assignment import Shares
from vaopd.training.pipeline import Pipeline
from vaopd.training.run import train
from vaopd.training.step import Step
from vaopd.training.stopwatch import Stopwatch
from vaopd.training.student import make_optimizer

VLLM = "sampling.engine=vllm"
SERVER = "teacher.addresses=['http://127.0.0.1:1']"
LAG = "training.rollout_lag=1"
ELSEWHERE = [(VLLM,), (SERVER,), (VLLM, SERVER)]
TIMINGS = ("time/", "beside/", "tokens_per_second")


@pytest.fixture
def lagging(
    sharp_student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., RunConfig]:
    """Return recipes whose vLLM is a copy of the student and whose servers are local."""
    student = lambda config, world: copy.deepcopy(sharp_student)  # noqa: E731
    monkeypatch.setattr(setup, "load_student", student)
    monkeypatch.setattr(setup, "connect_teacher", lambda config, student, device: teacher)
    monkeypatch.setattr(setup, "load_teacher", lambda config, device, shards: teacher)
    for sampler in ("VllmSampler", "TransformersSampler"):
        monkeypatch.setattr(setup, sampler, lambda model, *_, **__: SnapshotSampler(model))
    fixed = ("training.max_steps=5", "training.save_every=2", "training.keep_checkpoints=null")
    return lambda *overrides: make_config(*fixed, *overrides)


def step_of(config: RunConfig, student: VisionLanguageModel, teacher: Any, sampler: Any) -> Step:
    method = make_method(config.method)
    pipeline = Pipeline(config, method, student, teacher, sampler, World())
    return Step(pipeline, make_optimizer(config, student))


def quiet() -> Console:
    return Console(file=io.StringIO())


def rows_of(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def test_a_validation_by_a_copy_of_the_student_gives_the_answers_of_the_student(
    lagging: Callable[..., RunConfig], tmp_path: Path
):
    checked = (
        "data.validation=drawn:validation?count=2",
        "training.validate_every=1",
        "training.learning_rate=0.05",
        "validation.pixelated=true",
    )
    for name, elsewhere in {"copy": (VLLM,), "copy-lag": (VLLM, SERVER, LAG),
                            "plain": (), "plain-lag": (SERVER, LAG)}.items():  # fmt: skip
        train(lagging(*elsewhere, *checked), tmp_path / name, console=quiet())
    for lag in ("", "-lag"):
        files = [sorted((tmp_path / f"{kind}{lag}").glob("validation/*.jsonl"))
                 for kind in ("copy", "plain")]  # fmt: skip
        texts = [[file.read_bytes() for file in found] for found in files]
        assert texts[0] == texts[1]
        assert len(set(texts[0])) == 6  # the answers change with every update


def test_waiting_for_samples_ends_when_the_next_step_is_sampled(
    sharp_student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable,
    problems: list[Problem],
):
    released = threading.Event()

    class Slow(SnapshotSampler):
        def sample(self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings):
            assert released.wait(60)
            return super().sample(prompts, settings)

    student = copy.deepcopy(sharp_student)
    pipeline = step_of(make_config(VLLM, LAG), student, teacher, Slow(student)).pipeline
    pipeline.wait_for_samples()  # nothing is sampled
    pipeline.begin(problems, 2, Stopwatch(torch.device("cpu")))
    assert pipeline.sampled is not None and not pipeline.sampled.done()
    threading.Timer(0.2, released.set).start()
    pipeline.wait_for_samples()
    assert pipeline.sampled.done()


def test_rollouts_come_from_the_weights_of_one_update_before(
    sharp_student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable,
    problems: list[Problem],
):
    """Against a plain loop that keeps every version of the student and asks the one it must."""
    config = make_config(VLLM, SERVER, LAG, "training.learning_rate=0.05")
    student = copy.deepcopy(sharp_student)
    step = step_of(config, student, teacher, SnapshotSampler(student))
    results = [step.run(problems, n, problems if n < 4 else ()) for n in (1, 2, 3, 4)]
    assert [result.lag for result in results] == [0, 1, 1, 1]

    plain = make_config("training.learning_rate=0.05")
    learner = copy.deepcopy(sharp_student)
    versions: list[VisionLanguageModel] = []

    class Old:
        def take_weights(self, version: int) -> None: ...

        def sleep(self) -> None: ...

        def sample(self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings):
            versions.append(copy.deepcopy(learner))
            return TransformersSampler(versions[max(0, len(versions) - 2)]).sample(
                prompts, settings
            )

    reference = step_of(plain, learner, teacher, Old())
    for number, result in enumerate(results, start=1):
        expected = reference.run(problems, number)
        assert [r.response_ids for r in result.rollouts] == [
            r.response_ids for r in expected.rollouts
        ]
        assert result.loss == expected.loss
    # The weights do change what is said, or the lag could not be seen.
    fresh = TransformersSampler(versions[-1])
    prompts = [reference.pipeline.encoder.original(problem) for problem in problems]
    settings = SamplingSettings(
        num_rollouts=3, temperature=0.7, top_p=0.95, max_new_tokens=6, seed=42, stream="train 4"
    )
    assert [r.response_ids for group in fresh.sample(prompts, settings) for r in group] != [
        r.response_ids for r in results[-1].rollouts
    ]


@pytest.mark.parametrize("elsewhere", [(VLLM,), (SERVER,)])
def test_whoever_works_beside_training_the_run_is_the_same(
    lagging: Callable, tmp_path: Path, elsewhere: tuple[str, ...]
):
    train(lagging(VLLM, SERVER, LAG), tmp_path / "both", console=quiet())
    train(lagging(*elsewhere, LAG), tmp_path / "run", console=quiet())
    rows = rows_of(tmp_path / "run")
    assert rows == rows_of(tmp_path / "both")
    assert [row["rollout/lag"] for row in rows] == [0, 1, 1, 1, 1]
    name = "final/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_resumed_run_learns_from_the_rollouts_that_waited(
    lagging: Callable, tmp_path: Path, elsewhere: tuple[str, ...]
):
    config, output = lagging(*elsewhere, LAG), tmp_path / "run"
    train(config, output, console=quiet())
    shutil.copytree(output, tmp_path / "whole")
    for step in (4, 5):
        shutil.rmtree(output / f"checkpoints/step_{step:06d}")
    train(config, output, resume=True, console=quiet())
    assert rows_of(output) == rows_of(tmp_path / "whole")
    name = "final/model.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_metrics_say_what_was_done_beside(lagging: Callable, tmp_path: Path):
    train(lagging(VLLM, SERVER, LAG), tmp_path / "run", console=quiet())
    first, second, *_ = read_rows(tmp_path / "run/metrics.jsonl")
    assert not any(key.startswith("beside/") for key in first)
    assert {"beside/data", "beside/sample", "beside/score", "time/wait"} <= set(second)
    assert "time/score" not in second


class WaitingTeacher:
    """Scores the second step only once the first is being learned."""

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher
        self.is_learning = threading.Event()
        self.calls = 0

    def score(self, *args, **kwargs):
        """Wait as long as it takes, but not for ever."""
        self.calls += 1
        # The first step is scored twice, for the noise floor.
        if self.calls == 3:
            assert self.is_learning.wait(60), "the first step was not learned meanwhile"
        return self.teacher.score(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self.teacher, name)


@pytest.mark.parametrize("elsewhere", [(SERVER,), (VLLM, SERVER)])
def test_the_next_step_is_scored_while_this_one_is_learned(
    student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable,
    problems: list[Problem],
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: tuple[str, ...],
):
    config = make_config(*elsewhere, LAG)
    waiting: Any = WaitingTeacher(teacher)
    step = step_of(config, student, waiting, SnapshotSampler(student))
    accumulate = Step.accumulate

    def announced(self: Step, *args):
        waiting.is_learning.set()
        return accumulate(self, *args)

    monkeypatch.setattr(Step, "accumulate", announced)
    step.run(problems, 1, problems)
    step.run(problems, 2)
    assert waiting.calls == 3


def test_an_error_beside_training_is_raised_when_its_step_comes(
    lagging: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sample = SnapshotSampler.sample

    def failing(self: SnapshotSampler, prompts, settings: SamplingSettings):
        if settings.stream == "train 3":
            raise EngineError("the server is gone; start it again")
        return sample(self, prompts, settings)

    monkeypatch.setattr(SnapshotSampler, "sample", failing)
    with pytest.raises(EngineError, match="is gone"):
        train(lagging(VLLM, LAG), tmp_path / "run", console=quiet())
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    "overrides", [(), (VLLM, "method.name=sft"), (VLLM, "method.name=off_policy_kd")]
)
def test_a_lag_that_wins_nothing_is_a_sentence(make_config: Callable, overrides: tuple[str, ...]):
    with pytest.raises(ConfigError, match=r"training\.rollout_lag is 1, but no on-policy sampling"):
        make_config(LAG, *overrides)


def test_what_follows_a_preparation_beside_is_told_on_the_main_channel(
    student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable,
    problems: list[Problem],
    monkeypatch: pytest.MonkeyPatch,
):
    channels = []
    all_scores = Shares.all_scores

    def watched(self: Shares, own: TeacherScores) -> TeacherScores:
        channels.append(self.world)
        return all_scores(self, own)

    monkeypatch.setattr(World, "beside", lambda world: replace(world))
    monkeypatch.setattr(Shares, "all_scores", watched)
    config = make_config(VLLM, SERVER, LAG)
    sampler = SnapshotSampler(student)
    method = make_method(config.method)
    ahead = Pipeline(config, method, student, teacher, sampler, World())
    watch = Stopwatch(torch.device("cpu"))
    ahead.begin(problems, 2, watch)
    ready = ahead.take(problems, 2, watch)
    assert [world is ahead.beside for world in channels] == [True]
    assert ready.shares.world is ahead.world is not ahead.beside


def test_a_world_of_one_needs_no_channel_of_its_own():
    world = World()
    assert world.beside() is world
