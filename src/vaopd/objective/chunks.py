"""How a walk over tokens is cut, so that no tokens-by-vocabulary tensor is ever whole.

C tokens of a chunk, c of a part of it, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.errors import ConfigError

CHUNK_BYTES = 192 * 2**20
"""What all chunk-by-vocabulary buffers together may take when no chunk size is given.

About 150 tokens at 151,936 ids: each chunk reads the heads and adds to the whole gradient of the
student's, so fewer are faster, and this is a sixth of that gradient, which has to be held anyway.
"""

ACCELERATOR_CHUNK_BYTES = 512 * 2**20
"""The same where products are so much faster that more tokens must share the reading of a head.

Counted and not measured: in bfloat16 at 500 TFLOP/s and 4.8 TB/s, 84 tokens compute as long as the
gradient of a head of 151,936 x 2,048 is read and written.
"""

SCRATCH_SHARE = 8
"""Rows of a chunk for each row of scratch. What is done token by token needs no more, and the
memory it leaves holds more tokens of a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """How a walk cuts its work."""

    vocabulary: int
    chunk: int
    dtype: torch.dtype

    @property
    def scratch_rows(self) -> int:
        """Tokens that are worked on at a time between two matrix products."""
        return math.ceil(self.chunk / SCRATCH_SHARE)

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """Yield the slices of tokens, in order."""
        for start in range(0, num_tokens, self.chunk):
            yield slice(start, min(start + self.chunk, num_tokens))

    def buffer(self, like: Tensor) -> Float[Tensor, "C V"]:
        """Return room for the logits of one chunk of ``like``, uninitialised."""
        size = (min(self.chunk, len(like)), self.vocabulary)
        return torch.empty(size, dtype=self.dtype, device=like.device)

    def scratch(self, like: Tensor) -> Float[Tensor, "c V"]:
        """Return room for what is made of the logits of a few tokens, uninitialised."""
        size = (min(self.scratch_rows, len(like)), self.vocabulary)
        return torch.empty(size, dtype=self.dtype, device=like.device)


def plan_chunks(
    vocabulary: int, chunk_size: int | None, *tensors: Tensor, num_buffers: int
) -> ChunkPlan:
    """Return how to cut the work so that the buffers fit what they may take, or as asked.

    Args:
        vocabulary: Ids that are normalised over.
        chunk_size: Tokens of a chunk; None for as many as fit.
        tensors: Inputs of the walk; where they are and how precise decides.
        num_buffers: Whole chunks of logits that are held at a time.

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
    """Return the tokens of a chunk whose buffers, scratch included, fit what they may take.

    Args:
        vocabulary: Ids that are normalised over.
        device: Where the buffers are.
        dtype: Of the buffers.
        num_buffers: Whole chunks of logits that are held; two for a divergence.
    """
    is_cpu = device.type == "cpu"
    allowed = CHUNK_BYTES if is_cpu else ACCELERATOR_CHUNK_BYTES
    rows = num_buffers + 1 / SCRATCH_SHARE
    return max(1, int(allowed / (rows * vocabulary * dtype.itemsize)))
