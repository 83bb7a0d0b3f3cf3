"""Conversations as TRL, ms-swift and LLaVA files keep them: question, images, answers."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaopd.errors import ProblemError
from vaopd.problems.boxed import outer_boxes
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

    unread: str = ""
    """The turns that are not part of the question, in words; '' if there are none."""


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """Return question, answers and images of ``messages``, or of ``prompt`` and ``completion``.

    Turns have ``role`` and ``content``, or ``from`` and ``value``; content is a text or a list of
    parts. Where a row has none of this, everything is empty.

    Raises:
        ProblemError: A turn or a part of one is not an object.
    """
    turns = _mappings(listed(row.get("messages") or row.get("conversations")), "turn")
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
    return Conversation(
        "".join(pieces), [one for one in answers if one.strip()], images, _unread(turns)
    )


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation as the columns ``problem``, ``images``, ``answer``, ``references``.

    The answer is the cell ``answer`` or ``solution``, or what is boxed in the last response. Images
    that stand beside the turns belong before the question if it has no placeholders.

    Raises:
        ProblemError: There is no question, or there are turns that training does not read.
    """
    found = conversation_of(row)
    if not found.question.strip():
        raise ProblemError(
            "the row has no question; give it messages with a user's turn, or a prompt"
        )
    if found.unread:
        raise ProblemError(
            f"the row has {found.unread}, which training does not read; leave a single question, "
            "with what the model has to know in its text"
        )
    beside = next((row[name] for name in ("images", "image") if row.get(name) is not None), [])
    images = found.images or (list(beside) if isinstance(beside, list | tuple) else [beside])
    question = with_placeholders(found.question, len(images))
    answer = next((row[name] for name in ("answer", "solution") if row.get(name) is not None), None)
    boxes = outer_boxes(found.answers[0]) if found.answers and answer is None else []
    if boxes:
        answer = found.answers[0][boxes[-1].content_start : boxes[-1].content_end]
    return {
        **row,
        "problem": question,
        "images": images,
        "answer": answer,
        "references": row.get("references") or found.answers,
    }


def with_placeholders(question: str, num_images: int) -> str:
    """Return a question with a placeholder for each image before it, unless it has some."""
    return question if IMAGE_PLACEHOLDER in question else IMAGE_PLACEHOLDER * num_images + question


def _unread(turns: list[Mapping[str, Any]]) -> str:
    """Return in words which turns are neither the last question nor its answer."""
    roles = [_role(turn) for turn in turns]
    others = [role for role in dict.fromkeys(roles) if role not in ("user", "assistant")]
    if others:
        return f"a turn of the role {others[0]}"
    earlier = roles.count("user") - 1
    return f"{earlier} earlier questions" if earlier > 1 else "an earlier question" * (earlier == 1)


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
    return _mappings(listed(cell), "turn")


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role") or turn.get("from") or "")
    return {"human": "user", "gpt": "assistant"}.get(role, role)


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return _mappings([] if content is None else content, "part of a turn")


def _mappings(cells: Any, name: str) -> list[Mapping[str, Any]]:
    if isinstance(cells, list | tuple) and all(isinstance(one, Mapping) for one in cells):
        return list(cells)
    wrong = cells if not isinstance(cells, list | tuple) else cells[0]
    raise ProblemError(
        f"a {name} is of type {type(wrong).__name__}; write objects with role and content, whose "
        "content is a text or a list of parts with type and text"
    )
