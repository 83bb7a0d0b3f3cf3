"""Layers that compute the same as those of transformers, in a form that fits the device."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear

FEW_ROWS = 16
"""Below this many rows it takes longer to convert the weights than to use them as they are."""


class PatchConv3d(nn.Conv3d):
    """A convolution that sees each patch once, computed on a GPU as a matrix product.

    The input of such a layer is one patch (N, C, T, H, W) of exactly the size of its kernel, so the
    sum of the convolution is that of ``patch.flatten() @ weight.flatten().T``. Others report that
    cuDNN 9.20 computes Conv3d in bfloat16 slowly or wrongly.
    """

    def forward(self, input: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N D 1 1 1"]:
        """Return the embedding of each patch."""
        if input.is_cuda and input.shape[2:] == self.kernel_size:
            return self.as_product(input)
        return super().forward(input)

    def as_product(self, input: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N D 1 1 1"]:
        """Return the same by a matrix product."""
        embedded = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return embedded[:, :, None, None, None]


def use_patch_products(model: nn.Module) -> None:
    """Make the patch embeddings of a model ``PatchConv3d``; weights and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.kernel_size == module.stride:
            one = (1, 1, 1)
            if (module.groups, module.dilation, module.padding) == (1, one, (0, 0, 0)):
                module.__class__ = PatchConv3d


class Float32Product(torch.autograd.Function):
    """``input @ weight.T + bias`` of bfloat16 tensors, with factors converted to float32.

    The converted weights are freed at once and made again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        input: Float[Tensor, "*rows D"],
        weight: Float[Tensor, "O D"],
        bias: Float[Tensor, "O"] | None,
    ) -> Float[Tensor, "*rows O"]:
        """Return the product, rounded once, in the precision of the weights."""
        ctx.save_for_backward(input, weight)
        wide_bias = None if bias is None else bias.float()
        return linear(input.float(), weight.float(), wide_bias).to(weight.dtype)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of input, weight and bias."""
        input, weight = ctx.saved_tensors
        wide = gradients[0].float()
        rows = wide.flatten(0, -2)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            (wide @ weight.float()).to(input.dtype) if needs_input else None,
            (rows.T @ input.float().flatten(0, -2)).to(weight.dtype) if needs_weight else None,
            rows.sum(0).to(weight.dtype) if needs_bias else None,
        )


class Bfloat16Linear(nn.Linear):
    """A linear layer whose weights are bfloat16 and whose products are float32, on a CPU."""

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows O"]:
        """Return the product."""
        if input.dim() < 2 or input.shape[:-1].numel() < FEW_ROWS:
            return super().forward(input)
        return Float32Product.apply(input, self.weight, self.bias)


def has_bfloat16_products() -> bool:
    """Return whether this CPU computes products of bfloat16 at the speed of float32 or better."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_float32_products(model: nn.Module) -> None:
    """Make bfloat16 linear layers ``Bfloat16Linear`` on a CPU that lacks quick products of theirs.

    Weights and their names stay.
    """
    if has_bfloat16_products():
        return
    for module in model.modules():
        weight = module.weight if type(module) is nn.Linear else None
        if weight is not None and weight.is_cpu and weight.dtype == torch.bfloat16:
            module.__class__ = Bfloat16Linear
