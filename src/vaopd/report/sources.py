"""Reading of run folders and scored files, as records small enough to keep all in memory."""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vaopd.config import read_recipe
from vaopd.errors import ConfigError, RunFolderError, did_you_mean
from vaopd.records import read_rows
from vaopd.report.statistics import Number, advantage_of
from vaopd.run_records import schema_of

NUMBERS = (
    "original_logprobs",
    "degraded_logprobs",
    "visual_advantage",
    "student_visual_advantage",
    "is_high",
    "kl",
    "token_weight",
)
"""Columns of a rollout row with one entry per token; each may be absent."""

SOURCES = {"rollouts": "training", "validation": "validation"}
"""Folder of rollout files, and its name on the page."""


GIVE = "; give the folder of a run or a file that `vaopd score` wrote"


class GroupKey(NamedTuple):
    """The key that siblings share."""

    source: str
    step: int
    problem_id: str
    view: str
    content: str
    """Prompt and images, because another trainer may repeat ids with other content."""


@dataclass(frozen=True)
class Record:
    """One rollout without its text, for statistics and for choosing rollouts to show."""

    group: GroupKey
    path: Path
    row: int
    length: int
    is_correct: bool | None
    rollout_weight: Number | None
    mean_advantage: Number | None
    advantage: array
    is_high: list[bool]


@dataclass(frozen=True)
class Source:
    """The contents of a run folder or a scored file."""

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Rows of step, name and text."""

    is_finished: bool = True

    @property
    def siblings(self) -> dict[GroupKey, list[Record]]:
        """Records by group, in the order of source, step and file."""
        groups: dict[GroupKey, list[Record]] = {}
        for record in self.records:
            groups.setdefault(record.group, []).append(record)
        return groups


def read_source(path: Path, progress: Callable[[str], None] = lambda text: None) -> Source:
    """Return a run folder or the output of ``vaopd score``, without the texts.

    Raises:
        ConfigError: The path does not exist.
        RunFolderError: It is not a run, nothing was logged yet, or a row is damaged.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist{did_you_mean(path) or GIVE}")
    return _run_folder(path, progress) if path.is_dir() else _scored_file(path, progress)


def _run_folder(path: Path, progress: Callable[[str], None]) -> Source:
    if not (path / "config.yaml").is_file():
        raise RunFolderError(
            f"{path} is not a run folder (no config.yaml); give the folder that `vaopd train` wrote"
        )
    schema_of(path)
    config = read_recipe(path / "config.yaml")
    text = (path / "config.yaml").read_text(encoding="utf-8")
    metrics, validation, warnings = (
        read_rows(path / name) if (path / name).is_file() else []
        for name in ("metrics.jsonl", "validation.jsonl", "warnings.jsonl")
    )
    records: list[Record] = []
    for folder, name in SOURCES.items():
        for file in sorted((path / folder).glob("step_*.jsonl")):
            progress(f"{path.name}/{folder}/{file.name}")
            records += _records(file, name)
    if not (metrics or validation or records):
        raise RunFolderError(
            f"{path} has nothing to show yet (no metrics.jsonl, no rollouts); wait for its first "
            "step, or give --follow"
        )
    return Source(
        name=path.resolve().name,
        path=path,
        config=config,
        config_text=text,
        environment=_json(path / "environment.json"),
        metrics=metrics,
        validation=validation,
        records=records,
        warnings=warnings,
        is_finished=(path / "summary.json").is_file(),
    )


def _scored_file(path: Path, progress: Callable[[str], None]) -> Source:
    progress(path.name)
    records = list(_records(path, "scores"))
    if not records:
        raise RunFolderError(f"{path} has no rows; give a file that `vaopd score` wrote")
    return Source(name=path.stem, path=path, records=records)


def _records(path: Path, source: str) -> Iterator[Record]:
    for number, row in enumerate(read_rows(path)):
        check_row(row, f"{path} row {number + 1}")
        yield Record(
            group=GroupKey(
                source,
                _step(row),
                str(row.get("problem_id", row.get("id", ""))),
                str(row.get("view") or ""),
                json.dumps([prompt_of(row), pictures_of(row)]),
            ),
            path=path,
            row=number,
            length=len(row["tokens"]),
            is_correct=row.get("is_correct"),
            rollout_weight=row.get("rollout_weight"),
            mean_advantage=advantage_of(row),
            advantage=array("f", row.get("visual_advantage") or ()),
            is_high=[bool(value) for value in row.get("is_high") or ()],
        )


def check_row(row: dict[str, Any], place: str) -> None:
    """Check that a row is a rollout with one number per token.

    Raises:
        RunFolderError: Names the row and what is wrong with it.
    """
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise RunFolderError(
            f"{place} has no list of tokens; give the output of `vaopd score` or a run folder"
        )
    for name in NUMBERS:
        values = row.get(name)
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            count = len(values) if isinstance(values, list) else repr(values)
            raise RunFolderError(
                f"{place} has {count} values of {name} for {len(tokens)} tokens; write one for each"
            )
        wrong = [v for v in values or () if not _is_number(v)]
        if wrong:
            raise RunFolderError(
                f"{place} has {wrong[0]!r:.80} among the values of {name}; write one number a token"
            )
    for name in ("rollout_weight", "rollout_advantage"):
        if row.get(name) is not None and not _is_number(row[name]):
            raise RunFolderError(f"{place} has {row[name]!r:.80} as {name}; write a number")
    if not isinstance(row.get("is_correct"), bool | None):
        raise RunFolderError(
            f"{place} has {row['is_correct']!r:.80} as is_correct; write true, false or null"
        )


def _is_number(value: object) -> bool:
    """Return whether a value of JSON is a number that fits a float, or a bool."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)


def prompt_of(row: dict[str, Any]) -> str:
    """Return the question of a row, from any of its possible columns."""
    return str(row.get("prompt") or row.get("problem") or row.get("question") or "")


def pictures_of(row: dict[str, Any]) -> dict[str, list[str]]:
    """Return the paths of the images by view, relative to the row's file.

    The teacher's are there only if they differ from the original ones, which the student saw.
    """
    return {
        "original": _texts(row.get("original_images", row.get("images"))),
        "teacher": _texts(row.get("teacher_images")),
        "degraded": _texts(row.get("degraded_images")),
    }


def _step(row: dict[str, Any]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else 0


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); mend or remove it") from None


def choose(groups: Sequence[list[Record]], max_rollouts: int) -> list[list[Record]]:
    """Return whole sibling groups, spread evenly over the run, up to a number of rollouts.

    Each validation has every held-out problem, so validations get at most a quarter, unless
    there are too few training rollouts.
    """
    validated = [siblings for siblings in groups if siblings[0].group.source == "validation"]
    others = [siblings for siblings in groups if siblings[0].group.source != "validation"]
    if not (validated and others):
        return _spread(groups, max_rollouts)
    chosen = _spread(others, max_rollouts - min(max_rollouts // 4, sum(map(len, validated))))
    room = max_rollouts - sum(map(len, chosen))
    return chosen + (_spread(validated, room) if room else [])


def _spread(groups: Sequence[list[Record]], max_rollouts: int) -> list[list[Record]]:
    """Return groups at even distances; a group is cut only if it is too large alone.

    Weights are relative among siblings, so half a group would mislead.
    """
    total = sum(map(len, groups))
    if total <= max_rollouts:
        return list(groups)
    wanted = max(1, len(groups) * max_rollouts // total)
    last = len(groups) - 1
    picks = [round(n * last / (wanted - 1)) for n in range(wanted)] if wanted > 1 else [0]
    chosen, room = [], max_rollouts
    for pick in picks:
        siblings = groups[pick]
        if len(siblings) <= room:
            chosen.append(siblings)
            room -= len(siblings)
    return chosen or [groups[0][:max_rollouts]]
