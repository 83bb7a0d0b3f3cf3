"""Cells of benchmark rows, which differ in name and form between hub, repository and TSV."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import ImageSource, StoredImage
from vaopd.grading.naming import LETTERS


def text(row: Mapping[str, Any], *columns: str) -> str:
    """Return the first filled cell of these columns as text; '' if all are empty."""
    for column in columns:
        value = row.get(column)
        if value is not None and str(value) != "":
            return str(value)
    return ""


def required(row: Mapping[str, Any], *columns: str) -> str:
    """Return the first filled cell of these columns as text.

    Raises:
        ProblemError: All of them are empty.
    """
    if found := text(row, *columns):
        return found
    raise ProblemError(f"{' or '.join(columns)} is missing or empty; download the row again")


def sequence(value: Any) -> list[str]:
    """Return a list cell as texts; the hub and TSVs store some lists as Python source text.

    Raises:
        ProblemError: The text does not read as a list.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ProblemError(f"{value!r:.60} does not read as a Python list") from None
    if not isinstance(value, list | tuple):
        raise ProblemError(f"{value!r:.60} is of type {type(value).__name__}, expected a list")
    return [str(one) for one in value]


def options(row: Mapping[str, Any], column: str = "options") -> dict[str, str]:
    """Return options by letter, from a list column or from columns ``A``, ``B``, ...

    Raises:
        ProblemError: The list does not read, or has more options than letters.
    """
    listed = sequence(row.get(column))
    if listed:
        if len(listed) > len(LETTERS):
            raise ProblemError(f"{len(listed)} options are more than there are letters")
        return {LETTERS[index]: option for index, option in enumerate(listed)}
    return {k: str(row[k]) for k in LETTERS if row.get(k) not in (None, "")}


def answer_letter(row: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Return the reference letter.

    Raises:
        ProblemError: It is not one of the options.
    """
    letter = required(row, "answer").strip().upper()
    if letter not in choices:
        raise ProblemError(f"the answer {letter!r} is none of the options {', '.join(choices)}")
    return letter


def images(row: Mapping[str, Any], *columns: str) -> tuple[ImageSource, ...]:
    """Return the images of the first filled column; an empty tuple if all are empty."""
    for column in columns:
        value = row.get(column)
        cells = value if isinstance(value, list) else [value]
        found = tuple(cell for cell in cells if isinstance(cell, bytes | Path | StoredImage))
        if found:
            return found
    return ()
