import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_forward import double, plain_logprobs
from torch import Tensor

from vaopd.config import MethodOptions, parse_config
from vaopd.errors import AlignmentError, ProblemError
from vaopd.methods import distillation, make_method
from vaopd.methods.base import StepRollouts, Weights
from vaopd.methods.va_opd import VaOpd
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.teacher import local
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.metrics import advantage_summary
from vaopd.training.skipping import Skips
from vaopd.training.step import Step
from vaopd.training.step_result import StepResult

METHODS = ("va_opd", "rollout_only", "token_only", "opd")


def snapshot(model: VisionLanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same_bits(model: VisionLanguageModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def record_gradients(step: Step) -> dict[str, Tensor]:
    """Return a dictionary that the step's update fills with the gradients it is given."""
    gradients: dict[str, Tensor] = {}
    update = step.optimizer.step

    def spy(*arguments: Any) -> Any:
        for name, parameter in step.student.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        return update(*arguments)

    step.optimizer.step = spy  # type: ignore[method-assign]
    return gradients


# --- weights by hand ------------------------------------------------------------------------


def scores(original: list[list[float]], degraded: list[list[float]] | None) -> TeacherScores:
    rows = [torch.tensor(row) for row in original]
    return TeacherScores(
        hidden=[torch.zeros(len(row), 2) for row in rows],
        original_logprobs=rows,
        degraded_logprobs=None if degraded is None else [torch.tensor(r) for r in degraded],
    )


# The rows of golden vector 9 in the specification, whose advantages have no ties at the border of
# the high group: lengths 6, 3, 5, 4 of problems 0, 0, 1, 1. The third row is all zero there.
ADVANTAGE = [
    [0.0, 2.0, 0.1, 0.0, 0.4, 0.0],
    [0.3, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0, 0.9, 0.5, 0.0],
]
KL = [
    [0.1, 0.9, 0.2, 0.05, 0.4, 0.3],
    [0.5, 0.2, 0.1],
    [0.2, 0.1, 0.3, 0.4, 0.6],
    [0.7, 0.3, 0.2, 0.8],
]
# Means .416667 and .1, 0 and .6: two siblings always have z = +1 and -1, so w = 1 / (1 + e^-2).
HIGH, LOW = 0.880797, 0.119203
SIBLING_WEIGHTS = {
    "va_opd": [HIGH, LOW, LOW, HIGH],
    "rollout_only": [HIGH, LOW, LOW, HIGH],
    "token_only": [0.5] * 4,
    "opd": [0.5] * 4,
}
# |H| = ceil(.2 T) = 2, 1, 1, 1 and lambda = 1/2: a high token has 1 / (2 |H|), a low one
# 1 / (2 (T - |H|)) of its rollout's weight.
SHARES = [
    [1 / 8, 1 / 4, 1 / 8, 1 / 8, 1 / 4, 1 / 8],
    [1 / 2, 1 / 4, 1 / 4],
    None,  # which token is high is drawn by lot
    [1 / 2, 1 / 6, 1 / 6, 1 / 6],
]
LENGTHS = [6, 3, 5, 4]


def options(method: dict[str, Any]) -> MethodOptions:
    """Return a section ``method`` as a recipe has it."""
    recipe = {"student": {"model": "s"}, "data": {"train": "t"}, "method": method}
    return parse_config(recipe).method


def weigh(
    method: MethodOptions,
    responses: list[list[Tensor]],
    given: TeacherScores,
    *,
    tie_keys: list[str],
) -> Weights:
    """Return the weights of a method for these responses and scores."""
    return make_method(method).weigh(StepRollouts(responses=responses, keys=tie_keys), given)


def golden_responses() -> list[list[Tensor]]:
    rows = [torch.arange(length) for length in LENGTHS]
    return [rows[:2], rows[2:]]


def golden_weights(name: str) -> Weights:
    # The degraded log-prob of a token without advantage is larger: clipping makes the 0.
    degraded = [[-3.0 - (a or -0.7) for a in row] for row in ADVANTAGE]
    original = [[-3.0] * length for length in LENGTHS]
    given = scores(original, None if name == "opd" else degraded)
    method = options({"name": name})
    return weigh(method, golden_responses(), given, tie_keys=["a", "b", "c", "d"])


@pytest.mark.parametrize("name", METHODS)
def test_the_siblings_of_each_method_share_the_loss_as_worked_out_by_hand(name: str):
    weights = golden_weights(name)
    torch.testing.assert_close(
        weights.rollout, torch.tensor(SIBLING_WEIGHTS[name]), atol=2e-6, rtol=0
    )
    torch.testing.assert_close(weights.token.sum(-1), weights.rollout)


@pytest.mark.parametrize("name", METHODS)
def test_the_tokens_of_each_method_share_the_loss_as_worked_out_by_hand(name: str):
    weights = golden_weights(name)
    is_grouped = name in ("va_opd", "token_only")
    for row, length in enumerate(LENGTHS):
        share = SHARES[row] if is_grouped else [1 / length] * length
        found = weights.token[row] / SIBLING_WEIGHTS[name][row]
        assert found[length:].eq(0).all()
        if share is None:
            # One of the five has 1/2 and four have 1/8.
            share, found = [1 / 8] * 4 + [1 / 2], found[:length].sort().values
        torch.testing.assert_close(found[:length], torch.tensor(share), atol=1e-5, rtol=0)


def test_all_methods_but_the_two_combinations_differ_in_some_weight():
    tokens = [golden_weights(name).token for name in METHODS]
    pairs = [(a, b) for i, a in enumerate(tokens) for b in tokens[i + 1 :]]
    assert len(pairs) == 6
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


def test_the_weighted_sum_is_the_golden_loss():
    # Problem 0 of golden vector 9: .110099 x (.1 + .2 + .05 + .3) + .220199 x (.9 + .4)
    # + .059602 x .5 + .029801 x (.2 + .1) = .396564.
    token = golden_weights("va_opd").token
    found = sum((token[i, : len(row)] * torch.tensor(row)).sum() for i, row in enumerate(KL[:2]))
    assert float(found) == pytest.approx(0.396564, abs=2e-6)
    # Standard OPD by the mean of each row, 1.95/6, .8/3, 1.6/5 and 2/4, is .352917.
    token = golden_weights("opd").token
    found = sum((token[i, : len(row)] * torch.tensor(row)).sum() for i, row in enumerate(KL)) / 2
    assert float(found) == pytest.approx(0.352917, abs=2e-6)


def weights_with(method: dict[str, Any], **more: Any) -> Weights:
    """Return the weights of the golden rollouts; a token without advantage lost 0.7 nats."""
    degraded = [[-3.0 - (a or -0.7) for a in row] for row in ADVANTAGE]
    given = dataclasses.replace(scores([[-3.0] * n for n in LENGTHS], degraded), **more)
    keys = ["a", "b", "c", "d"]
    return weigh(options(method), golden_responses(), given, tie_keys=keys)


def test_the_highest_tokens_leave_the_loss_and_the_rest_keeps_the_share_of_its_response():
    method = {"name": "opd", "drop": "highest", "drop_fraction": 0.3}
    token = weights_with(method).token
    # ceil(.3 x 6) = 2 of the first row go, with advantages 2 and .4: four tokens share its 1/2.
    share = 0.5 / 4
    torch.testing.assert_close(token[0], torch.tensor([share, 0, share, share, 0, share]))
    # ceil(.3 x 3) = 1 of the second.
    torch.testing.assert_close(token[1], torch.tensor([0, 0.25, 0.25, 0, 0, 0]))
    torch.testing.assert_close(token.sum(-1), torch.full((4,), 0.5))


def test_the_lowest_tokens_are_among_those_without_advantage():
    token = weights_with({"name": "opd", "drop": "lowest", "drop_fraction": 0.3}).token
    dropped = (token[0, :6] == 0).nonzero()[:, 0].tolist()
    assert len(dropped) == 2
    assert set(dropped) <= {0, 3, 5}
    # The only zero of the fourth row, and of the others ceil(.3 x 4) = 2 the .5.
    assert (token[3, :4] == 0).tolist() == [False, False, True, True]


def test_random_tokens_are_drawn_by_the_key_of_their_rollout():
    method = {"name": "opd", "drop": "random", "drop_fraction": 0.3}
    token = weights_with(method).token
    assert torch.equal(token, weights_with(method).token)
    assert [(row[:n] == 0).sum().item() for row, n in zip(token, LENGTHS, strict=True)] == [
        2,
        1,
        2,
        2,
    ]
    # Chance does not look at the advantage.
    found = set()
    for key in range(40):
        keys = [f"{key}{row}" for row in range(4)]
        given = scores([[-3.0] * n for n in LENGTHS], ADVANTAGE)
        token = weigh(options(method), golden_responses(), given, tie_keys=keys).token
        found |= set((token[0, :6] == 0).nonzero()[:, 0].tolist())
    assert found == set(range(6))


def test_dropping_works_on_the_weights_of_any_method_that_scores():
    plain, without = (
        weights_with({"name": "va_opd", "drop": drop, "drop_fraction": 0.3}).token
        for drop in ("none", "highest")
    )
    torch.testing.assert_close(without.sum(-1), plain.sum(-1))
    assert without[0, 1] == without[0, 4] == 0


def test_the_absolute_advantage_weighs_what_the_detail_speaks_against():
    # Tokens without advantage lost 0.7 nats, which is more than the second row's only gain of 0.3.
    weights = weights_with({"name": "va_opd", "advantage": "absolute"})
    assert weights.advantage is not None and weights.high is not None
    torch.testing.assert_close(weights.advantage[1, :3], torch.tensor([0.3, 0.7, 0.7]))
    assert not weights.high[1, 0]


def test_the_signed_advantage_ranks_what_the_detail_speaks_against_last():
    weights = weights_with({"name": "va_opd", "advantage": "signed"})
    assert weights.advantage is not None and weights.high is not None
    torch.testing.assert_close(weights.advantage[1, :3], torch.tensor([0.3, -0.7, -0.7]))
    assert weights.high[1, 0]


def test_the_view_divergence_takes_the_place_of_the_log_ratio():
    # The last token of each rollout diverges the most, whatever its log-ratio.
    divergence = [torch.arange(float(length)) for length in LENGTHS]
    method = {"name": "va_opd", "advantage": "view_divergence"}
    weights = weights_with(method, view_divergence=divergence)
    assert weights.advantage is not None and weights.high is not None
    assert weights.advantage[3, :4].tolist() == [0, 1, 2, 3]
    assert [row[n - 1].item() for row, n in zip(weights.high, LENGTHS, strict=True)] == [True] * 4


@pytest.mark.parametrize("advantage", ["view_divergence", "absolute", "signed"])
def test_a_step_by_another_advantage_is_another_update(
    make_step: Callable, problems: list[Problem], advantage: str
):
    usual = make_step().run(problems, 1)
    other = make_step(f"method.advantage={advantage}").run(problems, 1)
    assert usual.weights.advantage is not None and other.weights.advantage is not None
    assert not torch.allclose(usual.weights.advantage, other.weights.advantage, atol=1e-3)
    assert (other.weights.advantage >= 0).all() == (advantage != "signed")
    assert other.loss != usual.loss


def test_plain_opd_that_drops_tokens_scores_both_views(
    make_step: Callable, problems: list[Problem]
):
    assert make_step("method.name=opd").run(problems, 1).weights.advantage is None
    result = make_step("method.name=opd", "method.drop=highest").run(problems, 1)
    assert result.weights.advantage is not None
    dropped = result.weights.mask & (result.weights.token == 0)
    # A tenth of 5, 1, 9, 4, 11 and 6 tokens is 1 (2 of 11), and the only token of one stays.
    assert dropped.sum(-1).tolist() == [1, 0, 1, 1, 2, 1]


def high_of_ties(lengths: list[int], keys: list[str]) -> list[tuple[int, ...]]:
    """Return the high groups of single rollouts in which every token has the same advantage."""
    rows = [[-1.0] * length for length in lengths]
    responses = [[torch.arange(length)] for length in lengths]
    high = weigh(options({}), responses, scores(rows, rows), tie_keys=keys).high
    assert high is not None
    return [tuple(row.nonzero().flatten().tolist()) for row in high]


def test_ties_are_drawn_by_lot_from_the_key_of_the_rollout():
    assert high_of_ties([40], ["a"]) == high_of_ties([40], ["a"])
    found = high_of_ties([40] * 4, ["a", "b", "c", "d"])
    assert len(set(found)) == 4
    assert tuple(range(8)) not in found


def test_ties_do_not_depend_on_the_order_or_the_padding_of_rollouts():
    assert high_of_ties([40, 60], ["a", "b"]) == high_of_ties([60, 40], ["b", "a"])[::-1]
    assert high_of_ties([40, 60], ["a", "b"])[0] == high_of_ties([40], ["a"])[0]


def test_ties_of_a_run_differ_by_seed_step_problem_and_sibling(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []

    def watched(method: VaOpd, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        seen.extend(batch.keys)
        return intact(method, batch, scores)

    intact = VaOpd.weigh
    monkeypatch.setattr(VaOpd, "weigh", watched)
    for seed in (42, 43):
        step = make_step(f"training.seed={seed}")
        for number in (1, 2):
            step.run(problems[:2], number)
    num_rollouts = step.config.sampling.num_rollouts
    assert len(set(seen)) == len(seen) == 2 * 2 * 2 * num_rollouts


def test_the_high_group_that_is_logged_is_the_one_that_is_weighted():
    given = scores([[-1.0] * 40], [[-1.0] * 40])
    weights = weigh(options({}), [[torch.arange(40)]], given, tie_keys=["a"])
    assert weights.high is not None
    # 8 of 40 tokens carry 1/2 of the weight, 32 the other half.
    torch.testing.assert_close(weights.token[weights.high], torch.full((8,), 1 / 16))
    torch.testing.assert_close(weights.token[~weights.high], torch.full((32,), 1 / 64))


def test_the_summary_of_the_advantages_is_as_worked_out_by_hand():
    summary = advantage_summary(golden_weights("va_opd"))
    # Row means 2.5/6, .3/3, 0 and 2.4/4.
    assert summary["va/mean"] == pytest.approx((2.5 / 6 + 0.1 + 0 + 0.6) / 4)
    # In the groups 2.4 + .3 + 0 + 1 of 2.5 + .3 + 0 + 2.4 nats.
    assert summary["va/high_share"] == pytest.approx(3.7 / 5.2)
    # Of 2 + 1 + 1 + 1 high tokens, only the one of the third row is zero.
    assert summary["va/high_zero_share"] == pytest.approx(1 / 5)
    assert summary["weights/rollout_max"] == pytest.approx(HIGH, abs=2e-6)
    assert summary["weights/rollout_min"] == pytest.approx(LOW, abs=2e-6)


def test_the_summary_is_finite_without_any_high_token():
    method = options({"high_fraction": 0})
    given = scores([[-1.0, -1.0]], [[-2.0, -1.0]])
    summary = advantage_summary(weigh(method, [[torch.arange(2)]], given, tie_keys=["a"]))
    assert all(math.isfinite(value) for value in summary.values())


# --- the step against a plain computation ---------------------------------------------------


class Plain:
    """KL (with gradient) and advantage of every rollout, in float64, with nothing shared."""

    def __init__(self, step: Step, teacher: LocalTeacher, problems: list[Problem]) -> None:
        self.student, frozen = double(step.student), double(teacher.model)
        # Drawn once more: the rollouts do not depend on the student.
        prompts = [step.pipeline.encoder.both(problem) for problem in problems]
        settings = SamplingSettings(
            num_rollouts=3, temperature=1.0, top_p=1.0, max_new_tokens=6, seed=0, stream=""
        )
        originals = [original for original, _ in prompts]
        groups = step.pipeline.sampler.sample(originals, settings)
        self.kl: list[list[Tensor]] = []
        self.advantage: list[list[list[float]]] = []
        for (original, degraded), group in zip(prompts, groups, strict=True):
            self.kl.append([])
            self.advantage.append([])
            for rollout in group:
                ids = torch.tensor(rollout.response_ids)
                with torch.no_grad():
                    views = [plain_logprobs(frozen, view, ids) for view in (original, degraded)]
                own = plain_logprobs(self.student, original, ids)
                self.kl[-1].append((own.exp() * (own - views[0])).sum(-1))
                sampled = [view.gather(-1, ids[:, None])[:, 0] for view in views]
                self.advantage[-1].append((sampled[0] - sampled[1]).clamp(min=0).tolist())

    def loss(self, method: str) -> Tensor:
        """Eq. 6 as it is written, averaged over problems."""
        per_problem = []
        for kls, advantages in zip(self.kl, self.advantage, strict=True):
            means = [sum(row) / len(row) for row in advantages]
            center = sum(means) / len(means)
            deviation = math.sqrt(sum((m - center) ** 2 for m in means) / len(means))
            powers = [math.exp((m - center) / (deviation + 1e-6)) for m in means]
            parts = []
            for kl, row, power in zip(kls, advantages, powers, strict=True):
                weight = (
                    power / sum(powers) if method in ("va_opd", "rollout_only") else 1 / len(kls)
                )
                grouped = method in ("va_opd", "token_only")
                parts.append(weight * (self.grouped(kl, row) if grouped else kl.mean()))
            per_problem.append(torch.stack(parts).sum())
        return torch.stack(per_problem).mean()

    def grouped(self, kl: Tensor, advantage: list[float]) -> Tensor:
        """Eq. 5."""
        order = sorted(range(len(advantage)), key=lambda t: -advantage[t])
        size = max(1, math.ceil(0.2 * len(advantage)))
        if size == len(advantage):
            return kl.mean()
        assert advantage[order[size - 1]] > 0, "a tie at the border would be drawn by lot"
        return 0.5 * kl[order[:size]].mean() + 0.5 * kl[order[size:]].mean()


@pytest.fixture(scope="module")
def module_cache() -> dict[str, Any]:
    return {}


@pytest.fixture
def plain(
    module_cache: dict, make_step: Callable, teacher: LocalTeacher, problems: list[Problem]
) -> Plain:
    if "plain" not in module_cache:
        module_cache["plain"] = Plain(make_step(), teacher, problems)
    return module_cache["plain"]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_equation_6_computed_plainly(
    make_step: Callable, plain: Plain, problems: list[Problem], method: str
):
    result = make_step(f"method.name={method}").run(problems, 1)
    assert result.loss == pytest.approx(plain.loss(method).item(), rel=2e-5)


def test_the_losses_of_the_methods_differ(plain: Plain):
    losses = [plain.loss(method).item() for method in METHODS]
    gaps = [abs(a - b) / a for i, a in enumerate(losses) for b in losses[i + 1 :]]
    assert min(gaps) > 1e-3


def test_the_divergence_of_every_token_is_the_plain_kl(
    make_step: Callable, plain: Plain, problems: list[Problem]
):
    found = make_step().run(problems, 1).token_divergence
    expected = [row.detach().float() for group in plain.kl for row in group]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_plain_loss(
    make_step: Callable, plain: Plain, problems: list[Problem]
):
    step = make_step("training.max_gradient_norm=1e9")
    gradients = record_gradients(step)
    result = step.run(problems, 1)
    plain.student.model.zero_grad()
    plain.loss("va_opd").backward(retain_graph=True)
    expected = {n: p.grad for n, p in plain.student.model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    difference = math.sqrt(
        sum(float((gradients[n] - g).square().sum()) for n, g in expected.items())
    )
    size = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    assert size > 0.1
    assert difference < 1e-3 * size
    assert result.gradient_norm == pytest.approx(size, rel=1e-3)


def test_supervised_steps_lower_the_mean_negative_log_likelihood_of_the_references(
    make_step: Callable, problems: list[Problem]
):
    step = make_step("method.name=sft")
    student = double(step.student)
    per_problem = []
    for problem in problems:
        prompt = step.pipeline.encoder.original(problem)
        rows = []
        for text in problem.references:
            ids = student.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([*ids, student.tokenizer.eos_token_id])
            with torch.no_grad():
                rows.append(-plain_logprobs(student, prompt, ids).gather(-1, ids[:, None]).mean())
        per_problem.append(sum(rows) / len(rows))
    first = step.run(problems, 1)
    assert first.loss == pytest.approx(float(sum(per_problem)) / 2, rel=2e-5)
    assert step.run(problems, 2).loss < first.loss


def test_supervised_steps_need_reference_responses(make_step: Callable, problems: list[Problem]):
    bare = dataclasses.replace(problems[1], references=())
    with pytest.raises(ProblemError, match=f"problem {bare.id} has no reference response"):
        make_step("method.name=sft").run([problems[0], bare], 1)


# --- what an update does and leaves alone ---------------------------------------------------


def run_once(step: Step, problems: list[Problem]) -> tuple[StepResult, dict[str, Tensor]]:
    result = step.run(problems, 1)
    return result, snapshot(step.student)


@pytest.mark.parametrize(
    "layout",
    [
        ("training.micro_batch_tokens=1",),
        ("training.share_prefix=false",),
        ("training.share_prefix=false", "training.micro_batch_tokens=1"),
    ],
)
def test_the_update_does_not_depend_on_micro_batches_or_packing(
    make_step: Callable, problems: list[Problem], layout: tuple[str, ...]
):
    step = make_step("training.learning_rate=1e-5")
    expected_gradients = record_gradients(step)
    whole, expected = run_once(step, problems)
    step = make_step("training.learning_rate=1e-5", *layout)
    gradients = record_gradients(step)
    split, found = run_once(step, problems)
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert split.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5)
    for name, value in found.items():
        # AdamW's first update is the sign of the gradient times the rate, and rounding can turn
        # the sign of the few gradients that are almost 0.
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2.1e-5)
        assert (value - expected[name]).abs().mean() < 1e-6, name


def test_micro_batches_of_one_token_make_one_backward_for_each_rollout(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    calls = []
    original = distillation.weighted_divergence

    def spy(hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(hidden))
        return original(hidden, *arguments, **options)

    monkeypatch.setattr(distillation, "weighted_divergence", spy)
    make_step("training.share_prefix=false", "training.micro_batch_tokens=1").run(problems, 1)
    assert sorted(calls) == [1, 4, 5, 6, 9, 11]
    calls.clear()
    make_step().run(problems, 1)
    assert calls == [36]


@pytest.mark.parametrize(
    ("overrides", "formula"),
    [
        (["method.target=sharpened", "method.strength=0.5"], lambda q, blind: 1.5 * q),
        (
            ["method.target=contrast", "method.strength=2", "method.floor=0"],
            lambda q, blind: q + 2 * (q - blind),
        ),
    ],
    ids=["sharpened", "contrast"],
)
@pytest.mark.parametrize("name", ["opd", "va_opd"])
def test_the_measure_of_every_token_is_the_plain_kl_to_the_target(
    name: str,
    overrides: list[str],
    formula: Callable[[Tensor, Tensor], Tensor],
    make_step: Callable,
    teacher: LocalTeacher,
    problems: list[Problem],
):
    step = make_step(f"method.name={name}", *overrides)
    student, frozen = double(step.student), double(teacher.model)
    result = step.run(problems, 1)
    found = iter(result.token_divergence)
    rollouts = iter(result.rollouts)
    for problem in problems:
        original, degraded = step.pipeline.encoder.both(problem)
        for _ in range(3):
            ids = torch.tensor(next(rollouts).response_ids)
            with torch.no_grad():
                p, q, blind = (
                    plain_logprobs(model, view, ids)
                    for model, view in ((student, original), (frozen, original), (frozen, degraded))
                )
            target = formula(q, blind).log_softmax(-1)
            expected = (p.exp() * (p - target)).sum(-1)
            torch.testing.assert_close(next(found).double(), expected, atol=1e-3, rtol=1e-3)


def test_everything_is_scored_before_the_first_gradient(
    make_step: Callable, teacher: LocalTeacher, problems: list[Problem], monkeypatch: Any
):
    events = []
    score, loss = teacher.score, distillation.weighted_divergence

    def spy_score(originals: Any, *arguments: Any, **options: Any) -> Any:
        events.append(f"score {len(originals)}")
        assert torch.is_grad_enabled(), "the teacher itself must switch gradients off"
        return score(originals, *arguments, **options)

    def spy_loss(hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        events.append("loss")
        assert not arguments[2].requires_grad
        return loss(hidden, *arguments, **options)

    monkeypatch.setattr(teacher, "score", spy_score)
    monkeypatch.setattr(distillation, "weighted_divergence", spy_loss)
    result = make_step("training.micro_batch_tokens=1").run(problems, 1)
    # The second time for the noise floor, in the first step only.
    assert events == ["score 2", "score 2", "loss", "loss"]
    assert result.scores is not None
    assert not any(h.requires_grad for h in result.scores.hidden)


def test_plain_distillation_never_makes_or_scores_the_degraded_view(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        pytest.fail("the degraded view was made")

    monkeypatch.setattr(PromptEncoder, "degraded", fail)
    views = []
    score = local.score_view
    monkeypatch.setattr(local, "score_view", lambda *a, **k: views.append(1) or score(*a, **k))
    result = make_step("method.name=opd").run(problems, 1)
    assert len(views) == 1
    assert result.scores is not None
    assert result.scores.degraded_logprobs is None
    assert result.weights.advantage is None


@pytest.mark.parametrize("method", ["va_opd", "rollout_only", "token_only"])
def test_the_methods_with_advantage_score_two_views(
    make_step: Callable, problems: list[Problem], monkeypatch: pytest.MonkeyPatch, method: str
):
    views = []
    score = local.score_view
    monkeypatch.setattr(
        local, "score_view", lambda *a, **k: views.append(k["hidden"]) or score(*a, **k)
    )
    # The first step also scores for the noise floor.
    make_step(f"method.name={method}").run(problems, 2)
    assert views == ["kept", "dropped"]


def test_the_teacher_never_changes_and_the_student_does(
    make_step: Callable, teacher: LocalTeacher, problems: list[Problem]
):
    step = make_step()
    frozen, before = snapshot(teacher.model), snapshot(step.student)
    for number in (1, 2):
        step.run(problems, number)
    assert same_bits(teacher.model, frozen)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.model.parameters())
    assert not same_bits(step.student, before)


def test_every_part_of_the_student_is_trained(make_step: Callable, problems: list[Problem]):
    step = make_step()
    before = snapshot(step.student)
    step.run(problems, 1)
    unchanged = [n for n, v in step.student.model.state_dict().items() if torch.equal(v, before[n])]
    assert unchanged == []


def test_the_first_update_is_that_of_adamw_worked_out_by_hand(
    make_step: Callable, problems: list[Problem]
):
    step = make_step("training.learning_rate=0.01", "training.weight_decay=0.1")
    before, gradients = snapshot(step.student), record_gradients(step)
    step.run(problems, 1)
    # Both moments are divided by their bias corrections, so they are g and g^2.
    for name, parameter in step.student.model.named_parameters():
        g = gradients[name]
        expected = before[name] * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_second_moment_decays_as_the_recipe_says(make_step: Callable, problems: list[Problem]):
    step = make_step("training.betas=[0.8, 0.9]")
    gradients = record_gradients(step)
    step.run(problems, 1)
    parameter = step.student.head
    state = step.optimizer.state[parameter]
    name = next(n for n, p in step.student.model.named_parameters() if p is parameter)
    torch.testing.assert_close(state["exp_avg"], 0.2 * gradients[name])
    torch.testing.assert_close(state["exp_avg_sq"], 0.1 * gradients[name].square())


def test_gradients_are_scaled_down_to_the_largest_norm(
    make_step: Callable, problems: list[Problem]
):
    step = make_step("training.max_gradient_norm=0.01")
    gradients = record_gradients(step)
    result = step.run(problems, 1)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert result.gradient_norm > 0.1, "the norm before it was scaled is what is logged"


def test_no_gradient_is_left_for_the_next_step(make_step: Callable, problems: list[Problem]):
    step = make_step()
    step.run(problems, 1)
    assert all(parameter.grad is None for parameter in step.student.model.parameters())


# --- what stops a step ----------------------------------------------------------------------


class PoisonedTeacher(LocalTeacher):
    """Finite log-probs, but one hidden state of the second problem is not."""

    def score(self, *arguments: Any, **options: Any) -> TeacherScores:
        result = super().score(*arguments, **options)
        if result.hidden:
            result.hidden[4][2, 0] = float("nan")
        return result


def check_untouched(step: Step, before: dict[str, Tensor]) -> None:
    assert same_bits(step.student, before)
    assert all(parameter.grad is None for parameter in step.student.model.parameters())
    assert not step.optimizer.state


def test_a_loss_that_is_not_finite_is_not_applied(
    make_step: Callable, teacher: LocalTeacher, problems: list[Problem]
):
    step = make_step(teacher=PoisonedTeacher(teacher.model, batch_tokens=16384))
    before = snapshot(step.student)
    result = step.run(problems, 1)
    assert math.isnan(result.loss) and result.skipped_in_a_row == 1
    check_untouched(step, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(
    make_step: Callable, problems: list[Problem], value: float
):
    step = make_step()
    before = snapshot(step.student)
    handle = step.student.head.register_hook(lambda gradient: gradient * value)
    assert [step.run(problems, n).skipped_in_a_row for n in (1, 2)] == [1, 2]
    check_untouched(step, before)
    handle.remove()
    # Once the cause is gone, the weights move and the count begins anew.
    result = step.run(problems, 3)
    assert math.isfinite(result.loss) and result.skipped_in_a_row == 0
    assert step.skips == Skips(in_a_row=0, total=2, losses=[result.loss])
    assert not same_bits(step.student, before)


def test_a_teacher_that_is_not_finite_stops_before_the_update(
    make_step: Callable, teacher: LocalTeacher, problems: list[Problem]
):
    broken = copy.deepcopy(teacher.model)
    with torch.no_grad():
        broken.head[3] = math.nan
    step = make_step(teacher=LocalTeacher(broken, batch_tokens=16384))
    before = snapshot(step.student)
    with pytest.raises(AlignmentError, match="not finite"):
        step.run(problems, 1)
    check_untouched(step, before)
