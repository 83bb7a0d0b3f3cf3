"""Rows that cannot be used: their reasons, and one error that lists them."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaopd.errors import ProblemError

NAMED = 10
"""Number of bad rows that an error or a log names; the others are counted."""

SHOWN = 80
"""Characters of a cell that an error shows."""


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used."""

    reason: str
    """One sentence that names the row or its problem."""

    id: str | None = None
    """Id of the problem; None if the row gives no problem."""


def bad_rows_error(source: str, bad: Sequence[BadRow], total: int, remedy: str) -> ProblemError:
    """Return the error about the bad rows of a source: one row, or the first ten and their number.

    Args:
        source: Name of the source, as the user wrote it.
        bad: The bad rows; at least one.
        total: Number of all rows of the source.
        remedy: Another remedy than correcting the rows, as in ``use X to leave them out``; or ''.
    """
    if len(bad) == 1:
        return ProblemError(f"{bad[0].reason}{f' ({remedy})' if remedy else ''}")
    advice = f"correct them, or {remedy}" if remedy else "correct them"
    return ProblemError(
        f"{len(bad)} of {total} rows of {source} cannot be used; {advice}:\n{listed(bad)}"
    )


def listed(bad: Sequence[BadRow]) -> str:
    """Return the first ten reasons, each on a line, and the number of the others."""
    lines = [f"  {row.reason}" for row in bad[:NAMED]]
    if len(bad) > NAMED:
        lines.append(f"  and {len(bad) - NAMED} more")
    return "\n".join(lines)


def shown(text: str) -> str:
    """Return the beginning of a text as an error shows it, without characters that control."""
    begin = text if len(text) <= SHOWN else f"{text[:SHOWN]}.. ({len(text)} characters)"
    return begin if begin.isprintable() else ascii(begin)[1:-1]
