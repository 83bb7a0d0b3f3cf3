"""Problems of rows: which cells become question, images and answer, and which rows are bad."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from vaopd.config import DataConfig
from vaopd.config.columns import OWN_NAMES
from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.bad_rows import BadRow, shown
from vaopd.problems.boxed import outer_boxes
from vaopd.problems.columns import is_conversation, layout_of, mapped_columns, with_images
from vaopd.problems.conversations import columns_of
from vaopd.problems.images import ImageRules, image_rules
from vaopd.problems.problem import Problem
from vaopd.problems.rows import Row
from vaopd.problems.tables import table_rows

INSIDE = ImageRules()
"""Images in the folder of the data."""


@dataclass(frozen=True)
class ReadingRules:
    """How the rows of a source become problems."""

    images: ImageRules = INSIDE
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of their columns, by our fields; a field that is not named has its own names."""

    system_prompt: str = ""
    prompt_suffix: str = ""

    def asked(self, problem: Problem) -> Problem:
        """Return a problem with the system prompt, and with the suffix on a line of its own.

        Raises:
            ProblemError: It has no image, and that is not allowed.
        """
        if problem.is_text_only and not self.images.allow_text_only:
            raise ProblemError(
                f"problem {problem.id} has no image, and visual advantage needs one; leave "
                "text-only problems out of the data, or set data.allow_text_only=true"
            )
        if self.system_prompt:
            problem = replace(problem, system_prompt=self.system_prompt)
        if self.prompt_suffix:
            problem = replace(problem, prompt=f"{problem.prompt}\n{self.prompt_suffix}")
        return problem


def reading_rules(data: DataConfig) -> ReadingRules:
    """Return the rules that a recipe sets."""
    return ReadingRules(
        images=image_rules(data),
        columns=data.columns or {},
        system_prompt=data.system_prompt or "",
        prompt_suffix=data.prompt_suffix or "",
    )


def asked_line(data: DataConfig) -> str:
    """Return a line about what a recipe adds to every question; '' for nothing."""
    added = []
    if data.system_prompt:
        added.append(f"the system prompt {shown(data.system_prompt)!r} before it")
    if data.prompt_suffix:
        added.append(f"{shown(data.prompt_suffix)!r} after it")
    return f"every question has {' and '.join(added)}" if added else ""


def placed_problems(
    rows: Iterator[Row | ProblemError],
    source: str,
    split: str,
    rules: ReadingRules,
    prefix: str | None = None,
) -> Iterator[tuple[str, Problem | BadRow]]:
    """Yield the place of each row with its problem, or with the error.

    Args:
        rows: Rows of a source.
        source: Name of the data set.
        split: Of the data set.
        rules: How rows are read.
        prefix: Beginning of the made ids of problems without one; SOURCE:SPLIT unless given.
    """
    prefix = prefix or f"{source}:{split}"
    places: dict[str, str] = {}
    for index, row in enumerate(rows):
        if isinstance(row, ProblemError):
            yield "", BadRow(str(row))
            continue
        try:
            problem = problem_of_row(row, f"{prefix}:{index}", source, split, rules)
        except ProblemError as error:
            yield row.place, BadRow(str(error))
            continue
        if problem.id in places:
            yield (
                row.place,
                BadRow(
                    f"{row.place} has the id {problem.id} of {places[problem.id]}; "
                    "give every problem an id of its own, or drop the id column"
                ),
            )
            continue
        places[problem.id] = row.place
        yield row.place, problem


def given_problems(
    source: Any, limit: int | None, rules: ReadingRules
) -> tuple[Sequence[Problem], list[BadRow]]:
    """Return the problems of a source that is an object of Python, and its bad rows.

    Raises:
        ConfigError: It is neither a ``datasets.Dataset`` nor a sequence of ``Problem``.
        ProblemError: It is empty.
    """
    # Imported here: it loads fonts and a table of shapes, which other sources do not need.
    from vaopd.problems.drawn import DrawnProblems

    if isinstance(source, DrawnProblems):
        texts = {"system_prompt": rules.system_prompt, "prompt_suffix": rules.prompt_suffix}
        drawn = replace(source, **{name: text for name, text in texts.items() if text})
        return drawn if limit is None else drawn[:limit], []
    if isinstance(source, Sequence):
        placed = _checked(source[:limit], rules)
    else:
        # The table says so if it is not a datasets.Dataset.
        split = str(getattr(source, "split", None) or "train")
        rows = islice(table_rows(source, "the data set", rules.columns), limit)
        placed = placed_problems(rows, "dataset", split, rules)
    found = [one for _, one in placed]
    if not found:
        raise ProblemError("the data set has no rows; give at least one problem")
    problems = [one for one in found if isinstance(one, Problem)]
    return problems, [one for one in found if isinstance(one, BadRow)]


def _checked(
    problems: Sequence[Any], rules: ReadingRules
) -> Iterator[tuple[str, Problem | BadRow]]:
    known: set[str] = set()
    for number, one in enumerate(problems, start=1):
        if not isinstance(one, Problem):
            raise ConfigError(
                f"element {number} of the problems is a {type(one).__name__}; give objects of "
                "vaopd.Problem, or datasets.Dataset.from_list(rows)"
            )
        if one.id in known:
            yield "", BadRow(f"problem {number} has the id {one.id} of an earlier one")
        else:
            known.add(one.id)
            try:
                yield "", rules.asked(one)
            except ProblemError as error:
                yield "", BadRow(str(error), one.id)


def problem_of_row(
    row: Row, fallback_id: str, source: str, split: str, rules: ReadingRules
) -> Problem:
    """Return the problem of one row in any layout.

    Raises:
        ProblemError: The row fits no layout or its cells do not make a problem; names the row.
    """
    cells = row.cells
    try:
        if row.is_flat or rules.columns:
            cells = mapped_columns(cells, rules.columns)
        elif is_conversation(cells):
            cells = columns_of(cells)
        cells = with_images(cells)
        layout = layout_of(cells)
        kind = "kind" if cells.get("kind") is not None else "category"
        place = (row.folder, row.inside)
        teacher = next((n for n in OWN_NAMES["teacher_images"] if cells.get(n) is not None), None)
        problem = Problem(
            id=_text(cells, layout.id) or fallback_id,
            prompt=_text(cells, layout.question),
            images=rules.images.read(cells[layout.images], layout.images, *place),
            answer=_bare_answer(_text(cells, "answer")),
            source=source,
            split=split,
            references=_references(cells.get("references")),
            kind=_text(cells, kind),
            max_stored_pixels=rules.images.max_stored_pixels,
            teacher_images=rules.images.read(cells[teacher], teacher, *place) if teacher else (),
        )
        return rules.asked(problem)
    except ProblemError as error:
        raise ProblemError(f"{row.place}: {error}") from None


def _text(cells: Mapping[str, Any], column: str) -> str:
    """Return a cell as text, '' if it is absent; ids and answers may be numbers."""
    value = cells.get(column)
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ProblemError(f"{column} is of type {type(value).__name__}; write it as text")


def _references(cell: Any) -> tuple[str, ...]:
    if cell is None:
        return ()
    if isinstance(cell, list) and all(isinstance(text, str) for text in cell):
        return tuple(cell)
    raise ProblemError("references is not a list of texts; write [] if there are none")


def _bare_answer(answer: str) -> str | None:
    r"""Return the answer without a ``\boxed{..}`` around all of it; ``None`` if it is empty.

    An answer with text outside its box, or without a balanced box, does not change.
    """
    answer = answer.strip()
    for box in outer_boxes(answer)[:1]:
        if box.start == 0 and box.end == len(answer):
            return _bare_answer(answer[box.content_start : box.content_end])
    return answer or None
