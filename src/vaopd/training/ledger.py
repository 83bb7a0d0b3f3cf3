"""Checksums of the records of a run: damage that leaves them readable is found on resuming."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vaopd.errors import RunFolderError
from vaopd.records import append_row, as_line, read_rows

LEDGER = "checksums.jsonl"
"""One line for each row of numbers and for each file of responses: step, file, SHA-256."""


def note_row(output: Path, name: str, row: dict[str, Any]) -> None:
    """Note the checksum of a row that was added to a file of the run folder."""
    _note(output, name, row["step"], as_line(row).encode())


def note_file(output: Path, path: Path, step: int) -> None:
    """Note the checksum of a file that was written whole."""
    _note(output, str(path.relative_to(output)), step, path.read_bytes())


def check_records(output: Path, step: int) -> None:
    """Check the records up to a step; those of later steps are written again.

    Runs of earlier versions have no checksums of their records.

    Raises:
        RunFolderError: A record is missing or not as it was written.
    """
    path = output / LEDGER
    entries = read_rows(path) if path.is_file() else []
    rows: dict[str, dict[Any, bytes]] = {}
    for number, entry in enumerate(entries, start=1):
        name, entry_step, digest = (entry.get(key) for key in ("file", "step", "sha256"))
        if not isinstance(name, str) or not isinstance(entry_step, int):
            raise RunFolderError(f"{path} line {number} names no file and step; {_remedy(path)}")
        if entry_step > step:
            continue
        file = output / name
        if not file.is_file():
            raise RunFolderError(f"{file} is missing; {_remedy(path)}")
        if "/" in name:
            content = file.read_bytes()
        else:
            if name not in rows:
                rows[name] = _by_step(file.read_bytes().splitlines(keepends=True))
            content = rows[name].get(entry_step, b"")
        if _digest(content) != digest:
            raise RunFolderError(
                f"{file} is not as it was written: the checksum of step {entry_step} differs; "
                f"{_remedy(path)}"
            )


def _remedy(path: Path) -> str:
    return f"restore it from a copy, or remove {path} to go on with the records as they are"


def _by_step(lines: Iterable[bytes]) -> dict[Any, bytes]:
    """Return the lines of a file by the step that each one names."""
    found: dict[Any, bytes] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found[row["step"]] = line
    return found


def _note(output: Path, name: str, step: int, content: bytes) -> None:
    append_row(output / LEDGER, {"step": step, "file": name, "sha256": _digest(content)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
