"""Random input ends in a result or in one sentence, and never in a traceback.

Ten seconds in all. ``VAOPD_FUZZ=100`` tries a hundred times as many inputs, and others each time.
"""

import functools
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from written_runs import LATEX, row, write_rows, write_run

from vaopd.config import load_config
from vaopd.errors import VaopdError
from vaopd.evaluation.rows import open_table
from vaopd.grading.grades import grade
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems
from vaopd.report.report import write_report
from vaopd.teacher.remote.messages import RequestOptions, pack_request, unpack_request
from vaopd.views import fit_pixel_budget

TIMES = int(os.environ.get("VAOPD_FUZZ", "1"))


def fuzz(examples: int) -> Callable:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,  # the same inputs each time, so that no test fails by chance
        suppress_health_check=list(HealthCheck),
    )


def ends_well(work: Callable[[], object]) -> bool:
    """Run work that may raise an error of vaopd, of one sentence; return whether it did not."""
    try:
        work()
    except VaopdError as error:
        assert str(error)
        assert len(str(error)) < 5000
        return False
    return True


TEXTS = st.text(max_size=30) | st.sampled_from(["<image>", "<image>x", "\ud800", "\x00", "a.png"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
COLUMNS = st.sampled_from(
    ["images", "image", "problem", "question", "answer", "id", "qid", "kind", "references", "x"]
)
CELLS = st.fixed_dictionaries(
    {"images": st.just(["a.png"]), "problem": TEXTS, "answer": TEXTS}
) | st.dictionaries(COLUMNS, VALUES, max_size=6)
LINES = st.binary(max_size=60) | st.builds(lambda cells: json.dumps(cells).encode(), CELLS)


@functools.cache
def folder() -> Path:
    place = Path(tempfile.mkdtemp())
    Image.new("RGB", (8, 6)).save(place / "a.png")
    return place


@fuzz(150)
@given(st.lists(LINES, min_size=1, max_size=3))
def test_rows_of_problems(lines: list[bytes]):
    path = folder() / "made.jsonl"
    path.write_bytes(b"\n".join(lines))
    ends_well(lambda: [one.content_hash() for one in load_problems(str(path))])
    ends_well(lambda: list(open_table(path).rows()))


@fuzz(100)
@given(st.dictionaries(TEXTS | st.sampled_from(["student", "data"]), VALUES, max_size=4))
def test_recipes_of_values(values: dict):
    path = folder() / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8", errors="replace")
    ends_well(lambda: load_config(path))


SIGNS = st.sampled_from(
    [*"abx019:-[]{},&*!#|>%@`\"'?~<.\n\t ", "student", "data", "!!int", "!!bool ", "!!float ",
     "!!binary ", "!!timestamp ", "&a ", "*a", "<<: ", "2020-13-45", "0x", "0b", "1e", "---\n"]
)  # fmt: skip


@fuzz(200)
@given(st.lists(SIGNS, max_size=25).map("".join) | st.binary(max_size=40))
def test_recipes_of_signs(text: str | bytes):
    path = folder() / "signs.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    ends_well(lambda: load_config(path))


@functools.cache
def images() -> list[bytes]:
    found = []
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"):
        stream = io.BytesIO()
        Image.effect_noise((24, 20), 90).convert("RGB").save(stream, format)
        found.append(stream.getvalue())
    return found


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)


def spoiled(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    result = bytearray(content)
    for place, value in changes:
        # Headers are what decoders believe, so half of the changes are there.
        result[place % (len(result) if place % 2 else min(64, len(result)))] = value
    return bytes(result[: len(result) - cut % len(result)] if cut % 3 == 0 else result)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged headers that it reads
@fuzz(150)
@given(st.integers(0, 8), CHANGES, st.integers(0, 1000))
def test_images(kind: int, changes: list[tuple[int, int]], cut: int):
    one = Problem("p", "<image>", (spoiled(images()[kind], changes, cut),), None, "s", "t")
    ends_well(lambda: [fit_pixel_budget(image, 64, 4096) for image in one.load_images()])


@functools.cache
def request_body() -> bytes:
    options = RequestOptions(
        with_degraded=True,
        with_hidden=True,
        with_divergence=False,
        with_degraded_hidden=False,
        hidden_dtype="float32",
        batch_tokens=100,
        share_prefix=True,
    )
    pixels = {"pixel_values": torch.zeros(4, 6), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    ids = torch.arange(5)
    prompt = EncodedPrompt(
        problem_id="p",
        input_ids=ids,
        image_inputs=pixels,
        position_ids=ids.expand(3, -1),
        next_position=5,
    )
    other = replace(prompt, image_inputs=pixels | {"pixel_values": torch.ones(4, 6)})
    return pack_request([prompt], [other], [[ids[:2], ids[:1]]], options, "float32")


@fuzz(100)
@given(CHANGES, st.integers(0, 1000))
def test_requests_to_a_server(changes: list[tuple[int, int]], cut: int):
    ends_well(lambda: unpack_request(spoiled(request_body(), changes, cut)))


@fuzz(100)
@given(VALUES)
def test_headers_of_requests(header: object):
    text = json.dumps(header)
    ends_well(lambda: unpack_request(save({"0.input_ids": torch.zeros(1)}, {"request": text})))


MARKS = st.sampled_from(
    ["\\boxed{", "}", "{", "\\frac", "Answer: ", "5", "x", "^", "(", ")", "$", "\\(", "π", "1/2",
     ", ", "or ", "not ", "%", "cm", "<think>", "</think>", "\n", "\\text{", "=", "A", "(B)"]
)  # fmt: skip
RESPONSES = st.lists(MARKS, max_size=12).map("".join) | st.text(max_size=40)


@fuzz(60)
@given(RESPONSES, st.lists(MARKS, min_size=1, max_size=5).map("".join))
def test_grades(response: str, answer: str):
    assert grade(response, answer).is_correct in (True, False)


@functools.cache
def run_folder() -> Path:
    run = folder() / "run"
    write_run(run)
    return run


@fuzz(12)
@given(st.dictionaries(st.sampled_from(sorted(row(LATEX))), VALUES, max_size=3))
def test_reports_of_rollouts(changes: dict):
    file = run_folder() / "rollouts" / "step_000001.jsonl"
    write_rows(file, [row(LATEX) | changes])
    ends_well(lambda: write_report([run_folder()], folder() / "report.html"))
