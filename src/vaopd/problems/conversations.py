"""Conversations as TRL, ms-swift and LLaVA files keep them: question, images, answers."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaopd.problems.problem import IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class Conversation:
    """The last question of a conversation, and what was answered."""

    question: str
    """With a placeholder for each image part."""

    answers: list[str]
    """The last response, as it was written; empty if there is none."""

    images: list[Any]
    """Cells of the image parts that hold an image."""


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """Return question, answers and images of ``messages``, or of ``prompt`` and ``completion``.

    Turns have ``role`` and ``content``, or ``from`` and ``value``; content is a text or a list of
    parts. Where a row has none of this, everything is empty.
    """
    turns = listed(row.get("messages") or row.get("conversations"))
    prompt, completion = row.get("prompt"), row.get("completion")
    if not turns and prompt is not None:
        turns = _turns(prompt, "user") + _turns(completion, "assistant")
    asked = [turn for turn in turns if _role(turn) == "user"][-1:]
    said = [turn for turn in turns if _role(turn) == "assistant"][-1:]
    pieces: list[str] = []
    images: list[Any] = []
    for turn in asked:
        for part in _parts(turn):
            found = part.get("image") or part.get("image_url") or part.get("url")
            images += [] if found is None else [found]
            is_image = part.get("type") in ("image", "image_url")
            pieces.append(IMAGE_PLACEHOLDER if is_image else str(part.get("text") or ""))
    answers = ["".join(str(p.get("text") or "") for p in _parts(turn)) for turn in said]
    return Conversation("".join(pieces), [one for one in answers if one.strip()], images)


def listed(cell: Any) -> list[Any]:
    """Return a list cell; in CSV and TSV it is the text of a JSON or Python list."""
    if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
        for read in (json.loads, ast.literal_eval):
            try:
                cell = read(cell)
                break
            except (ValueError, SyntaxError):
                continue
    return list(cell) if isinstance(cell, list | tuple) else []


def _turns(cell: Any, role: str) -> list[Mapping[str, Any]]:
    if isinstance(cell, str) and not cell.lstrip().startswith("["):
        return [{"role": role, "content": cell}]
    return listed(cell)


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role") or turn.get("from") or "")
    return {"human": "user", "gpt": "assistant"}.get(role, role)


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content or [] if isinstance(part, Mapping)]
