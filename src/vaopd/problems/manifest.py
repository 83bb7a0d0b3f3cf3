"""The manifest of a run: ids and hashes of its training and held-out problems."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError
from vaopd.problems.drawn import DrawnProblems
from vaopd.problems.problem import Problem
from vaopd.records import read_json

MANIFEST = "manifest.json"
NAMED = 3
"""Number of ids that an error names."""


def manifest(
    train: Sequence[Problem], held_out: Sequence[Problem] | None, *, allow_overlap: bool = False
) -> dict[str, Any]:
    """Return the manifest of a run's data after checking that no problem is in both parts.

    Held-out problems are listed one by one, with a hash of question and images. Training problems
    are counted and get one hash of all texts, because a set may have a hundred thousand images.

    Raises:
        ConfigError: A held-out problem is also a training problem, by id or by content.
        ProblemError: An image file cannot be read.
    """
    listed = [_listed(one) for one in held_out or ()]
    if not allow_overlap:
        _check_disjoint(train, held_out or (), {row["id"]: row["sha256"] for row in listed})
    texts = num_text_only(train)
    return {
        "train": {"problems": len(train), "sha256": digest(train)}
        | ({"text_only": texts} if texts else {}),
        "validation": listed if held_out is not None else None,
    }


def num_text_only(problems: Sequence[Problem]) -> int:
    """Return the number of problems without an image; drawn ones all have one."""
    if isinstance(problems, DrawnProblems):
        return 0
    return sum(one.is_text_only for one in problems)


def _listed(problem: Problem) -> dict[str, str]:
    """Return what the manifest says of a held-out problem."""
    found = {"id": problem.id, "sha256": problem.content_hash()}
    if problem.teacher_images:
        found["teacher_sha256"] = problem.for_teacher().content_hash()
    return found


def check_unchanged(folder: Path, now: dict[str, Any]) -> None:
    """Check that a resumed run has the same problems as at its beginning.

    Raises:
        ConfigError: Training or held-out problems differ from the manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    then = read_json(path)
    advice = "resume with the data as it was, or begin another run"
    if then["train"] != now["train"]:
        counts = [one["train"]["problems"] for one in (then, now)]
        raise ConfigError(
            f"data.train has changed since {folder} began ({counts[0]} problems then, {counts[1]} "
            f"now, with other ids or texts); {advice}"
        )
    old, new = ({r["id"]: r for r in m["validation"] or ()} for m in (then, now))
    changed = [id for id in old | new if old.get(id) != new.get(id)]
    if changed:
        raise ConfigError(
            f"data.validation has changed since {folder} began: {len(changed)} problems came, went "
            f"or have other content, the first: {_first(changed)}; {advice}"
        )


def _check_disjoint(
    train: Sequence[Problem], held_out: Sequence[Problem], hashes: dict[str, str]
) -> None:
    by_id = _common_ids(train, [one.id for one in held_out])
    same = _contents_among(train, held_out)
    by_content = [one.id for one in held_out if hashes[one.id] in same]
    found = list(dict.fromkeys([*by_id, *by_content]))
    if found:
        raise ConfigError(
            f"{len(found)} of {len(held_out)} problems of data.validation are in data.train as "
            f"well ({len(by_id)} by id, {len(by_content)} by question and image), the first: "
            f"{_first(found)}; name sources that share nothing, or set data.allow_overlap=true"
        )


def _common_ids(train: Sequence[Problem], ids: Sequence[str]) -> list[str]:
    if isinstance(train, DrawnProblems):
        return [id for id in ids if train.has_id(id)]
    known = {one.id for one in train}
    return [id for id in ids if id in known]


def _contents_among(train: Sequence[Problem], held_out: Sequence[Problem]) -> set[str]:
    """Return the content hashes of the training problems that may equal a held-out one.

    Equal content has an equal question, so only those images are read. Problems that are drawn
    on demand are not drawn: the split is part of the key of every stream.
    """
    if isinstance(train, DrawnProblems):
        return set()
    prompts = {one.prompt for one in held_out}
    return {one.content_hash() for one in train if one.prompt in prompts}


def digest(problems: Sequence[Problem]) -> str:
    """Return a hash of the ids and texts of problems, or of how they are drawn.

    Images are not read; the number of images for the teacher counts.
    """
    sha = hashlib.sha256()
    if isinstance(problems, DrawnProblems):
        sha.update(repr(problems).encode())
        return sha.hexdigest()
    for one in problems:
        row: list[Any] = [one.id, one.prompt, one.answer, one.references]
        # Added only where there are some, so that other data keep the hash of earlier versions.
        row += [len(one.teacher_images)] if one.teacher_images else []
        sha.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return sha.hexdigest()


def _first(ids: Sequence[str]) -> str:
    more = ", .." if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
