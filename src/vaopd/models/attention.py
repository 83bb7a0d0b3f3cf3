"""Computes the attention of packed rows without most query-key pairs that the mask excludes.

One mask over a row ``[prompt | r1 | .. | rK]`` would compute (P + K R)^2 pairs, but only
P^2 / 2 + K (P R + R^2 / 2) are needed. So the attention of the prompt is computed separately, by a
causal kernel without a mask. The attention of the siblings is computed in spans about as long as
the prompt. The prompt's keys are copied once per span and not once per sibling, and pairs between
siblings of different spans are not computed.

B rows, L columns, P tokens of a prompt, S of a span, A query heads, D head width.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

PACKED = "vaopd_packed"
"""Name of this attention in transformers' registry; rows that are not packed use ``sdpa``."""

Kernel = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The parts of one row: its prompt, spans of siblings, and padding at the end."""

    prompt: int
    spans: tuple[Bool[Tensor, "1 1 _ _"], ...]
    """For each span, the keys of prompt and span that its S queries may see: (1, 1, S, P+S)."""

    padding: int

    @property
    def sizes(self) -> list[int]:
        """Numbers of columns of the prompt, of each span, and of the padding."""
        return [self.prompt, *(mask.shape[2] for mask in self.spans), self.padding]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of a batch; ``to`` moves them between devices like a tensor."""

    rows: tuple[PackedRow, ...]

    def to(self, device: torch.device) -> "PackedRows":
        """Return the same rows with their masks on another device."""
        return PackedRows(
            tuple(
                replace(row, spans=tuple(span.to(device) for span in row.spans))
                for row in self.rows
            )
        )


def pack_row(prompt: int, responses: Sequence[int], columns: int) -> PackedRow:
    """Return the layout of a row with the given lengths of prompt and siblings.

    Args:
        prompt: Tokens of the prompt.
        responses: Tokens of each sibling, in the order of the row.
        columns: Number of columns of the padded row.
    """
    spans = tuple(_span_mask(prompt, lengths) for lengths in _spans(prompt, responses))
    return PackedRow(prompt, spans, columns - prompt - sum(responses))


def _spans(prompt: int, responses: Sequence[int]) -> Iterator[list[int]]:
    """Yield spans of consecutive siblings that are together about as long as the prompt.

    Shorter spans would copy more keys of the prompt than they add; longer spans would compute more
    pairs between siblings than with the prompt.
    """
    span: list[int] = []
    for length in filter(None, responses):
        if span and sum(span) + length > prompt:
            yield span
            span = []
        span.append(length)
    if span:
        yield span


def _span_mask(prompt: int, lengths: Sequence[int]) -> Bool[Tensor, "1 1 S _"]:
    own = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril() for n in lengths))
    return torch.cat([torch.ones(len(own), prompt, dtype=torch.bool), own], 1)[None, None]


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B A L D"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    kernel: Kernel = sdpa_attention_forward,
    **options: Any,
) -> tuple[Float[Tensor, "B L A D"], None]:
    """Return the attention output of each token over the tokens that it may see.

    Args:
        module: The attention layer; its numbers of heads are used.
        query: Shape (B, A, L, D).
        key: Shape (B, key-value heads, L, D).
        value: Same shape as ``key``.
        attention_mask: Used if rows are not packed.
        packed_rows: The layout; None for prefills, decoding and rows of one response.
        kernel: Computes the attention within one part, with the signature of transformers.
        options: Scale and dropout, see ``transformers``.
    """
    if packed_rows is None:
        return kernel(module, query, key, value, attention_mask, **options)
    # `unbind` and `split` separate the rows, because their backward joins gradients without zeros.
    rows = zip(query.unbind(), key.unbind(), value.unbind(), packed_rows.rows, strict=True)
    attend = functools.partial(kernel, module, **options)
    return torch.cat([_attend_row(attend, *row) for row in rows]), None


def _attend_row(
    attend: Kernel, query: Tensor, key: Tensor, value: Tensor, row: PackedRow
) -> Float[Tensor, "1 L A D"]:
    queries, keys, values = (t[None].split(row.sizes, dim=2) for t in (query, key, value))
    parts = [attend(queries[0], keys[0], values[0], None)[0]]
    for number, mask in enumerate(row.spans, start=1):
        seen = (torch.cat([t[0], t[number]], dim=2) for t in (keys, values))
        parts.append(attend(queries[number], *seen, mask)[0])
    padding = parts[0].new_zeros(1, row.padding, *parts[0].shape[2:])
    return torch.cat([*parts, padding], dim=1)


def use_packed_attention(model: Any) -> bool:
    """Make a model's language part use ``packed_attention``; return whether it does.

    This is possible only if the model uses ``sdpa``, which computes rows that are not packed, and
    if every layer sees all earlier tokens. In a layer with a state or a window, one sibling would
    change the results of another.
    """
    config = model.config.get_text_config()
    if {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        return False
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
        config._attn_implementation = PACKED
    return config._attn_implementation == PACKED
