"""The patch embedding as a matrix product, which equals its convolution and is sound on a GPU."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


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
