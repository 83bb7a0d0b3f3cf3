import pytest
import torch
from torch import nn

from vaopd.models.model import VisionLanguageModel
from vaopd.models.patches import PatchConv3d, use_patch_products


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
