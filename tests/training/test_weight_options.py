"""Options that change a method's weights, and the controls of studies."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vaopd.config import MethodOptions, parse_config
from vaopd.methods import make_method
from vaopd.methods.base import StepRollouts, Weights
from vaopd.objective.concentration import relative_share
from vaopd.problems.problem import Problem
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.metrics import length_correlation
from vaopd.training.step import Step

# Two problems, two siblings each; the second sibling of each has more tokens and less advantage
# a token.
ADVANTAGE = [
    [0.0, 2.0, 0.1, 0.0, 0.4],
    [0.3, 0.0, 0.0, 0.0, 2.4, 0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0, 0.9, 0.5, 0.0],
    [0.0, 0.2, 0.0, 0.1, 0.0, 0.0],
]
KEYS = ["a", "b", "c", "d"]


def section(**method: Any) -> MethodOptions:
    recipe = {"student": {"model": "s"}, "data": {"train": "t"}, "method": method}
    return parse_config(recipe).method


def rollouts(keys: list[str] = KEYS) -> StepRollouts:
    ids = [torch.arange(len(row)) for row in ADVANTAGE]
    return StepRollouts(responses=[ids[:2], ids[2:]], keys=keys)


def weigh(keys: list[str] = KEYS, **method: Any) -> Weights:
    rows = [torch.tensor(row) for row in ADVANTAGE]
    given = TeacherScores(
        hidden=[torch.zeros(len(row), 2) for row in rows],
        original_logprobs=rows,
        degraded_logprobs=[torch.zeros(len(row)) for row in rows],
    )
    return make_method(section(**method)).weigh(rollouts(keys), given)


@pytest.mark.parametrize(
    ("score", "larger"),
    [
        ("mean", [0, 2]),  # .5 and .27 nats a token
        ("sum", [1, 2]),  # 2.5 and 2.7 nats in all
        ("top", [0, 2]),  # 2 nats at 1 token, 1.35 at 2 tokens
    ],
)
def test_siblings_are_ranked_by_the_score_that_is_chosen(score: str, larger: list[int]):
    found = weigh(name="rollout_only", rollout_score=score)
    # Two siblings always have z = +1 and -1, so w = 1 / (1 + e^-2).
    expected = torch.tensor([0.880797 if row in larger else 0.119203 for row in range(4)])
    torch.testing.assert_close(found.rollout, expected, atol=1e-4, rtol=0.0)


def test_an_effective_share_is_reached_by_each_method_that_weighs():
    for name in ("va_opd", "rollout_only", "token_only"):
        found = weigh(name=name, effective_share=0.9)
        assert relative_share(found.token, rollouts().uniform) == pytest.approx(0.9, abs=1e-4)
        torch.testing.assert_close(found.rollout, found.token.sum(-1))
        torch.testing.assert_close(found.rollout.sum(), torch.tensor(2.0))


def test_no_token_is_suppressed_against_the_others_of_its_problem():
    uniform = rollouts().uniform
    before, after = weigh(name="va_opd"), weigh(name="va_opd", no_suppress=True)
    for siblings in (slice(0, 2), slice(2, 4)):
        ratio = (after.token / uniform.clamp(min=1e-9))[siblings][uniform[siblings] > 0]
        low = (before.token <= uniform)[siblings][uniform[siblings] > 0]
        assert low.any() and not low.all()
        torch.testing.assert_close(ratio[low], ratio[low][0].expand_as(ratio[low]))
        assert (ratio[~low] > ratio[low].max()).all()


def test_shuffled_weights_are_the_same_weights_at_other_places():
    weights = weigh(name="va_opd")
    assert weights.high is not None
    places, orders = set(), set()
    for number in range(8):
        found = weigh([f"{key}{number}" for key in KEYS], name="va_opd", shuffled=True)
        assert found.high is not None
        assert found.high.sum(-1).tolist() == weights.high.sum(-1).tolist()
        for siblings in (slice(0, 2), slice(2, 4)):
            torch.testing.assert_close(
                found.rollout[siblings].sort().values, weights.rollout[siblings].sort().values
            )
        torch.testing.assert_close(found.token.sum(-1), found.rollout)
        places.add(str(found.high.int().tolist()))
        orders.add(str(found.rollout.tolist()))
    assert len(places) > 4
    assert len(orders) > 1


def test_shuffled_weights_follow_the_keys_and_not_the_places_of_siblings():
    first, again = (weigh(name="va_opd", shuffled=True) for _ in range(2))
    assert torch.equal(first.token, again.token)
    batch = rollouts()
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mixed = batch.permute(values)
    ids = [torch.arange(len(row)) for row in ADVANTAGE]
    swapped = StepRollouts(responses=[[ids[1], ids[0]], ids[2:]], keys=["b", "a", "c", "d"])
    assert torch.equal(swapped.permute(values[[1, 0, 2, 3]]), mixed[[1, 0, 2, 3]])


def test_an_empty_response_keeps_its_weight_of_zero_when_siblings_are_shuffled():
    ids = [torch.arange(n) for n in (3, 0, 2)]
    batch = StepRollouts(responses=[ids], keys=["a", "b", "c"])
    orders = set()
    for number in range(8):
        batch = StepRollouts(responses=[ids], keys=[f"{key}{number}" for key in "abc"])
        mixed = batch.permute(torch.tensor([0.7, 0.0, 0.3]))
        assert mixed[1] == 0
        orders.add(tuple(mixed.tolist()))
    assert len(orders) == 2


def test_the_correlation_of_weight_and_length_is_as_worked_out_by_hand():
    # Problem 0: the longer sibling weighs less, -1; problem 1: more, +1 or -1.
    batch = rollouts()
    assert length_correlation(torch.tensor([0.9, 0.1, 0.2, 0.8]), batch) == pytest.approx(0.0)
    assert length_correlation(torch.tensor([0.9, 0.1, 0.8, 0.2]), batch) == pytest.approx(-1.0)
    # A problem with one weight for all is left out.
    assert length_correlation(torch.tensor([0.5, 0.5, 0.2, 0.8]), batch) == pytest.approx(1.0)


# --- gradients ------------------------------------------------------------------------------


def gradient_of(step: Step, problems: list[Problem], token: Callable[[Weights], Tensor]) -> Tensor:
    """Return the gradient of one step under the weights that ``token`` makes of its own."""
    taken: list[Tensor] = []
    accumulate = step.accumulate

    def with_weights(batch, own):
        return accumulate(batch, token(own))

    def keep(loss: float, wanted: float | None = None) -> float:
        parts = [p.grad for p in step.student.model.parameters() if p.grad is not None]
        taken.append(torch.cat([part.flatten().double() for part in parts]))
        return 0.0

    step.accumulate = with_weights  # type: ignore[method-assign]
    step.apply_gradient = keep  # type: ignore[method-assign]
    step.run(problems, 1)
    return taken[0]


def test_gradient_statistics_agree_with_gradients_taken_one_by_one(
    make_step: Callable[..., Step], problems: list[Problem]
):
    found = make_step("training.gradient_noise_every=1").run(problems, 1)
    token, uniform = found.weights.token, found.responses.uniform
    first = (found.responses.problem_ids == 0)[:, None]

    def under(weights: Tensor) -> Tensor:
        return gradient_of(make_step(), problems, lambda _: weights)

    whole, plain = under(token), under(uniform)
    # The loss is averaged over two problems, so that of one alone is twice its share.
    a, b = 2 * under(token * first), 2 * under(token * ~first)
    expected = {
        "gradient/uniform_ratio": whole.norm() / plain.norm(),
        "gradient/uniform_cosine": whole @ plain / (whole.norm() * plain.norm()),
        "gradient/signal": a @ b,
        "gradient/noise": (a - b).square().sum() / 4,
    }
    assert set(found.gradient_statistics) == set(expected)
    for name, value in expected.items():
        assert found.gradient_statistics[name] == pytest.approx(float(value), rel=1e-3), name


def test_a_measured_step_learns_what_an_unmeasured_one_learns(
    make_step: Callable[..., Step], problems: list[Problem]
):
    measured, plain = make_step("training.gradient_noise_every=2"), make_step()
    for number in (1, 2):
        results = [step.run(problems, number) for step in (measured, plain)]
        assert bool(results[0].gradient_statistics) == (number == 2)
        assert results[0].loss == results[1].loss
    states = [step.student.model.state_dict() for step in (measured, plain)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_gradient_is_scaled_to_the_norm_of_uniform_weights(
    make_step: Callable[..., Step], problems: list[Problem]
):
    huge = "training.max_gradient_norm=1e9"
    matched = make_step("method.match_norm=true", huge)
    norms = {
        name: make_step(f"method.name={name}", huge).run(problems, 1).gradient_norm
        for name in ("opd", "va_opd")
    }
    assert norms["opd"] != pytest.approx(norms["va_opd"], rel=1e-3)
    before = copy.deepcopy(matched.student.model.state_dict())
    assert matched.run(problems, 1).gradient_norm == pytest.approx(norms["opd"], rel=1e-4)
    after = matched.student.model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
