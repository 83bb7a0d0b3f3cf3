"""Numbers of the report: where visual advantage lies, in nats, and what weights follow."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

Number = int | float
"""JSON writes 0 for 0.0, and the type checks of the tests hold an int for no float."""

SHARES = (0.5, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""Per cent of tokens at which the concentration curve is read."""

MENTION_SHARE = 0.1


def concentration(advantages: Iterable[Number]) -> list[float]:
    """Return the share of all advantage that the top ``SHARES`` of tokens hold, in [0, 1].

    Fig. 2a of the paper. A share that falls inside a token takes that part of it, so that few
    tokens give no steps. Without any advantage there is nothing to share: an empty list.
    """
    ordered = sorted(advantages, reverse=True)
    total = sum(ordered)
    if total <= 0:
        return []
    sums = [0.0]
    for value in ordered:
        sums.append(sums[-1] + value)
    result = []
    for share in SHARES:
        exact = len(ordered) * share / 100
        whole = min(int(exact), len(ordered))
        part = (exact - whole) * ordered[whole] if whole < len(ordered) else 0.0
        result.append(min(1.0, (sums[whole] + part) / total))
    return result


def first_mention(advantage: Sequence[Number], is_high: Sequence[bool]) -> float | None:
    """Return where the first high-group token that carries sight stands, in [0, 1).

    0 is the first token. To count, a token has ``MENTION_SHARE`` of the response's largest
    advantage: the group always holds a fifth of the tokens, most of them with next to nothing.
    None where no high token has advantage: its group is filled by ties.
    """
    least = MENTION_SHARE * max(advantage, default=0.0)
    for position, (value, high) in enumerate(zip(advantage, is_high, strict=True)):
        if high and value > 0 and value >= least:
            return position / len(advantage)
    return None


def high_positions(is_high: Sequence[bool]) -> list[float]:
    """Return the relative positions of the high group's tokens, in [0, 1)."""
    return [position / len(is_high) for position, high in enumerate(is_high) if high]


def histogram(values: Sequence[Number], edges: Sequence[Number]) -> list[int]:
    """Return how many values lie in each bin [edge, next edge); the last bin is closed."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        if edges[0] <= value <= edges[-1]:
            inside = sum(value >= edge for edge in edges) - 1
            counts[min(inside, len(counts) - 1)] += 1
    return counts


def even_edges(low: Number, high: Number, bins: int) -> list[Number]:
    """Return the edges of equal bins from low to high."""
    if high <= low:
        high = low + 1.0
    return [low + (high - low) * number / bins for number in range(bins + 1)]


def quantile(values: Sequence[Number], share: float) -> Number:
    """Return the value below which a share of the values lies (nearest rank); 0 for none."""
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def advantage_of(row: dict[str, Any]) -> Number | None:
    """Return the mean advantage of a rollout in nats, as ``va/mean`` counts it."""
    values = row.get("visual_advantage")
    return fmean(values) if values else None
