"""Sibling groups as JSON data for the page: images, question, spans with their numbers."""

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from vaopd.pictures import encode_picture
from vaopd.records import read_rows
from vaopd.report.mathematics import has_formula, readable, rendered
from vaopd.report.sources import (
    GroupKey,
    Record,
    Source,
    check_row,
    choose,
    pictures_of,
    prompt_of,
)
from vaopd.report.tokens import Span, align

TEXT_BYTES = 10_000_000
PICTURE_BYTES = 8_000_000
"""Shares of the 20 MB that a page may have; the rest is for charts and script."""

SHORT_NAMES = {
    "original_logprobs": "o",
    "degraded_logprobs": "d",
    "visual_advantage": "v",
    "student_visual_advantage": "s",
    "kl": "k",
    "token_weight": "w",
}
"""Names of the columns of a row on the page: one letter, because a page repeats them often."""

MIME = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}


class Pictures:
    """Images of the page as data addresses; an image of several rollouts is stored once."""

    def __init__(self) -> None:
        self.encoded: dict[str, tuple[bytes, str]] = {}
        self.places: dict[Path, str] = {}

    def add(self, path: Path) -> str:
        """Add an image and return its key; '' if there is no such image."""
        path = path.resolve()
        if path not in self.places:
            self.places[path] = self._read(path)
        return self.places[path]

    def _read(self, path: Path) -> str:
        try:
            content = path.read_bytes()
            suffix = _suffix(content)
        # A report without deleted images is better than no report.
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            return ""
        key = f"p{len(self.encoded)}"
        # A scored file may name photos of any size and format.
        if suffix not in MIME or len(content) > PICTURE_BYTES // 50:
            with Image.open(io.BytesIO(content)) as image:
                content, suffix = encode_picture(image)
        self.encoded[key] = (content, suffix)
        return key

    def data_addresses(self) -> dict[str, str]:
        """Return the ``data:`` address of each key; all are scaled down if they are too large."""
        side = 768
        while self._weight() > PICTURE_BYTES and side > 96:
            side = side * 3 // 4
            for key, (content, _) in self.encoded.items():
                with Image.open(io.BytesIO(content)) as image:
                    self.encoded[key] = encode_picture(image, side)
        return {
            key: f"data:{MIME[suffix]};base64,{base64.b64encode(content).decode()}"
            for key, (content, suffix) in self.encoded.items()
        }

    def _weight(self) -> float:
        return sum(len(content) for content, _ in self.encoded.values()) * 4 / 3


def _suffix(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as image:
        return {"PNG": ".png", "WEBP": ".webp", "JPEG": ".jpg"}.get(image.format or "", "")


def rollout_groups(
    sources: Sequence[Source],
    pictures: Pictures,
    *,
    max_rollouts: int,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Return the chosen groups of all runs; fewer if their text is too large."""
    numbered = [
        (number, siblings)
        for number, source in enumerate(sources)
        for siblings in source.siblings.values()
    ]
    run_of = {id(siblings[0]): number for number, siblings in numbered}
    while True:
        chosen = choose([siblings for _, siblings in numbered], max_rollouts)
        rows = _Rows(progress)
        groups = [
            _group(run_of[id(siblings[0])], [(r, rows.row(r)) for r in siblings], pictures)
            for siblings in chosen
        ]
        weight = sum(len(json.dumps(group)) for group in groups)
        count = sum(len(siblings) for siblings in chosen)
        if weight <= TEXT_BYTES or count == 1:
            return groups
        max_rollouts = max(1, int(count * TEXT_BYTES / weight * 0.95))


class _Rows:
    """Reads a file when its rollouts are needed, and keeps one file at a time."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.path: Path | None = None
        self.rows: list[dict[str, Any]] = []

    def row(self, record: Record) -> dict[str, Any]:
        if record.path != self.path:
            self.progress(record.path.name)
            self.path, self.rows = record.path, read_rows(record.path)
        row = self.rows[record.row]
        check_row(row, f"{record.path} row {record.row + 1}")
        return row


def _group(
    run: int, siblings: list[tuple[Record, dict[str, Any]]], pictures: Pictures
) -> dict[str, Any]:
    record, row = siblings[0]
    key: GroupKey = record.group
    images = {
        view: [pictures.add(record.path.parent / name) for name in names]
        for view, names in pictures_of(row).items()
    }
    prompt = prompt_of(row).replace("<image>", "").strip()
    answer = row.get("answer")
    return {
        "run": run,
        "source": key.source,
        "step": key.step,
        "problem": key.problem_id,
        "view": key.view,
        "prompt": prompt,
        "promptHtml": readable(prompt) if has_formula(prompt) else None,
        "answer": None if answer is None else str(answer),
        **images,
        "rollouts": [
            _rollout(record, row, number) for number, (record, row) in enumerate(siblings)
        ],
    }


def _rollout(record: Record, row: dict[str, Any], number: int) -> dict[str, Any]:
    tokens = row["tokens"]
    response = row.get("response")
    response = response if isinstance(response, str) else "".join(tokens)
    spans = align(tokens, response)
    sibling = row.get("sibling")
    rollout: dict[str, Any] = {
        "sibling": sibling if isinstance(sibling, int) else number,
        "correct": record.is_correct,
        "finish": str(row.get("finish_reason") or ""),
        "weight": _number(row.get("rollout_weight"), 4),
        "va": _number(record.mean_advantage, 4),
        "length": record.length,
        "texts": [span.text for span in spans],
        "special": _specials(spans),
        "reading": rendered(response),
    }
    # Nearly always a span is one token; only other lengths are stored.
    if any(span.count != 1 for span in spans):
        rollout["counts"] = [span.count for span in spans]
    for column, letter in SHORT_NAMES.items():
        values = row.get(column)
        if values is not None:
            rollout[letter] = [_number(value, 3) for value in values]
    if row.get("is_high") is not None:
        rollout["high"] = "".join("1" if high else "0" for high in row["is_high"])
    if "s" in rollout:
        kept = [value for value in rollout["s"] if value is not None]
        rollout["studentVa"] = _number(sum(kept) / len(kept), 4) if kept else None
    return rollout


def _specials(spans: Sequence[Span]) -> dict[str, str]:
    return {str(place): span.special for place, span in enumerate(spans) if span.special}


def _number(value: object, digits: int) -> float | int | None:
    """Return a number in a short form, as it is stored thousands of times; None for None.

    NaN and infinity are not JSON, so a browser would refuse the whole page.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}") if abs(value) < 1 else round(value, digits)
    return int(short) if short == int(short) else short
