"""Saved responses: one JSONL row for each sample of an item, written when it is complete."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vaopd.errors import RunFolderError
from vaopd.evaluation.benchmark import Benchmark, Item
from vaopd.grading.thinking import split_reasoning
from vaopd.records import naming, read_rows, write_rows

PREDICTIONS = "predictions.jsonl"
ITEMS = "items.jsonl"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One response to one item."""

    id: str
    sample: int
    """Number of the sample run, from 0."""

    response: str
    finish_reason: str = "stop"
    """``length`` if the limit ended the response; ``refused`` if a server gave none."""

    prompt_tokens: int | None = None
    response_tokens: int | None = None
    reasoning: str | None = None
    """Reasoning that a server returned separately; reasoning in tags stays in the response."""

    def row(self) -> dict[str, Any]:
        """Return the prediction as a row; reasoning and answer have separate columns."""
        parts = split_reasoning(self.response)
        answer = self.response if self.reasoning else parts.answer
        return {**asdict(self), "reasoning": self.reasoning or parts.reasoning, "answer": answer}


def read_predictions(path: Path) -> list[Prediction]:
    """Return the rows of a predictions file; other columns are ignored.

    Raises:
        RunFolderError: A row lacks ``id`` or ``response``, or a sample comes twice.
    """
    predictions: list[Prediction] = []
    seen: set[tuple[str, int]] = set()
    for number, row in enumerate(read_rows(path), start=1):
        prediction = _prediction(row, f"{path} row {number}")
        if (prediction.id, prediction.sample) in seen:
            raise RunFolderError(
                f"{path} row {number} repeats sample {prediction.sample} of {prediction.id}; "
                "keep one row for each"
            )
        seen.add((prediction.id, prediction.sample))
        predictions.append(prediction)
    return predictions


def _prediction(row: dict[str, Any], place: str) -> Prediction:
    id, response, sample = row.get("id"), row.get("response"), row.get("sample", 0)
    if id is None or not isinstance(response, str) or not isinstance(sample, int):
        raise RunFolderError(
            f"{place} needs id, response (text) and sample (a number from 0); add what is missing"
        )
    known = {field.name for field in fields(Prediction)} - {"id", "sample", "response"}
    extra = {key: row[key] for key in known if row.get(key) is not None}
    if "answer" in row and row["answer"] != response:
        # The response contains the reasoning too, with its tags.
        extra.pop("reasoning", None)
    return Prediction(id=str(id), sample=sample, response=response, **extra)


class PredictionLog:
    """The predictions of one benchmark on disk; samples that are there are not drawn again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            predictions = read_predictions(self.path)
            # A killed process may leave half a row; the next row would be appended to it.
            if not self.path.read_bytes().endswith(b"\n"):
                write_rows(self.path, (one.row() for one in predictions))
        else:
            predictions = []
        self.done = {(one.id, one.sample) for one in predictions}

    def missing(self, items: Sequence[Item], samples: int) -> dict[str, list[int]]:
        """Return the samples that are still to be drawn, by item."""
        wanted = {
            item.id: [k for k in range(samples) if (item.id, k) not in self.done] for item in items
        }
        return {id: numbers for id, numbers in wanted.items() if numbers}

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Append predictions and flush them to the disk."""
        new = [one for one in predictions if (one.id, one.sample) not in self.done]
        rows = "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in new)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        self.done.update((one.id, one.sample) for one in new)

    def sort(self, items: Sequence[Item]) -> None:
        """Bring the file into the order of the items and their samples."""
        place = {item.id: number for number, item in enumerate(items)}
        rows = read_rows(self.path) if self.path.is_file() else []
        # Rows of other items, from an earlier call without --limit, stay at the end.
        ordered = sorted(
            rows, key=lambda row: (place.get(str(row["id"]), len(place)), row.get("sample", 0))
        )
        if ordered != rows:
            write_rows(self.path, ordered)


def write_items(folder: Path, items: Sequence[Item]) -> None:
    """Write the items next to the predictions, so that scoring needs no benchmark data."""
    write_rows(
        folder / ITEMS,
        (
            {
                "id": item.id,
                "prompt": item.prompt,
                "reference": dict(item.reference),
                "cluster": item.cluster,
            }
            for item in items
        ),
    )


def read_items(path: Path) -> list[Item]:
    """Return items without images, as ``write_items`` wrote them.

    Raises:
        RunFolderError: A row lacks an id or a reference.
    """
    items = []
    for number, row in enumerate(read_rows(path), start=1):
        if "id" not in row or not isinstance(row.get("reference"), dict):
            raise RunFolderError(f"{path} row {number} needs id and reference; write it again")
        items.append(
            Item(
                id=str(row["id"]),
                prompt=row.get("prompt", ""),
                images=(),
                reference=row["reference"],
                cluster=row.get("cluster", ""),
                place=f"{path.name} row {number}",
            )
        )
    return items


def sample_runs(
    predictions: Sequence[Prediction], items: Sequence[Item], benchmark: Benchmark
) -> list[list[Prediction]]:
    """Return the predictions by sample run, each in the order of the items.

    Raises:
        RunFolderError: A run lacks an item that another run has, or there are no predictions.
            A structured metric of an incomplete run would be another metric.
    """
    runs: dict[int, dict[str, Prediction]] = defaultdict(dict)
    known = {item.id for item in items}
    for prediction in predictions:
        if prediction.id in known:
            runs[prediction.sample][prediction.id] = prediction
    if not runs:
        raise RunFolderError(
            f"no prediction for {benchmark.name} has the id of one of its items, such as "
            f"{items[0].id!r}; use the ids of the data set"
        )
    _check_complete(runs, items, benchmark)
    return [[run[item.id] for item in items] for _, run in sorted(runs.items())]


def _check_complete(
    runs: Mapping[int, Mapping[str, Prediction]], items: Sequence[Item], benchmark: Benchmark
) -> None:
    for sample, run in sorted(runs.items()):
        absent = [item.id for item in items if item.id not in run]
        if absent:
            raise RunFolderError(
                f"{benchmark.name}: sample {sample} has no prediction for {len(absent)} of "
                f"{len(items)} items, the first is {absent[0]!r}; finish the run (the same command "
                "goes on) or score fewer items with --limit"
            )
