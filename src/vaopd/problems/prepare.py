"""Writes a source of problems as one parquet file with a manifest."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError
from vaopd.problems.checks import check_teacher_images
from vaopd.problems.duplicates import NearDuplicate
from vaopd.problems.problem import Problem
from vaopd.records import new_folder, write_json

ROWS_OF_A_GROUP = 100
"""Rows that a reader takes from the file together: images are large."""

COLUMNS = ("id", "problem", "images", "answer", "kind", "references")
TEACHER_IMAGES = "teacher_images"
"""Column that is written if a problem has such images."""


def prepare(
    problems: Sequence[Problem],
    source: str,
    output: Path,
    duplicates: Sequence[NearDuplicate] = (),
    progress: Callable[[int], None] = lambda problems: None,
) -> dict[str, Any]:
    """Write ``SPLIT.parquet`` and ``manifest.json`` into a new folder; return the manifest.

    Images are copied as they are encoded. ``vaopd`` and ``datasets`` read the folder.

    Raises:
        ConfigError: The folder exists.
        ProblemError: An image cannot be read.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; name a folder that does not, or remove it")
    extra = (TEACHER_IMAGES,) if any(one.teacher_images for one in problems) else ()
    columns = (*COLUMNS, *extra)
    with new_folder(output) as folder:
        file = folder / f"{problems[0].split or 'train'}.parquet"
        _write(file, problems, columns, progress)
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        manifest = {
            "source": source,
            "file": file.name,
            "rows": len(problems),
            "images": sum(len(one.images) for one in problems),
            "columns": list(columns),
            "sha256": digest,
            "near_duplicates": [one._asdict() for one in duplicates],
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _write(
    file: Path,
    problems: Sequence[Problem],
    columns: Sequence[str],
    progress: Callable[[int], None],
) -> None:
    # Imported here, because it takes one and a half seconds and other commands do not need it.
    import datasets
    import pyarrow
    import pyarrow.parquet

    text = datasets.Value("string")
    images = datasets.List(datasets.Image())
    lists = {"images": images, TEACHER_IMAGES: images, "references": datasets.List(text)}
    # The schema holds the features, so that `datasets` shows the images.
    schema = datasets.Features({name: lists.get(name, text) for name in columns}).arrow_schema
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(problems), ROWS_OF_A_GROUP):
            cells = [_cells(one) for one in problems[start : start + ROWS_OF_A_GROUP]]
            writer.write_table(pyarrow.Table.from_pylist(cells, schema=schema))
            progress(len(cells))


def _cells(problem: Problem) -> dict[str, Any]:
    # The others were decoded to find near-duplicates.
    check_teacher_images(problem)
    return {
        "id": problem.id,
        "problem": problem.prompt,
        "images": _images(problem),
        TEACHER_IMAGES: _images(problem.for_teacher()) if problem.teacher_images else [],
        "answer": problem.answer,
        "kind": problem.kind,
        "references": list(problem.references),
    }


def _images(problem: Problem) -> list[dict[str, Any]]:
    return [
        {"bytes": one, "path": None}
        if isinstance(one, bytes)
        else {"bytes": one.read_bytes(), "path": one.name}
        for one in problem.stored_images()
    ]
