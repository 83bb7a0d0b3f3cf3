import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaopd.errors import AlignmentError, ConfigError
from vaopd.objective import chunks, walk
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.divergence import (
    sampled_logprobs,
    weighted_cross_entropy,
    weighted_reverse_kl,
)
from vaopd.objective.weights import rollout_weights, token_weights


def kl_of_logits(student, teacher, weights=None, **options):
    """Return loss, KL and the gradient of the student's logits: the heads are identities."""
    logits = torch.tensor(student, requires_grad=True)
    teacher = torch.tensor(teacher)
    weights = torch.ones(len(logits)) if weights is None else torch.tensor(weights)
    loss, kl = weighted_reverse_kl(
        logits,
        torch.eye(logits.shape[1]),
        teacher,
        torch.eye(teacher.shape[1]),
        weights,
        **options,
    )
    loss.backward()
    return loss, kl, logits.grad


def plain_kl(student_hidden, student_head, teacher_hidden, teacher_head, weights, size=None):
    """Return the formula written out over whole logits, in the type of the inputs."""
    student = (student_hidden @ student_head.T)[:, :size].log_softmax(-1)
    teacher = (teacher_hidden @ teacher_head.T)[:, :size].log_softmax(-1)
    kl = (student.exp() * (student - teacher)).sum(-1)
    return (weights * kl).sum(), kl.detach()


def plain_cross_entropy(hidden, head, ids, weights, size=None, smoothing=0.0):
    logits = (hidden @ head.T)[:, :size]
    loss = torch.nn.functional.cross_entropy(
        logits, ids, reduction="none", label_smoothing=smoothing
    )
    nll = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    return (weights * loss).sum(), nll.detach()


def make(num_tokens=7, rows=(19, 23), widths=(5, 8), dtype=torch.float32, seed=0):
    """Return student hidden states and head, the teacher's, and weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    student = [normal(num_tokens, widths[0]), normal(rows[0], widths[0])]
    teacher = [normal(num_tokens, widths[1]), normal(rows[1], widths[1])]
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    weights = weights.to(torch.promote_types(dtype, torch.float32))
    return [tensor.requires_grad_() for tensor in student] + teacher + [weights]


def double(tensors):
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]


def assert_near(actual, expected, tolerance):
    """Compare with the largest entry as the measure: small entries are differences of large."""
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-30)
    )


def assert_gradient_by_differences(loss_of, tensors, step=1e-6):
    """Compare with central differences in float64, entry by entry."""
    loss_of(*tensors).backward()
    swept = 0
    for tensor in tensors:
        if not tensor.requires_grad:
            continue
        numeric = torch.zeros_like(tensor)
        flat, target = tensor.detach().view(-1), numeric.view(-1)
        for i in range(len(flat)):
            value = float(flat[i])
            ends = []
            for moved in (value + step, value - step):
                flat[i] = moved
                ends.append(float(loss_of(*tensors).detach()))
            flat[i] = value
            target[i] = (ends[0] - ends[1]) / (2 * step)
            swept += 1
        torch.testing.assert_close(tensor.grad, numeric, rtol=1e-6, atol=1e-8)
    return swept


# --- reverse KL: values worked out by hand ---------------------------------------------------


def test_is_the_kl_of_student_from_teacher():
    # p=(3/4,1/4), q=(1/2,1/2): .75 log 1.5 + .25 log .5 = .304099 - .173287 = .130812.
    # KL(q||p) would be .5 log(2/3) + .5 log 2 = .143841.
    # Gradient p_j (log p_j/q_j - KL): .75 (.405465 - .130812) = .20599, .25 (-.693147 - .130812).
    loss, kl, gradient = kl_of_logits([[math.log(3), 0.0]], [[0.0, 0.0]])
    torch.testing.assert_close(kl, torch.tensor([0.130812]), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.detach(), kl[0])
    torch.testing.assert_close(gradient, torch.tensor([[0.20599, -0.20599]]), rtol=0, atol=1e-5)


def test_weights_add_up_and_are_not_averaged():
    # The token above twice, with weights 3 and .5: 3.5 x .130812 = .457842.
    tokens = [[math.log(3), 0.0]] * 2
    loss, kl, gradient = kl_of_logits(tokens, [[0.0, 0.0]] * 2, [3.0, 0.5])
    assert float(loss.detach()) == pytest.approx(0.457842, abs=3e-6)
    torch.testing.assert_close(kl, torch.full((2,), 0.130812), rtol=0, atol=1e-6)
    expected = torch.tensor([[0.61797, -0.61797], [0.102995, -0.102995]])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


def test_padding_rows_of_unequal_heads_take_no_probability_and_no_gradient():
    # Over the two shared ids both models are (1/2,1/2), whatever stands in the padding.
    _, kl, gradient = kl_of_logits([[0.0, 0.0, 100.0]], [[0.0, 0.0, -4.0, 20.0]], vocab_size=2)
    assert kl.tolist() == [0.0]
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]


def test_padding_logits_do_not_enter_the_normalisation():
    _, kl, gradient = kl_of_logits([[math.log(3), 0.0, 9.0]], [[0.0, 0.0, 5.0]], vocab_size=2)
    torch.testing.assert_close(kl, torch.tensor([0.130812]), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([[0.20599, -0.20599, 0]]), rtol=0, atol=1e-5)


def test_large_logits_do_not_overflow():
    # A constant added to every logit changes nothing; exp(1000) would be infinite.
    _, kl, gradient = kl_of_logits([[1000 + math.log(3), 1000.0]], [[-1000.0, -1000.0]])
    torch.testing.assert_close(kl, torch.tensor([0.130812]), rtol=0, atol=1e-4)
    assert gradient.isfinite().all()


def test_a_student_sure_of_what_the_teacher_rules_out_has_a_finite_kl():
    # log p = 0 on the first id, log q = -500 there: KL 500.
    _, kl, gradient = kl_of_logits([[500.0, 0.0]], [[0.0, 500.0]])
    assert kl.tolist() == [500.0]
    assert gradient.isfinite().all()


def test_a_weight_of_zero_reports_the_kl_without_teaching():
    _, kl, gradient = kl_of_logits([[math.log(3), 0.0]] * 2, [[0.0, 0.0]] * 2, [0.0, 1.0])
    torch.testing.assert_close(kl, torch.full((2,), 0.130812), rtol=0, atol=1e-6)
    assert gradient[0].tolist() == [0.0, 0.0]
    assert gradient[1].abs().min() > 0.2


# --- reverse KL: against the plain formula ---------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
@pytest.mark.parametrize("size", [1, 11, 19])
def test_value_and_gradients_equal_the_plain_formula(chunk_size, size):
    ours = make()
    plain = double(ours)
    loss, kl = weighted_reverse_kl(*ours, vocab_size=size, chunk_size=chunk_size)
    expected, expected_kl = plain_kl(*plain, size=size)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    if size == 1:  # One id has probability 1 under both models.
        assert not kl.any()
        assert not ours[1].grad.any()
        return
    assert_near(loss.detach(), expected.detach(), 1e-5)
    assert_near(kl, expected_kl, 1e-5)
    assert_near(ours[0].grad, plain[0].grad, 1e-5)
    assert_near(ours[1].grad, plain[1].grad, 1e-5)
    assert (ours[1].grad[size:] == 0).all()


def test_value_and_gradients_hold_at_a_real_vocabulary():
    ours = make(num_tokens=3, rows=(20_000, 20_000))
    plain = double(ours)
    loss, _ = weighted_reverse_kl(*ours)
    expected, _ = plain_kl(*plain)
    loss.backward()
    expected.backward()
    assert_near(loss.detach(), expected.detach(), 1e-5)
    assert_near(ours[0].grad, plain[0].grad, 1e-5)
    assert_near(ours[1].grad, plain[1].grad, 1e-5)


def test_gradients_equal_finite_differences():
    def loss_of(*tensors):
        return weighted_reverse_kl(*tensors, vocab_size=6, chunk_size=2)[0]

    tensors = make(num_tokens=3, rows=(7, 9), widths=(4, 5), dtype=torch.float64)
    assert assert_gradient_by_differences(loss_of, tensors) == 3 * 4 + 7 * 4


def test_the_teacher_and_the_weights_get_no_gradient():
    tensors = [tensor.detach().requires_grad_() for tensor in make(rows=(19, 19))]
    loss, kl = weighted_reverse_kl(*tensors)
    loss.backward()
    assert [tensor.grad is None for tensor in tensors] == [False, False, True, True, True]
    assert not kl.requires_grad


@pytest.mark.parametrize("trained", ["hidden", "head", "neither"])
def test_only_what_asks_for_a_gradient_gets_one(trained):
    expected = make(rows=(19, 19))
    weighted_reverse_kl(*expected)[0].backward()
    tensors = make(rows=(19, 19))
    tensors[0].requires_grad_(trained == "hidden")
    tensors[1].requires_grad_(trained == "head")
    loss, _ = weighted_reverse_kl(*tensors)
    assert loss.requires_grad == (trained != "neither")
    if trained == "neither":
        return
    loss.backward()
    for name, mine, full in zip(("hidden", "head"), tensors, expected, strict=False):
        if name == trained:
            assert torch.equal(mine.grad, full.grad)
        else:
            assert mine.grad is None


def test_without_grad_mode_the_value_is_the_same():
    tensors = make(rows=(19, 19))
    with torch.no_grad():
        loss, kl = weighted_reverse_kl(*tensors)
    expected, expected_kl = weighted_reverse_kl(*tensors)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)
    assert torch.equal(kl, expected_kl)


def test_a_second_backward_is_refused_with_what_to_do():
    loss, _ = weighted_reverse_kl(*make(rows=(19, 19)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the loss function again"):
        loss.backward()


def test_gradients_of_two_losses_add_up():
    tensors = make(rows=(19, 19))
    weighted_reverse_kl(*tensors)[0].backward()
    once = tensors[1].grad.clone()
    weighted_reverse_kl(*tensors)[0].backward()
    torch.testing.assert_close(tensors[1].grad, 2 * once)


def test_gradients_flow_through_a_tied_and_computed_head():
    # The hidden states and the head may both come from further parameters.
    table = torch.randn(19, 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
    exact = table.detach().double().requires_grad_()
    rest = make(num_tokens=4, rows=(19, 19))[2:]
    weighted_reverse_kl(table[:4].tanh(), table, *rest)[0].backward()
    plain_kl(exact[:4].tanh(), exact, *double(rest))[0].backward()
    assert_near(table.grad, exact.grad, 1e-5)


def test_no_tokens_give_a_loss_of_zero_with_a_graph():
    tensors = make(num_tokens=0, rows=(19, 19))
    loss, kl = weighted_reverse_kl(*tensors)
    loss.backward()
    assert float(loss.detach()) == 0
    assert kl.shape == (0,)
    assert tensors[0].grad.shape == (0, 5)
    assert torch.equal(tensors[1].grad, torch.zeros(19, 5))


def test_float64_is_kept():
    loss, kl = weighted_reverse_kl(*make(rows=(19, 19), dtype=torch.float64))
    expected, expected_kl = plain_kl(*make(rows=(19, 19), dtype=torch.float64))
    assert loss.dtype == kl.dtype == torch.float64
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(kl, expected_kl, rtol=1e-12, atol=1e-14)


def test_autocast_does_not_lower_the_precision():
    tensors, plain = make(rows=(19, 19)), make(rows=(19, 19))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = weighted_reverse_kl(*tensors)
        logprobs = sampled_logprobs(tensors[0].detach(), tensors[1].detach(), torch.arange(7))
    loss.backward()
    expected, _ = weighted_reverse_kl(*plain)
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(tensors[1].grad, plain[1].grad)
    exact = sampled_logprobs(tensors[0].detach(), tensors[1].detach(), torch.arange(7))
    assert torch.equal(logprobs, exact)


@pytest.mark.parametrize("cast_bytes", [1, 60, 2**20])
def test_bfloat16_models_are_multiplied_and_summed_in_float32(cast_bytes, monkeypatch):
    # The float64 formula on the same rounded inputs: only the gradients are rounded again,
    # to 8 bits, a relative error of 2^-9 = .002. The blocks of rows do not divide the head.
    monkeypatch.setattr(walk, "CAST_BYTES", cast_bytes)
    ours = make(dtype=torch.bfloat16)
    plain = double(ours)
    loss, kl = weighted_reverse_kl(*ours, vocab_size=17, chunk_size=2)
    expected, expected_kl = plain_kl(*plain, size=17)
    loss.backward()
    expected.backward()
    assert loss.dtype == kl.dtype == torch.float32
    assert_near(loss.detach(), expected.detach(), 1e-5)
    assert_near(kl, expected_kl, 1e-5)
    for mine, exact in zip(ours[:2], plain[:2], strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=2**-8, atol=1e-6)


def test_student_and_teacher_may_differ_in_type():
    ours = make(rows=(19, 19))
    ours[2:4] = [tensor.bfloat16() for tensor in ours[2:4]]
    loss, _ = weighted_reverse_kl(*ours)
    expected, _ = plain_kl(*double(ours))
    assert_near(loss.detach(), expected.detach(), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_gpu_gives_the_same_value_and_gradients(dtype, tolerance):
    cpu = make(num_tokens=64, rows=(1000, 1000), widths=(64, 128), dtype=dtype)
    gpu = [t.detach().cuda().requires_grad_(t.requires_grad) for t in cpu]
    plain = double(cpu)
    loss, kl = weighted_reverse_kl(*gpu, vocab_size=990)
    expected, expected_kl = plain_kl(*plain, size=990)
    loss.backward()
    expected.backward()
    assert_near(loss.detach().cpu(), expected.detach(), 1e-4)
    assert_near(kl.cpu(), expected_kl, 1e-4)
    assert_near(gpu[0].grad.cpu(), plain[0].grad, tolerance)
    assert_near(gpu[1].grad.cpu(), plain[1].grad, tolerance)


# --- memory ----------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned in float32."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_nothing_of_tokens_by_vocabulary_ever_exists():
    # 400 tokens x 300 ids = 120,000 elements; the largest thing needed is the head, 300 x 8.
    tensors = make(num_tokens=400, rows=(300, 300))
    ids = torch.arange(400) % 300
    with LargestTensor() as largest:
        loss, _ = weighted_reverse_kl(*tensors, chunk_size=4)
        loss.backward()
        loss, _ = weighted_cross_entropy(*tensors[:2], ids, tensors[4], chunk_size=4)
        loss.backward()
        sampled_logprobs(tensors[0], tensors[1], ids, chunk_size=4)
    assert 1200 <= largest.num_elements <= 400 * 8


def test_a_bfloat16_head_is_never_widened_whole(monkeypatch):
    # Buffers of 4 x 300 and hidden gradients of 200 x 5 are needed; the heads, which are not
    # trained here, would be 300 x 5 and 300 x 8 in float32.
    monkeypatch.setattr(walk, "CAST_BYTES", 320)
    tensors = make(num_tokens=200, rows=(300, 300), dtype=torch.bfloat16)
    tensors[1].requires_grad_(False)
    with LargestTensor() as largest:
        weighted_reverse_kl(*tensors, chunk_size=4)[0].backward()
    assert largest.num_elements == 4 * 300


def test_the_default_chunk_fits_its_budget(monkeypatch):
    # Two float32 buffers of 300 ids and an eighth are 2,550 bytes a token: 25,500 hold ten tokens.
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 25_500)
    tensors = make(num_tokens=35, rows=(300, 300))
    with LargestTensor() as largest:
        weighted_reverse_kl(*tensors)
    assert largest.num_elements == 10 * 300


def test_an_accelerator_takes_more_tokens_at_a_time_than_a_cpu():
    tokens = [
        chunks.fitting_tokens(151_936, torch.device(d), torch.float32) for d in ("cpu", "cuda")
    ]
    # 192 and 512 MiB over 2 1/8 rows of 607,744 bytes.
    assert tokens == [155, 415]


def test_a_vocabulary_beyond_the_budget_goes_token_by_token(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8)
    loss, _ = weighted_reverse_kl(*make(rows=(19, 19)))
    expected, _ = plain_kl(*double(make(rows=(19, 19))))
    assert_near(loss.detach(), expected.detach(), 1e-5)


# --- splits and order ------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 9), st.integers(1, 10), st.integers(0, 10**6))
def test_micro_batches_add_up_to_the_whole(cut, chunk_size, seed):
    whole = make(num_tokens=9, rows=(13, 13), seed=seed)
    parts = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in whole]
    loss, kl = weighted_reverse_kl(*whole, chunk_size=chunk_size)
    loss.backward()
    total, kls = 0.0, []
    for rows in (slice(None, cut), slice(cut, None)):
        part, part_kl = weighted_reverse_kl(
            parts[0][rows], parts[1], parts[2][rows], parts[3], parts[4][rows]
        )
        part.backward()
        total += float(part.detach())
        kls.append(part_kl)
    assert total == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(torch.cat(kls), kl)
    assert_near(parts[0].grad, whole[0].grad, 1e-5)
    assert_near(parts[1].grad, whole[1].grad, 1e-5)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(9)), st.integers(0, 10**6))
def test_the_order_of_tokens_does_not_matter(order, seed):
    straight = make(num_tokens=9, rows=(13, 13), seed=seed)
    mixed = [tensor.detach().clone() for tensor in straight]
    for i in (0, 2, 4):
        mixed[i] = mixed[i][order]
    for i in (0, 1):
        mixed[i].requires_grad_()
    loss, kl = weighted_reverse_kl(*straight, chunk_size=4)
    other, other_kl = weighted_reverse_kl(*mixed, chunk_size=4)
    loss.backward()
    other.backward()
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(other_kl, kl[order])
    assert_near(mixed[0].grad, straight[0].grad[order], 1e-5)
    assert_near(mixed[1].grad, straight[1].grad, 1e-5)


def test_the_pixelated_view_changes_weights_but_never_the_target():
    # Two problems of two rollouts of five tokens; the pixelated view becomes noise.
    student_hidden, student_head, teacher_hidden, teacher_head, _ = make(20, rows=(19, 19))
    ids = torch.arange(20) % 19
    mask = torch.ones(4, 5, dtype=torch.bool)
    original = sampled_logprobs(teacher_hidden, teacher_head, ids).view(4, 5)
    noise = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(9))
    results = []
    for pixelated_hidden in noise:
        pixelated = sampled_logprobs(pixelated_hidden, teacher_head, ids).view(4, 5)
        advantage = visual_advantage(original, pixelated, mask)
        weights = token_weights(
            advantage, mask, rollout_weights(advantage, mask, [0, 0, 1, 1])
        ).view(-1)
        _, kl = weighted_reverse_kl(
            student_hidden, student_head, teacher_hidden, teacher_head, weights
        )
        results.append((weights, kl))
    assert not torch.allclose(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# --- sampled log-probabilities ---------------------------------------------------------------


def test_scores_a_sampled_token_at_temperature_one():
    # Logits (2,0): log p = -log(1+e^-2) = -.126928. Logits (0,0): -log 2. Difference .566219;
    # at temperature .7 the first would be -log(1+e^(-2/.7)) = -.055851, difference .637296.
    scores = sampled_logprobs(
        torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.eye(2), torch.tensor([0, 0])
    )
    assert float(scores[0] - scores[1]) == pytest.approx(0.566219, abs=1e-6)
    assert scores[1].item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("chunk_size", [1, 3, 100, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_equal_the_plain_formula(chunk_size, dtype):
    _, _, hidden, head, _ = make(dtype=dtype)
    ids = torch.tensor([0, 16, 3, 3, 9, 12, 1])
    scores = sampled_logprobs(hidden, head, ids, vocab_size=17, chunk_size=chunk_size)
    logits = (hidden.double() @ head.double().T)[:, :17]
    expected = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)


def test_scores_have_no_gradient():
    hidden, head, *_ = make()
    assert not sampled_logprobs(hidden, head, torch.zeros(7, dtype=torch.long)).requires_grad


def test_no_tokens_have_no_scores():
    assert sampled_logprobs(torch.zeros(0, 5), torch.zeros(9, 5), torch.zeros(0).long()).shape == (
        0,
    )


# --- cross-entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_cross_entropy_equals_that_of_torch(smoothing, chunk_size):
    hidden, head, _, _, weights = make()
    ids = torch.tensor([0, 16, 3, 3, 9, 12, 1])
    exact = double([hidden, head])
    loss, nll = weighted_cross_entropy(
        hidden,
        head,
        ids,
        weights,
        vocab_size=17,
        label_smoothing=smoothing,
        chunk_size=chunk_size,
    )
    expected, expected_nll = plain_cross_entropy(*exact, ids, weights.double(), 17, smoothing)
    (loss / 3).backward()
    (expected / 3).backward()
    assert_near(loss.detach(), expected.detach(), 1e-5)
    assert_near(nll, expected_nll, 1e-5)
    assert_near(hidden.grad, exact[0].grad, 1e-5)
    assert_near(head.grad, exact[1].grad, 1e-5)
    assert (head.grad[17:] == 0).all()
    assert not nll.requires_grad


def test_cross_entropy_of_a_hand_made_token():
    # p=(3/4,1/4), id 1: log 4 = 1.386294. With smoothing .2 the target is (.1,.9):
    # .9 x 1.386294 + .1 x log(4/3) = 1.276433; gradient p - target = (.65,-.65).
    logits = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss, nll = weighted_cross_entropy(
        logits, torch.eye(2), torch.tensor([1]), torch.ones(1), label_smoothing=0.2
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.276433, abs=1e-6)
    assert nll.item() == pytest.approx(1.386294, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.65, -0.65]]))


def test_cross_entropy_gradients_equal_finite_differences():
    def loss_of(hidden, head, weights):
        ids = torch.tensor([5, 0, 2])
        options = {"vocab_size": 6, "label_smoothing": 0.1, "chunk_size": 2}
        return weighted_cross_entropy(hidden, head, ids, weights, **options)[0]

    tensors = make(num_tokens=3, rows=(7, 7), widths=(4, 4), dtype=torch.float64)
    chosen = [tensors[0], tensors[1], tensors[4]]
    assert assert_gradient_by_differences(loss_of, chosen) == 3 * 4 + 7 * 4


def test_cross_entropy_of_no_tokens_is_zero_with_a_graph():
    hidden, head, _, _, weights = make(num_tokens=0)
    loss, _ = weighted_cross_entropy(hidden, head, torch.zeros(0).long(), weights)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(head.grad, torch.zeros(19, 5))


# --- errors ----------------------------------------------------------------------------------


def test_unequal_heads_need_the_shared_size():
    with pytest.raises(ConfigError, match=r"19 and 23 rows; give vocab_size"):
        weighted_reverse_kl(*make())


@pytest.mark.parametrize("size", [0, -1, 20])
def test_a_vocabulary_that_does_not_fit_the_smaller_head_is_refused(size):
    with pytest.raises(ConfigError, match=rf"vocab_size is {size}, expected 1 to 19"):
        weighted_reverse_kl(*make(), vocab_size=size)


def test_an_empty_chunk_is_refused():
    with pytest.raises(ConfigError, match="chunk_size is 0, expected at least 1"):
        weighted_reverse_kl(*make(rows=(19, 19)), chunk_size=0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_smoothing_outside_a_share_is_refused(smoothing):
    hidden, head, _, _, weights = make()
    ids = torch.zeros(7, dtype=torch.long)
    with pytest.raises(ConfigError, match="label_smoothing is"):
        weighted_cross_entropy(hidden, head, ids, weights, label_smoothing=smoothing)


@pytest.mark.parametrize("bad", [-1, -100, 17])
def test_an_id_outside_the_vocabulary_is_named(bad):
    hidden, head, _, _, weights = make()
    ids = torch.zeros(7, dtype=torch.long)
    ids[4] = bad
    message = f"token 4 has id {bad}, expected 0 to 16"
    with pytest.raises(AlignmentError, match=message):
        sampled_logprobs(hidden, head, ids, vocab_size=17)
    with pytest.raises(AlignmentError, match=message):
        weighted_cross_entropy(hidden, head, ids, weights, vocab_size=17)


def test_student_and_teacher_need_the_same_tokens():
    student, teacher = make(7, rows=(19, 19)), make(6, rows=(19, 19))
    with pytest.raises(Exception, match="N=7"):
        weighted_reverse_kl(*student[:2], *teacher[2:4], student[4])
