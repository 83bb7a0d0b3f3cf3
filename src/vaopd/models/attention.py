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
from torch.nn.attention.bias import causal_lower_right
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

HALF = (torch.bfloat16, torch.float16)

PACKED = "vaopd_packed"
"""Name of this attention in transformers' registry; rows that are not packed use ``sdpa``."""

Kernel = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True, eq=False)
class SiblingSpan:
    """Consecutive siblings whose attention is computed together."""

    lengths: tuple[int, ...]
    """Tokens of each sibling; their sum is S."""

    mask: Bool[Tensor, "1 1 S _"] | None = None
    """The keys of prompt and span that each query sees: (1, 1, S, P+S). None if a kernel needs no
    mask: the keys that one sibling sees are causal to the lower right corner."""

    @property
    def size(self) -> int:
        """S."""
        return sum(self.lengths)


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The parts of one row: its prompt, spans of siblings, and padding at the end."""

    prompt: int
    spans: tuple[SiblingSpan, ...]
    padding: int

    @property
    def sizes(self) -> list[int]:
        """Numbers of columns of the prompt, of each span, and of the padding."""
        return [self.prompt, *(span.size for span in self.spans), self.padding]

    def on(self, device: torch.device) -> "PackedRow":
        """Return the row with the spans and masks that the kernels of a device need, made there.

        On a GPU each sibling is a span: flash attention then needs no mask, computes no pair of two
        siblings, and reads fewer key-value heads than query heads. With a mask, torch takes a
        kernel that copies keys and values for every query head.
        """
        if device.type == "cuda":
            lengths = (length for span in self.spans for length in span.lengths)
            return replace(self, spans=tuple(SiblingSpan((length,)) for length in lengths))
        masked = (
            replace(span, mask=_span_mask(self.prompt, span.lengths, device)) for span in self.spans
        )
        return replace(self, spans=tuple(masked))


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of a batch; ``to`` prepares them for a device, like a tensor's."""

    rows: tuple[PackedRow, ...]

    def to(self, device: torch.device) -> "PackedRows":
        """Return the rows for a model on this device, with their masks made there."""
        return PackedRows(tuple(row.on(device) for row in self.rows))


def pack_row(prompt: int, responses: Sequence[int], columns: int) -> PackedRow:
    """Return the layout of a row with the given lengths of prompt and siblings.

    Args:
        prompt: Tokens of the prompt.
        responses: Tokens of each sibling, in the order of the row.
        columns: Number of columns of the padded row.
    """
    spans = tuple(SiblingSpan(tuple(lengths)) for lengths in _spans(prompt, responses))
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


def _span_mask(
    prompt: int, lengths: Sequence[int], device: torch.device
) -> Bool[Tensor, "1 1 S _"]:
    triangles = (torch.ones(n, n, dtype=torch.bool, device=device).tril() for n in lengths)
    own = torch.block_diag(*triangles)
    return torch.cat([own.new_ones(len(own), prompt), own], 1)[None, None]


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
        packed_rows: The layout, after ``to``; None for prefills, decoding and rows of one response.
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
    attend: functools.partial[tuple[Tensor, None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedRow,
) -> Float[Tensor, "1 L A D"]:
    queries, keys, values = (t[None].split(row.sizes, dim=2) for t in (query, key, value))
    parts = [attend(queries[0], keys[0], values[0], None)[0]]
    for number, span in enumerate(row.spans, start=1):
        seen_keys, seen_values = (torch.cat([t[0], t[number]], dim=2) for t in (keys, values))
        parts.append(_attend_span(attend, queries[number], seen_keys, seen_values, span))
    padding = parts[0].new_zeros(1, row.padding, *parts[0].shape[2:])
    return torch.cat([*parts, padding], dim=1)


def _attend_span(
    attend: functools.partial[tuple[Tensor, None]],
    query: Float[Tensor, "1 A S D"],
    key: Tensor,
    value: Tensor,
    span: SiblingSpan,
) -> Float[Tensor, "1 S A D"]:
    if span.mask is not None:
        return attend(query, key, value, span.mask)[0]
    if query.dtype not in HALF:  # no kernel without a mask takes float32
        mask = _span_mask(key.shape[2] - span.size, span.lengths, query.device)
        return attend(query, key, value, mask)[0]
    options = attend.keywords
    return lower_right_attention(
        query, key, value, options.get("scaling"), options.get("dropout", 0.0)
    )


def lower_right_attention(
    query: Float[Tensor, "1 A S D"],
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "1 S A D"]:
    """Return the attention of one sibling over prompt and itself, without a mask.

    Query i of S sees the keys 0 to P + i. Flash attention computes this with fewer key-value heads
    than query heads; with a mask, torch takes a slower kernel and copies keys and values for every
    query head.

    Args:
        query: Shape (1, A, S, D).
        key: Shape (1, key-value heads, P+S, D).
        value: Same shape as ``key``.
        scale: Factor of the scores; None is 1 / sqrt(D).
        dropout: Share of the weights that are dropped.
    """
    sees = causal_lower_right(query.shape[2], key.shape[2])
    output = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=sees,  # pyright: ignore[reportArgumentType]  # a mask without a tensor
        dropout_p=dropout,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


def choose_kernels() -> None:
    """Choose torch's attention kernels for this process; called when a model is loaded.

    cuDNN's kernel makes a new plan for every shape, and in decoding each token is a new shape:
    others report 23 to 37 ms a token on H100.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


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
