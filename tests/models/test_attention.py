import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vaopd.models.attention import PACKED, PackedRows, pack_row, packed_attention
from vaopd.models.model import VisionLanguageModel


def layer(groups: int) -> nn.Module:
    """Return what attention reads of its module: two query heads for each key head, say."""
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, groups  # pyright: ignore
    return module


ROWS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=1, max_size=5)),
    min_size=1,
    max_size=3,
)
"""Prompt and sibling lengths of each row."""


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def layout(
    rows: list[tuple[int, list[int]]], columns: int, device: torch.device = CPU
) -> PackedRows:
    packed = tuple(pack_row(prompt, siblings, columns) for prompt, siblings in rows)
    return PackedRows(packed).to(device)


def written_out(query: Tensor, key: Tensor, value: Tensor, row: tuple[int, list[int]]) -> Tensor:
    """Return what each token of one row gathers, token by token, from lists of what it may see."""
    prompt, siblings = row
    seen = [list(range(i + 1)) for i in range(prompt)]
    start = prompt
    for length in siblings:
        seen += [[*range(prompt), *range(start, start + i + 1)] for i in range(length)]
        start += length
    outputs = torch.zeros(query.shape[1], query.shape[0], query.shape[2], dtype=query.dtype)
    for token, others in enumerate(seen):
        for head in range(len(query)):
            keys, values = key[head // 2][others], value[head // 2][others]
            scores = keys @ query[head, token] / math.sqrt(query.shape[2])
            outputs[token, head] = scores.softmax(0) @ values
    return outputs


def test_siblings_gather_the_mean_of_the_prompt_and_of_what_they_said_themselves() -> None:
    # Zero queries weigh all that is seen alike. The prompt says 1 and 3, then one sibling says 5
    # and 7, another 8; the last column is padding.
    value = torch.tensor([1.0, 3, 5, 7, 8, 99]).view(1, 1, 6, 1)
    zeros = torch.zeros_like(value)
    rows = layout([(2, [2, 1])], 6)
    output, _ = packed_attention(layer(1), zeros, zeros, value, None, rows)
    assert output.flatten().tolist() == [1, 2, 3, 4, 4, 0]


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, padding=st.integers(0, 3), seed=st.integers(0, 99))
def test_packed_attention_and_its_gradients_are_those_of_the_sums_written_out(
    rows: list[tuple[int, list[int]]], padding: int, seed: int
) -> None:
    columns = max(prompt + sum(siblings) for prompt, siblings in rows) + padding
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(
            len(rows), heads, columns, 4, dtype=torch.float64, generator=generator
        ).requires_grad_()
        for heads in (4, 2, 2)
    )
    towards = torch.randn(len(rows), columns, 4, 4, dtype=torch.float64, generator=generator)

    ours, _ = packed_attention(layer(2), query, key, value, None, layout(rows, columns))
    found = torch.autograd.grad((ours * towards).sum(), (query, key, value))
    plain = torch.stack(
        [
            written_out(q, k, v, row)
            for q, k, v, row in zip(query, key, value, rows, strict=True)
        ]
    )  # fmt: skip
    expected = torch.autograd.grad((plain * towards).sum(), (query, key, value))

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(found, expected)


@given(prompt=st.integers(1, 50), siblings=st.lists(st.integers(0, 60), max_size=9))
def test_spans_copy_few_of_the_prompts_keys_and_compute_few_pairs_between_siblings(
    prompt: int, siblings: list[int]
) -> None:
    row = pack_row(prompt, siblings, prompt + sum(siblings) + 3).on(CPU)
    assert row.sizes == [prompt, *row.sizes[1:-1], 3]
    assert sum(row.sizes) == prompt + sum(siblings) + 3
    lengths = row.sizes[1:-1]
    # Two spans that follow each other are longer than the prompt, or they would be one.
    assert all(sum(pair) > prompt for pair in pairwise(lengths))
    # So the copied keys are at most the prompt's once and twice the siblings' own.
    assert len(lengths) * prompt <= prompt + 2 * sum(siblings)
    # A span that is longer than the prompt has one sibling only.
    assert all(length <= prompt or length in siblings for length in lengths)
    masks = [span.mask for span in row.spans if span.mask is not None]
    assert len(masks) == len(row.spans)
    computed = sum(mask.numel() for mask in masks)
    counted = sum(int(mask.sum()) for mask in masks)
    assert counted == sum(r * prompt + r * (r + 1) // 2 for r in siblings)
    assert computed <= 2 * counted


def test_a_saved_model_does_not_ask_others_for_our_attention(
    qwen: VisionLanguageModel, tmp_path: Path
) -> None:
    assert qwen.model.config.get_text_config()._attn_implementation == PACKED
    qwen.save(tmp_path)
    assert PACKED not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize("siblings", [[], [0, 0]])
def test_a_row_without_any_response_is_a_prompt_and_padding(siblings: list[int]) -> None:
    assert pack_row(3, siblings, 5).sizes == [3, 2]


def test_masks_are_made_on_the_device_of_the_model() -> None:
    (row,) = layout([(2, [2, 1])], 6, torch.device("meta")).rows
    assert [span.mask is not None and span.mask.is_meta for span in row.spans] == [True, True]


def test_siblings_need_no_mask_on_a_gpu() -> None:
    (row,) = layout([(9, [3, 0, 4])], 18, CUDA).rows
    assert [(span.lengths, span.mask) for span in row.spans] == [((3,), None), ((4,), None)]
    assert row.sizes == [9, 3, 4, 2]


@settings(max_examples=25, deadline=None)
@given(
    prompt=st.integers(1, 9),
    siblings=st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(any),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_spans_without_a_mask_gather_what_spans_with_a_mask_gather(
    prompt: int, siblings: list[int], dtype: torch.dtype, seed: int
) -> None:
    columns = prompt + sum(siblings)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, heads, columns, 8, generator=generator).to(dtype) for heads in (4, 2, 2)
    )
    masked = layout([(prompt, siblings)], columns)
    free = layout([(prompt, siblings)], columns, CUDA)
    assert all(span.mask is None for row in free.rows for span in row.spans)
    wanted, found = (
        packed_attention(layer(2), query, key, value, None, rows, scaling=0.25)[0]
        for rows in (masked, free)
    )
    torch.testing.assert_close(found, wanted)


def test_cudnn_does_not_compute_attention_after_a_model_is_loaded(
    qwen: VisionLanguageModel,
) -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()
