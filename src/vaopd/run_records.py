"""Reads what a run folder says of its run, also of earlier versions; without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vaopd.errors import RunFolderError
from vaopd.records import read_json, read_rows

SCHEMA = 2
"""Version of the files of a run folder, in ``environment.json``.

1: no ``schema`` there, and no section ``tracking`` in ``config.yaml``. 2: both.
"""


@dataclass(frozen=True)
class RunRecord:
    """One line about a run."""

    folder: str
    method: str
    student: str
    teacher: str
    step: int
    """The last step in ``metrics.jsonl``; 0 before the first one."""

    planned: int | None
    """``training.max_steps``; None where the recipe counts epochs."""

    is_finished: bool
    accuracy: float | None
    """Share of right answers in the last validation; None without one."""

    accuracy_before: float | None
    schema: int

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run; other tools also write a ``config.yaml``."""
    return all((folder / name).is_file() for name in ("config.yaml", "environment.json"))


def schema_of(folder: Path) -> int:
    """Return the version of the files of a run folder; 1 if none is written there.

    Raises:
        RunFolderError: A later vaopd wrote the folder.
    """
    path = folder / "environment.json"
    schema = read_json(path).get("schema", 1) if path.is_file() else 1
    if not isinstance(schema, int) or schema > SCHEMA:
        raise RunFolderError(
            f"{folder} has schema {schema!r} in {path.name}, but this vaopd reads runs up to "
            f"{SCHEMA}; use the vaopd that wrote it, or a later one"
        )
    return schema


def read_run(folder: Path) -> RunRecord:
    """Return what the files of a run folder say of its run.

    Raises:
        RunFolderError: A later vaopd wrote the folder, or a file is damaged.
    """
    schema = schema_of(folder)
    # Not by the schema of recipes: an earlier version had other keys.
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{folder / 'config.yaml'} is not YAML ({reason}); mend it") from None
    accuracies = [row.get("accuracy") for row in _rows(folder / "validation.jsonl")]
    return RunRecord(
        folder=str(folder),
        method=str(_value(recipe, "method", "name") or ""),
        student=str(_value(recipe, "student", "model") or ""),
        teacher=str(_value(recipe, "teacher", "model") or ""),
        step=max((row.get("step", 0) for row in _rows(folder / "metrics.jsonl")), default=0),
        planned=_value(recipe, "training", "max_steps"),
        is_finished=(folder / "summary.json").is_file(),
        accuracy=accuracies[-1] if accuracies else None,
        accuracy_before=accuracies[0] if accuracies else None,
        schema=schema,
    )


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the run folders in or below some folders, in alphabetical order, each once."""
    found = {file.parent for folder in folders for file in folder.rglob("config.yaml")}
    return sorted(folder for folder in found if is_run(folder))


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.is_file() else []


def _value(recipe: Any, section: str, key: str) -> Any:
    values = recipe.get(section) if isinstance(recipe, dict) else None
    return values.get(key) if isinstance(values, dict) else None
