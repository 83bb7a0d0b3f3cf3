import pytest
import torch

from benchmarks import precision
from vaopd.devices import choose_tf32
from vaopd.objective.divergence import weighted_reverse_kl


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (1 + 2**-10, 1 + 2**-10),
        (1 + 2**-12, 1.0),
        (1 + 3 * 2**-12, 1 + 2**-10),
        (-1 - 3 * 2**-12, -1 - 2**-10),
    ],
)
def test_tf32_has_ten_bits_after_the_point_worked_by_hand(value: float, expected: float):
    assert precision.to_tf32(torch.tensor([value], dtype=torch.float64)).item() == expected


def test_the_plain_loss_and_its_gradients_are_those_of_the_product(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(precision, "WIDTH", 24)
    monkeypatch.setattr(precision, "VOCABULARY", 96)
    hidden, head, teacher, weights = precision.random_inputs()
    found = precision.loss_and_gradients(hidden, head, teacher, weights, lambda tensor: tensor)
    leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    # A teacher whose states are its log-probs and whose head is the identity has these logits.
    identity = torch.eye(96, dtype=torch.float64)
    loss, _ = weighted_reverse_kl(*leaves, teacher, identity, weights)
    loss.backward()
    for mine, theirs in zip(found, [loss, *(leaf.grad for leaf in leaves)], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_setting_is_that_of_torch_for_products_on_a_gpu():
    settings = []
    for is_wanted in (True, False):
        choose_tf32(is_wanted)
        settings.append(torch.backends.cuda.matmul.fp32_precision)
    assert settings == ["tf32", "ieee"]
