"""Packs siblings into one row with their prompt, which is computed once, and rows into forwards.

``micro_batches`` decides which responses share a forward; each micro-batch is one forward of
the unmodified transformers model. The update does not depend on the split, because all weights are
final before the first forward with gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import Batch, EncodedPrompt, Group


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The responses of one forward, and the numbers of their rollouts in the step."""

    batch: Batch
    rollouts: tuple[int, ...]
    """Indices into the step's rollouts, in the order of the batch's tokens; empty for a filler,
    which only enters the collectives of a sharded model."""


def micro_batches(
    model: VisionLanguageModel,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[Int[Tensor, " _"]]],
    *,
    budget_tokens: int,
    share_prefix: bool = True,
    split_siblings: bool = False,
) -> Iterator[MicroBatch]:
    """Yield the forwards that cover every non-empty response once.

    Args:
        model: Decides how groups become rows; families without packing get one row per forward.
        prompts: One prompt for each problem.
        responses: For each problem, the token ids of its siblings. Rollouts are numbered in the
            order of problems: all siblings of problem 0, then all of problem 1, ...
        budget_tokens: Padded tokens of one forward; a larger group gets a separate forward.
        split_siblings: Split siblings that do not fit together into parts, each with the prompt.
        share_prefix: False gives each response its own row with the prompt.
    """
    groups: list[tuple[Group, tuple[int, ...]]] = []
    first = 0
    for prompt, siblings in zip(prompts, responses, strict=True):
        numbered = [(first + k, r) for k, r in enumerate(siblings) if len(r)]
        first += len(siblings)
        if share_prefix and model.family.can_pack and numbered:
            limit = budget_tokens - len(prompt) if split_siblings else None
            for part in _parts(numbered, limit):
                members = tuple(number for number, _ in part)
                groups.append((Group(prompt, tuple(r for _, r in part)), members))
        else:
            groups += [(Group(prompt, (r,)), (number,)) for number, r in numbered]
    chunks = list(_by_budget(groups, budget_tokens if model.family.can_pack else 0))
    if model.sharding is not None:
        # Forwards of a sharded model are collectives. Ranks with fewer micro-batches run fillers,
        # so that the others do not block.
        nothing = Group(model.sharding.filler, (torch.zeros(0, dtype=torch.long),))
        missing = model.sharding.most(len(chunks)) - len(chunks)
        chunks += [[(nothing, ())]] * missing
    for chunk in chunks:
        batch = model.family.collate([group for group, _ in chunk])
        yield MicroBatch(batch, tuple(number for _, members in chunk for number in members))


def separable_problems(
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[Int[Tensor, " _"]]],
    *,
    budget_tokens: int,
    share_prefix: bool,
    can_pack: bool,
) -> list[list[int]]:
    """Return groups of problems that can be scored in separate calls.

    The calls run the same forwards as one call of `micro_batches` with all problems, so shapes and
    bits are the same. Problems without any response token are not in a group.
    """
    kept = [i for i, siblings in enumerate(responses) if any(len(r) for r in siblings)]
    if not can_pack:
        return [[i] for i in kept]
    if not share_prefix:  # each sibling has a row; rows of several problems share a forward
        return [kept] if kept else []
    groups = [(Group(prompts[i], tuple(responses[i])), (i,)) for i in kept]
    return [[i for _, (i,) in chunk] for chunk in _by_budget(groups, budget_tokens)]


def _parts(
    numbered: list[tuple[int, Tensor]], limit: int | None
) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield parts with at most ``limit`` tokens or one sibling; without a limit, all siblings."""
    part: list[tuple[int, Tensor]] = []
    for number, response in numbered:
        if part and limit is not None and sum(len(r) for _, r in part) + len(response) > limit:
            yield part
            part = []
        part.append((number, response))
    yield part


def _by_budget(
    groups: list[tuple[Group, tuple[int, ...]]], budget: int
) -> Iterator[list[tuple[Group, tuple[int, ...]]]]:
    """Yield chunks of groups of similar length whose padded rectangle fits the budget."""
    ordered = sorted(groups, key=lambda item: len(item[0]), reverse=True)
    chunk: list[tuple[Group, tuple[int, ...]]] = []
    for item in ordered:
        # The first row is the longest, so it sets the width.
        if chunk and len(chunk[0][0]) * (len(chunk) + 1) > budget:
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk


def response_hidden_states(model: VisionLanguageModel, batch: Batch) -> Float[Tensor, "N H"]:
    """Return the last hidden states that predict the batch's response tokens."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    with model.autocast():
        hidden = model.base(**inputs, use_cache=False).last_hidden_state
    # All siblings of a row have the prompt's last position. The gradient of `hidden[rows, columns]`
    # adds there in the order in which threads arrive; that of a lookup adds in order of the tokens.
    places = batch.rows * hidden.shape[1] + batch.positions
    return nn.functional.embedding(places.to(model.device), hidden.flatten(0, 1))


def split_by_rollout(
    values: Tensor, micro: MicroBatch, lengths: Sequence[int]
) -> list[tuple[int, Tensor]]:
    """Return pairs of rollout index and values of its tokens; one row of values per token."""
    counts = [lengths[number] for number in micro.rollouts]
    if not counts:
        return []
    return list(zip(micro.rollouts, torch.split(values, counts), strict=True))
