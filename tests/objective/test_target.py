"""Divergences other than the reverse KL, and targets other than the teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaopd.objective.divergence import Divergence, weighted_divergence, weighted_reverse_kl
from vaopd.objective.entropy import token_entropy
from vaopd.objective.target import Target

KINDS = [Divergence(), Divergence(name="forward"), Divergence(name="jsd", beta=0.3)]


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def identity(logits: Tensor) -> Tensor:
    """Return the head that turns hidden states into themselves."""
    return torch.eye(logits.shape[1], dtype=logits.dtype)


def divergence_of(
    student: Tensor,
    teacher: Tensor,
    kind: Divergence,
    degraded: Tensor | None = None,
    **made: float,
) -> float:
    target = Target(hidden=teacher, head=identity(teacher), degraded_hidden=degraded, **made)
    weights = torch.ones(len(student), dtype=student.dtype)
    loss, found = weighted_divergence(student, identity(student), target, weights, kind=kind)
    assert float(loss) == pytest.approx(float(found.sum()))
    return float(loss)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln 2/3 + 1/2 ln 2.
        (Divergence(), 0.143841),
        # 3/4 ln 3/2 + 1/4 ln 1/2.
        (Divergence(name="forward"), 0.130812),
        # m = (5/8, 3/8): 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3).
        (Divergence(name="jsd"), 0.033822),
    ],
    ids=["reverse", "forward", "jsd"],
)
def test_the_divergences_are_as_worked_out_by_hand(kind: Divergence, expected: float):
    found = divergence_of(logs([0.5, 0.5]), logs([0.75, 0.25]), kind)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # q = (1/2, 1/4, 1/4), q~ = (1/4, 1/2, 1/4): q' goes with q^2 / q~ = 1, 1/8, 1/4, that is
        # (8, 1, 2) / 11, and the reverse KL of a uniform student is -ln 3 - (ln 8/11 + ..) / 3.
        ({"contrast": 1.0, "floor": 0.1}, 0.375087),
        # Only the first id has at least .6 of the largest: 1, 1/4, 1/4, that is (4, 1, 1) / 6.
        ({"contrast": 1.0, "floor": 0.6}, 0.231049),
        # q^2 = 1/4, 1/16, 1/16: (4, 1, 1) / 6 as well.
        ({"sharpness": 1.0}, 0.231049),
    ],
    ids=["contrast", "contrast with a high floor", "sharpened"],
)
def test_the_targets_are_as_worked_out_by_hand(made: dict[str, float], expected: float):
    teacher, degraded = logs([0.5, 0.25, 0.25]), logs([0.25, 0.5, 0.25])
    student = torch.zeros(1, 3, dtype=torch.float64)
    found = divergence_of(student, teacher, Divergence(), degraded, **made)
    assert found == pytest.approx(expected, abs=1e-6)


def plain_target(q: Tensor, blind: Tensor, contrast: float, floor: float, sharp: float) -> Tensor:
    """Return log-probs of the target by its formula over whole logits."""
    q, blind = q.log_softmax(-1), blind.log_softmax(-1)
    is_plausible = q.exp() >= floor * q.exp().amax(-1, keepdim=True)
    moved = torch.where(is_plausible, q + contrast * (q - blind), q)
    return ((1 + sharp) * moved).log_softmax(-1)


def plain_divergence(student: Tensor, target: Tensor, kind: Divergence) -> Tensor:
    """Return the divergence of each token by its formula over whole logits."""
    log_p = student.log_softmax(-1)
    p, q = log_p.exp(), target.exp()
    if kind.name == "reverse":
        return (p * (log_p - target)).sum(-1)
    if kind.name == "forward":
        return (q * (target - log_p)).sum(-1)
    log_m = (kind.beta * q + (1 - kind.beta) * p).log()
    to_target, to_student = (q * (target - log_m)).sum(-1), (p * (log_p - log_m)).sum(-1)
    return kind.beta * to_target + (1 - kind.beta) * to_student


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    made=st.sampled_from(
        [(0.0, 0.1, 0.0), (1.0, 0.1, 0.0), (0.5, 0.0, 0.0), (2.0, 0.7, 0.0), (0.0, 0.1, 0.7)]
    ),
    chunk_size=st.sampled_from([1, 3, None]),
)
def test_value_and_gradient_are_those_of_the_plain_formulas_in_float64(
    kind: Divergence, seed: int, made: tuple[float, float, float], chunk_size: int | None
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    # The student's head has two rows of padding, the teacher's three.
    hidden, head = normal(5, 4).requires_grad_(), normal(13, 4).requires_grad_()
    seen, unseen, teacher_head = normal(5, 6), normal(5, 6), normal(14, 6)
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    contrast, floor, sharp = made
    target = Target(
        hidden=seen,
        head=teacher_head,
        degraded_hidden=unseen,
        contrast=contrast,
        floor=floor,
        sharpness=sharp,
    )
    loss, found = weighted_divergence(
        hidden, head, target, weights, kind=kind, vocab_size=11, chunk_size=chunk_size
    )
    gradients = torch.autograd.grad(loss, (hidden, head))
    wanted = plain_target(seen @ teacher_head[:11].T, unseen @ teacher_head[:11].T, *made)
    plain = plain_divergence(hidden @ head[:11].T, wanted, kind)
    torch.testing.assert_close(found, plain.detach())
    expected = torch.autograd.grad((weights * plain).sum(), (hidden, head))
    torch.testing.assert_close(gradients, expected)


def test_without_strength_the_target_is_the_teacher_to_the_last_bit():
    generator = torch.Generator().manual_seed(3)
    student, teacher, degraded = (torch.randn(6, 9, generator=generator) for _ in range(3))
    head, weights = torch.eye(9), torch.rand(6, generator=generator)
    target = Target(hidden=teacher, head=head, degraded_hidden=degraded, contrast=0.0)
    ours = weighted_divergence(student, head, target, weights)
    paper = weighted_reverse_kl(student, head, teacher, head, weights)
    assert torch.equal(ours[0], paper[0]) and torch.equal(ours[1], paper[1])


def test_equal_views_leave_the_teacher_as_it_is():
    teacher = logs([0.5, 0.25, 0.25], [0.1, 0.2, 0.7])
    student = torch.zeros(2, 3, dtype=torch.float64)
    plain = divergence_of(student, teacher, Divergence())
    found = divergence_of(student, teacher, Divergence(), teacher.clone(), contrast=3.0)
    assert found == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_probability_that_rounds_to_nothing_gives_finite_numbers(kind: Divergence):
    # exp(-150) is 0 in float32, on either side.
    student = torch.tensor([[0.0, -150.0, -1.0], [-150.0, 0.0, -150.0]], requires_grad=True)
    teacher = torch.tensor([[-150.0, 0.0, -1.0], [0.0, -150.0, -1.0]])
    target = Target(hidden=teacher, head=torch.eye(3), degraded_hidden=-teacher, contrast=1.0)
    loss, found = weighted_divergence(student, torch.eye(3), target, torch.ones(2), kind=kind)
    loss.backward()
    assert student.grad is not None
    assert found.isfinite().all() and student.grad.isfinite().all()


def test_the_jsd_is_that_of_trl():
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = torch.randn(2, 1, 5, 9).unbind()
    for beta in (0.2, 0.5, 0.9):
        expected = trainer.GKDTrainer.generalized_jsd_loss(
            student, teacher, beta=beta, reduction="sum"
        )
        found = divergence_of(student[0], teacher[0], Divergence(name="jsd", beta=beta))
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_higher_share_of_the_target_moves_the_jsd_from_forward_to_reverse():
    p, q = logs([0.5, 0.5]), logs([0.75, 0.25])
    near_0 = divergence_of(p, q, Divergence(name="jsd", beta=1e-6)) / 1e-6
    near_1 = divergence_of(p, q, Divergence(name="jsd", beta=1 - 1e-6)) / 1e-6
    assert near_0 == pytest.approx(0.130812, abs=1e-4)
    assert near_1 == pytest.approx(0.143841, abs=1e-4)
    assert math.isclose(divergence_of(p, p, Divergence(name="jsd")), 0, abs_tol=1e-12)


def test_the_entropy_is_that_of_the_softmax_and_never_below_zero():
    head = torch.eye(4)
    # Two ids exist: 1/2 and 1/2 give ln 2; 3/4 and 1/4 give .562335; one alone gives 0.
    hidden = torch.tensor([[0.0, 0, 9, 9], [math.log(3), 0, 9, 9], [200.0, 0, 9, 9]])
    entropy = token_entropy(hidden, head, vocab_size=2)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.562335, 0.0]))
    assert (entropy >= 0).all()
