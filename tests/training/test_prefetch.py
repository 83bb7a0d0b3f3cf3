import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vaopd.errors import ProblemError
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem
from vaopd.training.prefetch import Encoded, PromptsAhead
from vaopd.training.run import train

PROBLEMS = list(DrawnProblems(num_problems=4))
NOTHING = Encoded([], [], None)


def test_a_begun_step_is_encoded_once_and_in_another_thread():
    threads = []
    ahead = PromptsAhead(lambda problems: threads.append(threading.current_thread()) or NOTHING)
    ahead.begin(PROBLEMS[:2])
    assert ahead.take(PROBLEMS[:2]) is NOTHING
    assert [thread is threading.main_thread() for thread in threads] == [False]
    # What was taken is gone: the same problems in a later epoch are encoded anew.
    ahead.take(PROBLEMS[:2])
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


def test_other_problems_do_not_get_the_prompts_that_wait():
    seen = []
    ahead = PromptsAhead(lambda problems: seen.append([p.id for p in problems]) or NOTHING)
    ahead.begin(PROBLEMS[:2])
    ahead.take(PROBLEMS[2:])
    ahead.take(PROBLEMS[:2])
    assert sorted(seen) == sorted([[p.id for p in PROBLEMS[:2]], [p.id for p in PROBLEMS[2:]]])


def test_what_is_wrong_is_said_when_the_step_comes():
    def encode(problems):
        raise ProblemError(f"problem {problems[0].id} is broken; mend it")

    ahead = PromptsAhead(encode)
    ahead.begin(PROBLEMS[:1])
    with pytest.raises(ProblemError, match="is broken; mend it"):
        ahead.take(PROBLEMS[:1])


def test_a_step_prepared_ahead_is_the_same_step(make_step: Callable, problems: list[Problem]):
    now, ahead = make_step(), make_step()
    ahead.pipeline.encode_ahead(problems)
    one, two = now.run(problems, 1), ahead.run(problems, 1)
    assert one.loss == two.loss
    assert one.gradient_norm == two.gradient_norm


def test_a_run_encodes_every_step_but_its_first_ahead(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    in_main, encode = [], PromptEncoder.both

    def counted(self: PromptEncoder, problem: Problem):
        in_main.append(threading.current_thread() is threading.main_thread())
        return encode(self, problem)

    monkeypatch.setattr(PromptEncoder, "both", counted)
    train(make_config("training.max_steps=3"), tmp_path / "run")
    # Two problems a step; the first is also encoded at the start, where its views are compared.
    assert sorted(in_main) == 4 * [False] + 3 * [True]
