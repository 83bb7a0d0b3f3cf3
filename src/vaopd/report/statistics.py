"""Statistics of the report: distribution of visual advantage, in nats, and of weights."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

Number = int | float
"""int too, because JSON writes 0 for 0.0 and the tests' type check does not take int for float."""

SHARES = (0.5, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""Per cent of tokens at which the concentration curve is read."""

MENTION_SHARE = 0.1


def concentration(advantages: Iterable[Number]) -> list[float]:
    """Return the share of all advantage in the top ``SHARES`` of tokens, in [0, 1].

    Fig. 2a of the paper. A share that ends inside a token counts a part of it, so that few
    tokens give no steps. Without any advantage the list is empty.
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
    """Return the position of the first high-group token with real advantage, in [0, 1).

    0 is the first token. A token counts if it has ``MENTION_SHARE`` of the response's largest
    advantage: the group always has a fifth of the tokens, most of them with almost none.
    None if no high token has advantage, because then ties fill the group.
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
    """Return the number of values in each bin [edge, next edge); the last bin is closed."""
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
    """Return the mean advantage of a rollout in nats, as in ``va/mean``."""
    values = row.get("visual_advantage")
    return fmean(values) if values else None
