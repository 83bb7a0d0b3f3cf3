import pytest
import torch
from torch import nn

from vaopd.models import loading, patches
from vaopd.models.model import VisionLanguageModel
from vaopd.models.patches import (
    FEW_ROWS,
    Bfloat16Linear,
    PatchConv3d,
    use_float32_products,
    use_patch_products,
)


@pytest.fixture
def slow_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this CPU count as one without quick products of bfloat16."""
    monkeypatch.setattr(patches, "has_bfloat16_products", lambda: False)


def test_the_product_of_one_patch_worked_by_hand() -> None:
    layer = nn.Sequential(nn.Conv3d(1, 2, (1, 1, 2), stride=(1, 1, 2)))
    use_patch_products(layer)
    (conv,) = layer
    assert isinstance(conv, PatchConv3d)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view_as(conv.weight))
        conv.bias.copy_(torch.tensor([0.5, -1.0]))  # pyright: ignore[reportOptionalMemberAccess]
    patch = torch.tensor([10.0, 100.0]).view(1, 1, 1, 1, 2)
    # 10 * 1 + 100 * 2 + 0.5 and 10 * 3 + 100 * 4 - 1.
    assert conv.as_product(patch).flatten().tolist() == [210.5, 429.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_product_and_its_gradients_are_those_of_the_convolution(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), dtype=dtype)
    patches = torch.randn(5, 3, 2, 4, 4, dtype=dtype)
    results = []
    for compute in (plain, None):
        if compute is None:
            use_patch_products(holder := nn.Sequential(plain))
            compute = holder[0].as_product
        x = patches.clone().requires_grad_()
        output = compute(x)
        inputs = (x, plain.weight, plain.bias)
        results.append([output, *torch.autograd.grad((output * output).sum(), inputs)])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(
            found,
            wanted,
            rtol=2e-2 if dtype.itemsize == 2 else 1e-12,
            atol=0.05 if dtype.itemsize == 2 else 1e-12,
        )


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"stride": 3, "padding": 1}, {"stride": 3, "dilation": 2}],
    ids=["overlaps", "padding", "dilation"],
)
def test_a_convolution_that_is_not_one_product_for_each_patch_stays(options: dict) -> None:
    layer = nn.Sequential(nn.Conv3d(1, 1, 3, **options))
    use_patch_products(layer)
    assert type(layer[0]) is nn.Conv3d


def test_the_patch_embedding_of_a_loaded_model_keeps_its_name(qwen: VisionLanguageModel) -> None:
    names = [n for n, m in qwen.model.named_modules() if isinstance(m, PatchConv3d)]
    assert names == ["model.visual.patch_embed.proj"]
    assert "model.visual.patch_embed.proj.weight" in qwen.model.state_dict()


def test_a_product_of_bfloat16_is_rounded_once_worked_by_hand(slow_bfloat16: None) -> None:
    layer = nn.Sequential(nn.Linear(3, 1, dtype=torch.bfloat16))
    use_float32_products(layer)
    (product,) = layer
    assert isinstance(product, Bfloat16Linear)
    with torch.no_grad():
        product.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
        product.bias.fill_(-256.0)  # pyright: ignore[reportOptionalMemberAccess]
    # 256 + 1 + 1 - 256: a sum in bfloat16 would lose each 1 beside 256.
    rows = torch.tensor([[256.0, 1.0, 1.0]], dtype=torch.bfloat16).expand(FEW_ROWS, 3)
    assert product(rows).flatten().tolist() == [2.0] * FEW_ROWS


@pytest.mark.parametrize("shape", [(FEW_ROWS, 40), (2, 9, 40), (3, 40), (40,)])
def test_products_in_float32_and_their_gradients_are_those_of_float64_but_for_one_rounding(
    slow_bfloat16: None, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(40, 24, dtype=torch.bfloat16))
    exact = nn.Linear(40, 24, dtype=torch.float64)
    exact.load_state_dict(layer[0].state_dict())
    use_float32_products(layer)
    results = []
    for compute, dtype in ((layer[0], torch.bfloat16), (exact, torch.float64)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
        x.requires_grad_()
        output = compute(x)
        scale = torch.linspace(-1, 1, 24).bfloat16().to(dtype)
        found = torch.autograd.grad((output * scale).sum(), (x, compute.weight, compute.bias))
        results.append([output, *found])
    for found, wanted in zip(*results, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=0.02)


def test_frozen_weights_get_no_gradient_and_no_second_copy_until_the_gradient_of_the_input(
    slow_bfloat16: None,
) -> None:
    layer = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16))
    use_float32_products(layer.requires_grad_(False))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(FEW_ROWS, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    output.sum().backward()
    assert x.grad is not None and layer[0].weight.grad is None


@pytest.mark.parametrize(
    ("dtype", "is_quick"), [("bfloat16", False), ("bfloat16", True), ("float32", False)]
)
def test_a_cpu_without_products_of_bfloat16_computes_them_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: str, is_quick: bool
) -> None:
    monkeypatch.setattr(patches, "has_bfloat16_products", lambda: is_quick)
    precision = getattr(torch, dtype)
    model = loading.load_model(
        "tiny:new-student", device=torch.device("cpu"), dtype=precision, compute_dtype=precision
    )
    layers = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
    expected = Bfloat16Linear if dtype == "bfloat16" and not is_quick else nn.Linear
    assert layers and {type(layer) for layer in layers} == {expected}
    assert "lm_head.weight" in model.model.state_dict()
