import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaopd.config import TrainingConfig
from vaopd.errors import ConfigError
from vaopd.problems.problem import Problem
from vaopd.training.schedule import learning_rate, problems_of_step, total_steps

PAPER = TrainingConfig()


def ids(step: int, num_problems: int, **options) -> list[str]:
    problems = [Problem(str(i), "<image>", (b"",), None, "s", "train") for i in range(num_problems)]
    batch = problems_of_step(problems, step, TrainingConfig(**options))
    return [problem.id for problem in batch]


def test_geometry3k_takes_655_steps():
    # floor(2101 / 16) = 131 a pass, five passes.
    assert total_steps(PAPER, 2101) == 655


def test_virl39k_takes_12145_steps():
    # floor(38870 / 16) = 2429 a pass, five passes.
    assert total_steps(PAPER, 38870) == 12145


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 655), (10, 10), (655, 655), (9999, 655)])
def test_a_run_stops_at_its_largest_number_of_steps(max_steps: int | None, steps: int):
    assert total_steps(TrainingConfig(max_steps=max_steps), 2101) == steps


def test_fewer_problems_than_one_step_needs_are_refused():
    with pytest.raises(ConfigError, match=r"is 16, but data\.train has only 15"):
        total_steps(PAPER, 15)
    assert total_steps(PAPER, 16) == 5


def test_the_655_steps_of_the_paper_warm_up_for_32():
    # int(.05 x 655) = int(32.75) = 32 equal rises to 1e-6.
    rates = [learning_rate(PAPER, step, 655) for step in range(1, 656)]
    assert rates[0] == pytest.approx(1e-6 / 32)
    assert rates[15] == pytest.approx(0.5e-6)
    assert rates[31] == 1e-6
    assert max(rates) == rates[31]
    assert rates[30] < rates[31] == rates[32] > rates[33]


def test_the_rate_falls_along_half_a_cosine():
    # 100 steps, no warm-up: cos(pi / 4) behind 25, 0 behind 50.
    training = TrainingConfig(learning_rate=2.0, warmup_fraction=0)
    assert learning_rate(training, 26, 100) == pytest.approx(1 + 2**-0.5)
    assert learning_rate(training, 51, 100) == pytest.approx(1)
    assert learning_rate(training, 76, 100) == pytest.approx(1 - 2**-0.5)
    # The last step is one short of the end of the cosine, so that it still learns.
    assert 0 < learning_rate(training, 100, 100) < 0.001


def test_the_cosine_begins_behind_the_warm_up():
    # 20 of 100 steps of warm-up: the middle of the other 80 is behind step 60.
    training = TrainingConfig(learning_rate=2.0, warmup_fraction=0.2)
    assert learning_rate(training, 20, 100) == 2
    assert learning_rate(training, 61, 100) == pytest.approx(1)


def test_the_rate_ends_at_its_final_share_of_the_peak():
    training = TrainingConfig(
        learning_rate=2.0, warmup_fraction=0, final_learning_rate_fraction=0.1
    )
    # Half way it is 2 x (.1 + .9 / 2).
    assert learning_rate(training, 51, 100) == pytest.approx(1.1)
    assert learning_rate(training, 100, 100) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(("fraction", "steps"), [(1.0, 10), (0.0, 1), (0.05, 1), (1.0, 1)])
def test_extreme_schedules_stay_within_the_peak(fraction: float, steps: int):
    training = TrainingConfig(warmup_fraction=fraction)
    rates = [learning_rate(training, step, steps) for step in range(1, steps + 1)]
    assert all(0 <= rate <= 1e-6 for rate in rates)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 3), st.integers(0, 2**40))
def test_an_epoch_takes_each_problem_at_most_once(extra: int, size: int, epoch: int, seed: int):
    num_problems = size + extra
    per_epoch = num_problems // size
    options = {"problems_per_step": size, "seed": seed}
    steps = range(1 + epoch * per_epoch, 1 + (epoch + 1) * per_epoch)
    batches = [ids(step, num_problems, **options) for step in steps]
    assert all(len(batch) == size for batch in batches)
    seen = [name for batch in batches for name in batch]
    # The incomplete last batch is dropped, and only that.
    assert len(seen) == len(set(seen)) == num_problems - num_problems % size


def test_the_order_is_a_function_of_seed_and_step():
    options = {"problems_per_step": 4}
    assert ids(3, 40, **options) == ids(3, 40, **options)
    assert ids(3, 40, **options) != ids(3, 40, **options, seed=43)


def test_every_epoch_has_an_order_of_its_own():
    # 8 problems in 2 steps an epoch: steps 1, 3, 5 begin epochs.
    firsts = {tuple(ids(step, 8, problems_per_step=4)) for step in (1, 3, 5, 7)}
    assert len(firsts) == 4


def test_the_dropped_problems_differ_between_epochs():
    taken = [
        frozenset(ids(step, 7, problems_per_step=3) + ids(step + 1, 7, problems_per_step=3))
        for step in (1, 3, 5, 7, 9, 11)
    ]
    assert len(set(taken)) > 1
