"""Predictions in the layout of VLMEvalKit, for its own scoring: ``MODEL/MODEL_DATASET.tsv``.

Its prediction files hold the rows of its data set without the images, and a column ``prediction``.
Index and columns stand only in its own TSV, so that file is read again.
"""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError, ProblemError
from vaopd.evaluation.benchmark import Benchmark, Item
from vaopd.evaluation.predictions import ITEMS, read_items, read_predictions, sample_runs
from vaopd.evaluation.rows import open_table
from vaopd.evaluation.runner import RESULTS, saved_benchmarks
from vaopd.evaluation.tsv_rows import TsvTable
from vaopd.records import read_json, write_text


@dataclass(frozen=True)
class ExportedFile:
    """One written file; rows that were not evaluated are left out, as VLMEvalKit allows."""

    path: Path
    num_rows: int
    num_left_out: int


def dataset_of(benchmark: Benchmark) -> str | None:
    """Return VLMEvalKit's name of a benchmark, such as ``MMMU_DEV_VAL``; ``None`` without one."""
    return next((Path(name).stem for name in benchmark.files if name.endswith(".tsv")), None)


def export(run: Path, output: Path, name: str, data: Path | None) -> Iterator[ExportedFile | str]:
    """Write one file for each benchmark and sample; yield each, or why a benchmark has none.

    Args:
        run: Output folder of an evaluation.
        output: Folder for the files.
        name: Name of the model in the files; with several samples ``-sample0`` and so on follow.
        data: VLMEvalKit's TSV or their folder; else the file that the evaluation read.

    Raises:
        ConfigError: A TSV is missing, is of other questions, or an output file exists.
        RunFolderError: A sample lacks responses.
    """
    files: dict[Path, tuple[str, int, int]] = {}
    for benchmark, predictions in saved_benchmarks(run, []):
        dataset = dataset_of(benchmark)
        if dataset is None:
            yield f"{benchmark.name} is not a data set of VLMEvalKit and is left out"
            continue
        items = read_items(predictions.with_name(ITEMS))
        runs = sample_runs(read_predictions(predictions), items, benchmark)
        tsv = _tsv(run, benchmark, dataset, data)
        columns, rows, total = _rows(benchmark, tsv)
        _check_same_questions(run, benchmark, items, rows, tsv)
        for sample, responses in enumerate(runs):
            model = name if len(runs) == 1 else f"{name}-sample{sample}"
            texts = {one.id: one.response for one in responses}
            chosen = [(cells, texts[id]) for id, (_, cells) in rows.items() if id in texts]
            path = output / model / f"{model}_{dataset}.tsv"
            files[path] = _text(columns, chosen), len(chosen), total - len(chosen)
    for path in files:
        if path.exists():
            raise ConfigError(f"output {path} exists; choose another folder or remove it")
    for path, (text, num_rows, num_left_out) in files.items():
        write_text(path, text)
        yield ExportedFile(path, num_rows, num_left_out)


def _tsv(run: Path, benchmark: Benchmark, dataset: str, data: Path | None) -> Path:
    if data is not None:
        places = [data] if data.is_file() else [data / benchmark.name, data]
        found = [one if one.is_file() else one / f"{dataset}.tsv" for one in places]
    else:
        results = read_json(run / RESULTS) if (run / RESULTS).is_file() else {}
        known = results.get("benchmarks", {}).get(benchmark.name, {}).get("data", {})
        found = [Path(known.get("source") or "")]
    for path in found:
        if path.suffix == ".tsv" and path.is_file():
            return path
    raise ConfigError(
        f"{benchmark.name}: the index and the columns of VLMEvalKit stand only in its "
        f"{dataset}.tsv; name its folder with --data (VLMEvalKit keeps it in ~/LMUData)"
    )


def _rows(
    benchmark: Benchmark, tsv: Path
) -> tuple[list[str], dict[str, tuple[Item, Mapping[str, Any]]], int]:
    """Return the columns of a TSV but images, its items and cells by id, and the number of rows."""
    table = open_table(tsv)
    assert isinstance(table, TsvTable)
    rows: dict[str, tuple[Item, Mapping[str, Any]]] = {}
    total = 0
    for row in table.rows():
        total += 1
        if isinstance(row, str):
            continue
        # A bad row, or one of another split, was not evaluated.
        with contextlib.suppress(ProblemError):
            if (item := benchmark.item(row.cells)) is not None:
                rows.setdefault(item.id or str(total), (item, row.cells))
    return [name for name in table.header if name not in ("image", "prediction")], rows, total


def _check_same_questions(
    run: Path,
    benchmark: Benchmark,
    items: Sequence[Item],
    rows: Mapping[str, tuple[Item, Mapping[str, Any]]],
    tsv: Path,
) -> None:
    for item in items:
        if item.id not in rows or _question(rows[item.id][0]) != _question(item):
            raise ConfigError(
                f"{benchmark.name}: item {item.id!r} of {run} is not the one of {tsv}; evaluate "
                f"with --data {tsv}"
            )


def _question(item: Item) -> list[str]:
    return str(item.reference.get("question") or item.prompt).split()


def _text(columns: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    buffer = io.StringIO()
    # All cells in quotation marks, as VLMEvalKit writes them: responses have tabs and lines.
    writer = csv.writer(buffer, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([*columns, "prediction"])
    writer.writerows([*(cells.get(name, "") for name in columns), text] for cells, text in rows)
    return buffer.getvalue()
