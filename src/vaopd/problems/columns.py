"""Columns of rows: the layouts that are read, and the names that a recipe maps.

Three layouts of rows are read; their columns decide which one it is:

- geometry3k: ``images`` (list), ``problem``, ``answer``; optional ``id``, ``kind`` (or
  ``category``), ``references``;
- ViRL39K: ``question``, ``answer``, ``image`` (list of paths); optional ``qid``, ``category``;
- conversations: ``messages``, ``conversations`` or ``prompt``, see `conversations`.

All of them may have ``teacher_images``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vaopd.config.columns import OWN_NAMES
from vaopd.errors import ConfigError, ProblemError
from vaopd.problems.bad_rows import shown
from vaopd.problems.conversations import columns_of, listed, with_placeholders
from vaopd.problems.problem import IMAGE_PLACEHOLDER

NAMED_COLUMNS = 20
"""Number of columns that an error names."""


@dataclass(frozen=True)
class Layout:
    """Names of the columns of one layout."""

    question: str
    images: str
    id: str

    @property
    def required(self) -> frozenset[str]:
        """The columns that identify this layout."""
        return frozenset({self.question, self.images, "answer"})

    @property
    def readable(self) -> frozenset[str]:
        """All columns that are read; others are ignored."""
        rest = {self.id, "kind", "category", "references", *OWN_NAMES["teacher_images"]}
        return self.required | rest


GEOMETRY3K = Layout(question="problem", images="images", id="id")
VIRL39K = Layout(question="question", images="image", id="qid")

TURNS = ("messages", "conversations", "prompt")


def layout_of(columns: Collection[str]) -> Layout:
    """Return the layout that has these columns.

    Raises:
        ProblemError: The columns fit no layout, or both.
    """
    fitting = [layout for layout in (GEOMETRY3K, VIRL39K) if layout.required <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    raise ProblemError(
        f"the columns are {_listed_names(columns)}; rename them to images, problem, answer "
        "(geometry3k), to question, answer, image (ViRL39K), or to messages and images, or name "
        "them in data.columns; see docs/own_data.md"
    )


def with_images(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of a layout with an empty list if it has no images and no place for any."""
    fitting = [one for one in (GEOMETRY3K, VIRL39K) if one.required - {one.images} <= cells.keys()]
    if not fitting or any(cells.get(one.images) is not None for one in fitting):
        return cells
    # Its images may be in a column of another name.
    if IMAGE_PLACEHOLDER in str(cells[fitting[0].question]):
        return cells
    return {**cells, fitting[0].images: []}


def is_conversation(columns: Collection[str]) -> bool:
    """Return whether a row is a conversation, and has the columns of no other layout."""
    has_turns = not set(TURNS).isdisjoint(columns)
    return has_turns and not any(one.required <= set(columns) for one in (GEOMETRY3K, VIRL39K))


def readable_columns(names: Collection[str], columns: Mapping[str, str], place: str) -> list[str]:
    """Return the columns of a file that its rows need, without others, which may be large.

    Args:
        names: All columns of the file.
        columns: Names that a recipe maps, by our fields.
        place: The file, for errors.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: The columns fit no layout, and none is mapped.
    """
    check_columns(names, columns, place)
    known = {name for own in OWN_NAMES.values() for name in own} | {"prompt", "completion"}
    if columns:
        wanted = known.union(columns.values())
    else:
        wanted = known if is_conversation(names) else layout_of(names).readable
    return [name for name in names if name in wanted]


def check_columns(names: Collection[str], columns: Mapping[str, str], place: str) -> None:
    """Check that the columns that a recipe maps exist.

    Raises:
        ConfigError: One does not; names those that exist, and the nearest.
    """
    for field, column in columns.items():
        if column not in names:
            near = get_close_matches(column, names, n=1, cutoff=0.0)
            hint = f"; did you mean {field}: {shown(near[0])}?" if near else ""
            raise ConfigError(
                f"data.columns maps {field} to the column {shown(column)}, which {place} does not "
                f"have; its columns are {_listed_names(names)}{hint}"
            )


def check_header(names: Collection[str], columns: Mapping[str, str], place: str) -> None:
    """Check that a file whose rows all have the same columns has a question and an image.

    Raises:
        ConfigError: A mapped column does not exist.
        ProblemError: No column holds the question or the image.
    """
    check_columns(names, columns, place)
    needed = {"question": {*OWN_NAMES["question"], *TURNS}, "image": {*OWN_NAMES["image"]}}
    if "messages" in columns:
        del needed["question"]
    for field, own in needed.items():
        if field not in columns and own.isdisjoint(names):
            raise ProblemError(
                f"{place} has no column for the {field}; its columns are {_listed_names(names)}; "
                f"rename one to {field}, or name it in data.columns"
            )


def mapped_columns(cells: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row as the columns of geometry3k, by mapped names and else by ours.

    A single image or reference is a list of one, also as a text of CSV; a question that is a list
    is a conversation. Images belong before a question that has no placeholders.

    Raises:
        ProblemError: There is no question, or a conversation has turns that are not read.
    """
    found = {field: _cell(cells, field, columns) for field in OWN_NAMES}
    images, references = _several(found["image"]), _several(found["references"])
    rest = {name: found[name] for name in ("id", "kind", "answer")}
    rest["teacher_images"] = _several(found["teacher_images"])
    question, turns = found["question"], found["messages"]
    if isinstance(question, list):
        question, turns = None, question
    if question is None and (turns is not None or cells.get("prompt") is not None):
        spoken = {name: cells.get(name) for name in ("prompt", "completion")}
        beside = {"images": images or None, "references": references}
        return columns_of({**rest, **spoken, **beside, "messages": turns})
    if question is None:
        raise ProblemError(f"{columns.get('question', 'question')} is empty; write the question")
    if isinstance(question, str):
        question = with_placeholders(question, len(images))
    return {**rest, "problem": question, "images": images, "references": references}


def _cell(cells: Mapping[str, Any], field: str, columns: Mapping[str, str]) -> Any:
    names = (columns[field],) if field in columns else OWN_NAMES[field]
    return next((cells[name] for name in names if cells.get(name) is not None), None)


def _several(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        return listed(cell) or [cell]
    return [] if cell is None else list(cell) if isinstance(cell, list | tuple) else [cell]


def _listed_names(columns: Collection[str]) -> str:
    names = [shown(name) for name in sorted(columns)]
    more = f" and {len(names) - NAMED_COLUMNS} more" if len(names) > NAMED_COLUMNS else ""
    return f"{', '.join(names[:NAMED_COLUMNS]) or 'none'}{more}"
