"""``vaopd score``: the visual advantage of any text, from any trainer, JSONL in and JSONL out."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from vaopd.config import RunConfig
from vaopd.config.methods import high_fraction
from vaopd.errors import ProblemError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.weights import high_group
from vaopd.pictures import save_picture
from vaopd.problems.problem import Problem
from vaopd.problems.reading import ReadingRules, problem_of_row, reading_rules
from vaopd.problems.rows import Row, jsonl_rows
from vaopd.problems.sources import all_problems
from vaopd.teacher.local import LocalTeacher

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ScoredRequest:
    """One row to score: its problem, its token ids, and its columns."""

    problem: Problem
    response_ids: tuple[int, ...]
    cells: dict[str, Any]


def score_file(
    rollouts: Path,
    output: Path,
    teacher: LocalTeacher,
    config: RunConfig,
    *,
    problems: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write each row with its tokens, both log-probs and visual advantage; return their number.

    A row has a ``response`` (text, scored without any change) or ``token_ids``, and either its
    problem's own columns (``problem`` and ``images``, or ``question`` and ``image``) or a
    ``problem_id`` of ``problems``. If a problem has ``teacher_images``, they are scored in place of
    its images. Images of both views are saved in ``OUTPUT-STEM_images/`` and
    named in the columns ``original_images`` and ``degraded_images``; a row's ``images`` stay.
    The output gets its name only when it is complete.

    Raises:
        ProblemError: A row has no response or no problem; names the row.
    """
    rules = reading_rules(config.data)
    by_id = {p.id: p for p in all_problems(problems, rules=rules)} if problems else {}
    partial = output.with_name(f".{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    pictures = output.with_name(f"{output.stem}_images")
    had_pictures = pictures.exists()
    encoder = PromptEncoder(teacher.model, config.data, config.view)
    total = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            requests = _requests(rollouts, by_id, teacher.model, rules)
            while rows := list(islice(requests, ROWS_AT_ONCE)):
                share = high_fraction(config.method)
                for scored in _score(rows, teacher, encoder, pictures, share):
                    file.write(json.dumps(scored, ensure_ascii=False) + "\n")
                total += len(rows)
                progress(len(rows))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
        if not output.exists() and not had_pictures:
            shutil.rmtree(pictures, ignore_errors=True)
    return total


def _requests(
    path: Path, by_id: dict[str, Problem], model: VisionLanguageModel, rules: ReadingRules
) -> Iterator[ScoredRequest]:
    for number, row in zip(count(1), jsonl_rows(path), strict=False):
        cells = dict(row.cells)
        problem = by_id.get(str(cells.get("problem_id")))
        if problem is None and by_id:
            raise ProblemError(
                f"{row.place}: problem_id {cells.get('problem_id')!r} is not among the problems of "
                "--problems; name the source that the rollouts were drawn from"
            )
        if problem is None:
            complete = Row(row.place, {"answer": None, **cells}, row.folder)
            problem = problem_of_row(complete, f"{path.stem}:{number}", str(path), "", rules)
        if problem.is_text_only:
            raise ProblemError(
                f"{row.place}: problem {problem.id} has no image, so its response has no visual "
                "advantage; leave the row out"
            )
        yield ScoredRequest(problem, _response_ids(row, model), cells)


def _response_ids(row: Row, model: VisionLanguageModel) -> tuple[int, ...]:
    ids, text = row.cells.get("token_ids"), row.cells.get("response")
    if isinstance(ids, list) and ids and all(type(i) is int for i in ids):
        if max(ids) >= model.vocab_size or min(ids) < 0:
            raise ProblemError(
                f"{row.place}: token_ids go up to {max(ids)}, but the teacher has ids below "
                f"{model.vocab_size}; score with a teacher of the same tokenizer, or drop token_ids"
            )
        return tuple(ids)
    if isinstance(text, str) and text:
        return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    raise ProblemError(
        f"{row.place} has neither a response text nor token_ids; add one of the two columns"
    )


def _score(
    rows: Sequence[ScoredRequest],
    teacher: LocalTeacher,
    encoder: PromptEncoder,
    pictures: Path,
    share: float,
) -> Iterator[dict[str, Any]]:
    # Rows of one problem share its prompt, wherever they are in the file.
    # Ids cannot be the key, because a trainer may repeat them with other images.
    groups: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        seen = row.problem.for_teacher()
        groups.setdefault((seen.prompt, seen.images), []).append(index)
    first = [rows[members[0]].problem.for_teacher() for members in groups.values()]
    views = [encoder.both(problem) for problem in first]
    saved = {
        index: _saved(problem, encoder, pictures)
        for problem, members in zip(first, groups.values(), strict=True)
        for index in members
    }
    responses = [
        [torch.tensor(rows[index].response_ids) for index in members] for members in groups.values()
    ]
    scores = teacher.score([o for o, _ in views], [d for _, d in views], responses)
    assert scores.degraded_logprobs is not None
    order = {index: n for n, index in enumerate(i for members in groups.values() for i in members)}
    for index, row in enumerate(rows):
        original = scores.original_logprobs[order[index]].cpu()
        degraded = scores.degraded_logprobs[order[index]].cpu()
        mask = torch.ones(1, len(original), dtype=torch.bool)
        advantage = visual_advantage(original[None], degraded[None], mask)
        high = high_group(advantage, mask, high_fraction=share)
        yield {
            **row.cells,
            **saved[index],
            "token_ids": list(row.response_ids),
            "tokens": [teacher.model.tokenizer.decode([i]) for i in row.response_ids],
            "original_logprobs": _rounded(original),
            "degraded_logprobs": _rounded(degraded),
            "visual_advantage": _rounded(advantage[0]),
            "is_high": high[0].tolist(),
            "rollout_advantage": round(advantage.mean().item(), 6),
        }


def _saved(problem: Problem, encoder: PromptEncoder, folder: Path) -> dict[str, list[str]]:
    views = {
        "original_images": encoder.original_images(problem),
        "degraded_images": encoder.degraded_images(problem),
    }
    return {
        column: [f"{folder.name}/{save_picture(image, folder)}" for image in images]
        for column, images in views.items()
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
