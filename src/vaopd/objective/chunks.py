"""Divides a walk over tokens into chunks, so that no tokens-by-vocabulary tensor is allocated.

C tokens of a chunk, c tokens of a part of a chunk, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.errors import ConfigError

CHUNK_BYTES = 192 * 2**20
"""Bytes that all chunk-by-vocabulary buffers together may use if no chunk size is given.

This is about 150 tokens at 151,936 ids. Each chunk reads the heads and updates the whole gradient
of the student's head, so fewer chunks are faster. The buffers use a sixth of the bytes of that
gradient, which is in memory in any case.
"""

ACCELERATOR_CHUNK_BYTES = 512 * 2**20
"""The same limit for devices with much faster products, where larger chunks are needed.

This is calculated, not measured: in bfloat16 at 500 TFLOP/s and 4.8 TB/s, the products of 84 tokens
take as long as reading and writing the gradient of a head of 151,936 x 2,048.
"""

SCRATCH_SHARE = 8
"""Number of rows of a chunk per row of scratch. Work that is done token by token needs only a small
scratch, and the saved memory is used for larger chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """The sizes of the chunks and buffers of a walk."""

    vocabulary: int
    chunk: int
    dtype: torch.dtype

    @property
    def scratch_rows(self) -> int:
        """Number of tokens that are processed together between two matrix products."""
        return math.ceil(self.chunk / SCRATCH_SHARE)

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """Yield the slices of tokens, in order."""
        for start in range(0, num_tokens, self.chunk):
            yield slice(start, min(start + self.chunk, num_tokens))

    def buffer(self, like: Tensor) -> Float[Tensor, "C V"]:
        """Return an uninitialised buffer for the logits of one chunk of ``like``."""
        size = (min(self.chunk, len(like)), self.vocabulary)
        return torch.empty(size, dtype=self.dtype, device=like.device)

    def scratch(self, like: Tensor) -> Float[Tensor, "c V"]:
        """Return an uninitialised buffer for values computed from the logits of a few tokens."""
        size = (min(self.scratch_rows, len(like)), self.vocabulary)
        return torch.empty(size, dtype=self.dtype, device=like.device)


def plan_chunks(
    vocabulary: int, chunk_size: int | None, *tensors: Tensor, num_buffers: int
) -> ChunkPlan:
    """Return a plan with the given chunk size, or with the largest one within the memory limit.

    Args:
        vocabulary: Number of ids that are normalised over.
        chunk_size: Tokens of a chunk; None means as many as the memory limit allows.
        tensors: Inputs of the walk; their device and dtype determine the plan.
        num_buffers: Number of whole chunks of logits that are held at the same time.

    Raises:
        ConfigError: ``chunk_size`` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(
            f"chunk_size is {chunk_size}, expected at least 1 token; leave it out to fit "
            f"the buffers into {CHUNK_BYTES // 2**20} MiB"
        )
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if is_double else torch.float32
    fitting = fitting_tokens(vocabulary, tensors[0].device, dtype, num_buffers=num_buffers)
    return ChunkPlan(vocabulary=vocabulary, chunk=chunk_size or fitting, dtype=dtype)


def fitting_tokens(
    vocabulary: int, device: torch.device, dtype: torch.dtype, *, num_buffers: int = 2
) -> int:
    """Return the largest number of tokens of a chunk whose buffers and scratch fit the limit.

    Args:
        vocabulary: Number of ids that are normalised over.
        device: Device of the buffers.
        dtype: Precision of the buffers.
        num_buffers: Number of whole chunks of logits that are held; two for a divergence.
    """
    is_cpu = device.type == "cpu"
    allowed = CHUNK_BYTES if is_cpu else ACCELERATOR_CHUNK_BYTES
    rows = num_buffers + 1 / SCRATCH_SHARE
    return max(1, int(allowed / (rows * vocabulary * dtype.itemsize)))
