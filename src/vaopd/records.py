"""Files of a run folder, written completely or not at all; does not import torch."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaopd.errors import RunFolderError

CARD = "README.md"
"""The model card, which users edit, so that it has no checksum."""

CHECKSUMS = "checksums.json"
"""Holds the SHA-256 of the other files of its folder, so that a damaged file is not used."""


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: at any moment it has either its old or its new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        RunFolderError: The file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(
            f"{path} does not exist; name a folder that was written whole"
        ) from None
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); write it again") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is not a JSON object; write it again")
    return value


def as_line(row: dict[str, Any]) -> str:
    """Return a row as the line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file atomically."""
    write_text(path, "".join(map(as_line, rows)))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a JSONL file."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(as_line(row))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to errors that do not name one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file, without a last line that a killed process left incomplete.

    Raises:
        RunFolderError: Another line is not a JSON object.
    """
    rows = []
    # Split as bytes: str.splitlines also splits at U+2028 and its like, which a response may hold,
    # and a kill may leave half a character.
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise RunFolderError(
                f"{path} line {number} is not JSON ({error}); mend or remove that line"
            ) from None
        if not isinstance(row, dict):
            raise RunFolderError(f"{path} line {number} is not a JSON object; write one a line")
        rows.append(row)
    return rows


def keep_rows_up_to(path: Path, step: int) -> None:
    """Drop the rows of later steps, which a resumed run will write again."""
    if path.is_file():
        write_rows(path, [row for row in read_rows(path) if row["step"] <= step])


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name only when all its files are written.

    A killed process leaves no folder of that name; the next call removes its hidden folder. The
    folder and each of its subfolders get a file of checksums, see ``damage``.
    """
    partial = path.with_name(f".{path.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for inner in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
            _write_checksums(inner)
        for file in partial.rglob("*"):
            if file.is_file():
                # Otherwise a power failure could leave a complete folder of empty files.
                with file.open("rb") as written:
                    os.fsync(written.fileno())
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)


def damage(folder: Path) -> str:
    """Return how a folder differs from its checksums, '' if it does not or if it has none.

    Files of subfolders and files that were added later are not looked at.
    """
    if not (folder / CHECKSUMS).is_file():
        return ""
    try:
        written = read_json(folder / CHECKSUMS)
    except RunFolderError:
        return f"{CHECKSUMS} is damaged"
    if missing := [name for name in written if not (folder / name).is_file()]:
        return f"{missing[0]} is missing"
    found = _checksums([folder / name for name in written])
    changed = [name for name, digest in written.items() if found[name] != digest]
    return f"{changed[0]} is not as it was written: its checksum differs" if changed else ""


def _write_checksums(folder: Path) -> None:
    """Write the checksums of a folder that has files and no checksums yet."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CARD)
    # A copy keeps the checksums of what it copies: new ones would agree with a bad copy.
    if files and not (folder / CHECKSUMS).exists():
        # Without a last newline: no part of the file is valid JSON.
        write_text(folder / CHECKSUMS, json.dumps(_checksums(files), indent=2, ensure_ascii=False))


def _checksums(files: list[Path]) -> dict[str, str]:
    # Not in threads: if memory runs out while one starts, Python waits for it for ever.
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
