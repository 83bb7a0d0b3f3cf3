"""A user's own file: the examples of docs/own_benchmark.md, and the same rows in every format."""

import base64
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.items import load_items
from vaopd.evaluation.registry import find_benchmark

PAGE = Path(__file__).parents[2] / "docs" / "own_benchmark.md"
EXAMPLES = [
    json.loads(text)
    for text in re.findall(r"```json\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
]
RIGHT = {"free": "The length is 50 mm.", "choice": "Answer: B", "several": "Half a dozen",
         "tolerance": "about 8.25", "messages": "3"}  # fmt: skip
WRONG = {"free": "5 m", "choice": "red", "several": "seven", "tolerance": "8.4", "messages": "4"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "figure.png")
    return tmp_path


def read(path: Path) -> dict[str, Item]:
    found = load_items(find_benchmark(str(path)))
    return {item.id: item for item in found.items}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_examples_of_the_page_are_graded(folder: Path):
    path = write_jsonl(folder / "mine.jsonl", EXAMPLES)
    items = read(path)
    assert items.keys() == RIGHT.keys()
    grade = find_benchmark(str(path)).grade
    for name, item in items.items():
        assert item.problem("mine").load_images()
        assert grade(RIGHT[name], item, "last_committed").is_correct, name
        assert not grade(WRONG[name], item, "last_committed").is_correct, name


def as_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(rows))
    return path


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    image = {"bytes": (folder / "figure.png").read_bytes(), "path": None}
    table = pyarrow.Table.from_pylist([row | {"image": image} for row in rows])
    pyarrow.parquet.write_table(table, folder / "mine.parquet")
    return folder / "mine.parquet"


def as_text(suffix: str) -> Callable[[Path, list[dict[str, Any]]], Path]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        path = folder / f"mine{suffix}"
        with path.open("w", newline="") as file:
            names = list(rows[0])
            writer = csv.DictWriter(file, names, delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            for row in rows:
                cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                writer.writerow(cells)
        return path

    return write


@pytest.mark.parametrize(
    "write", [as_json, as_parquet, as_text(".csv"), as_text(".tsv")],
    ids=["json", "parquet", "csv", "tsv"],
)  # fmt: skip
def test_every_format_gives_the_same_items(
    write: Callable[[Path, list[dict[str, Any]]], Path], folder: Path
):
    rows = [
        {"id": "1", "question": "Colour?", "image": "figure.png", "options": ["red", "blue"],
         "answer": "blue"},
        {"id": "2", "question": "Colour now?", "image": "figure.png", "options": ["red", "green"],
         "answer": "A"},
    ]  # fmt: skip
    items = read(write(folder, rows))
    assert [item.reference["answer"] for item in items.values()] == ["B", "A"]
    assert items["1"].prompt.startswith("<image>Colour?\nA. red\nB. blue\n")
    for item in items.values():
        assert item.problem("mine").load_images()[0].size == (40, 30)


def test_images_may_be_base64_and_data_urls(folder: Path):
    noise = Image.effect_noise((60, 60), 90)
    noise.save(folder / "noise.png")
    encoded = base64.b64encode((folder / "noise.png").read_bytes()).decode()
    url = f"data:image/png;base64,{encoded}"
    rows: list[dict[str, Any]] = [
        {"id": "1", "question": "Q", "answer": "1", "image": encoded},
        {"id": "2", "question": "Q <image> <image>", "answer": "1", "images": [url, "figure.png"]},
        {"id": "3", "prompt": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Q"}]}],
         "completion": [{"role": "assistant", "content": "So it is 7."}]},
    ]  # fmt: skip
    items = read(write_jsonl(folder / "mine.jsonl", rows))
    sizes = [[i.size for i in item.problem("mine").load_images()] for item in items.values()]
    assert sizes == [[(60, 60)], [(60, 60), (40, 30)], [(60, 60)]]
    assert items["3"].prompt == "<image>Q"
    assert items["3"].reference["answer"] == "So it is 7."


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Q", "image": "figure.png"}, "no answer"),
        ({"answer": "1", "image": "figure.png"}, "none of question"),
        ({"question": "Q", "answer": "1"}, "no image"),
        ({"question": "Q", "answer": "C", "options": ["x", "y"], "image": "figure.png"}, "letter"),
        ({"question": "Q", "answer": "1", "image": "http://host/a.png"}, "download"),
        ({"question": "Q", "answer": "1", "tolerance": "-1", "image": "figure.png"}, "tolerance"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_or_counted(
    row: dict[str, Any], says: str, folder: Path
):
    good = {"question": "Q", "answer": "1", "image": "figure.png"}
    path = write_jsonl(folder / "mine.jsonl", [good, row])
    with pytest.raises(ProblemError, match=rf"mine.jsonl row 2: .*{says}"):
        read(path)
    found = load_items(find_benchmark(str(path)), on_bad_row="skip")
    assert (len(found.items), len(found.skipped)) == (1, 1)
    assert says in found.skipped[0]


def test_an_own_choice_benchmark_is_evaluated_and_scored_again(
    run: Callable[..., tuple[int, str, str]], folder: Path
):
    path = write_jsonl(folder / "mine.jsonl", EXAMPLES)
    answers = {row["id"]: RIGHT[row["id"]] for row in EXAMPLES}

    def reply(number: int, body: dict[str, Any]) -> str:
        text = json.dumps(body["messages"])
        asked = {"free": "How long", "choice": "Which colour", "several": "Which number",
                 "tolerance": "About", "messages": "How many"}  # fmt: skip
        return next(answers[name] for name, words in asked.items() if words in text)

    with chat_server(reply) as server:
        code, _, err = run("evaluate", "m", "--engine", "openai", "--base-url", server.url,
                           "--benchmark", path, "--samples", 1, "--output", folder / "out")  # fmt: skip
    assert code == 0, err
    assert (
        json.loads((folder / "out" / "results.json").read_text())["benchmarks"]["mine"]["value"]
        == 100
    )
    code, out, err = run("evaluate", "--predictions", folder / "out")
    assert code == 0, err
    assert "100.00" in out
