"""Conversations as training data: the layouts of TRL, ms-swift and LLaVA."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems.conversations import columns_of, conversation_of
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems

ANSWER = "It is a triangle, so \\boxed{5}."
PARTS = [{"type": "image"}, {"type": "text", "text": "How long is AB?"}]
ROWS: dict[str, dict[str, Any]] = {
    "TRL, prompt and completion": {
        "prompt": [{"role": "user", "content": PARTS}],
        "completion": [{"role": "assistant", "content": ANSWER}],
        "images": ["figure.png"],
    },
    "TRL, image in its part": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "figure.png"},
                    {"type": "text", "text": "How long is AB?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]
    },
    "ms-swift": {
        "messages": [
            {"role": "user", "content": "<image>How long is AB?"},
            {"role": "assistant", "content": ANSWER},
        ],
        "images": ["figure.png"],
    },
    "LLaVA": {
        "conversations": [
            {"from": "human", "value": "<image>How long is AB?"},
            {"from": "gpt", "value": ANSWER},
        ],
        "image": "figure.png",
    },
    "plain prompt and solution": {
        "prompt": "How long is AB?",
        "image": "figure.png",
        "solution": "5",
        "references": [ANSWER],
    },
}


def read(folder: Path, row: dict[str, Any]) -> Problem:
    Image.new("RGB", (40, 30), "white").save(folder / "figure.png")
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = load_problems(str(folder / "data.jsonl"))
    return problem


@pytest.mark.parametrize("name", ROWS)
def test_conversations_are_the_same_problem_in_every_layout(name: str, tmp_path: Path):
    problem = read(tmp_path, ROWS[name])
    assert problem.prompt == "<image>How long is AB?"
    assert problem.answer == "5"
    assert problem.references == (ANSWER,)
    assert [image.size for image in problem.load_images()] == [(40, 30)]


@pytest.mark.parametrize("name", ["ms-swift", "LLaVA", "plain prompt and solution"])
def test_conversations_in_parquet_are_read_as_in_jsonl(name: str, tmp_path: Path):
    expected = read(tmp_path, ROWS[name])
    table = pyarrow.Table.from_pylist([{**ROWS[name], "more": "x"}])
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    (problem,) = load_problems(str(tmp_path / "data.parquet"))
    assert problem == expected


def test_a_conversation_without_an_answer_is_a_problem_without_one(tmp_path: Path):
    problem = read(tmp_path, {"prompt": "How long is AB?", "image": "figure.png"})
    assert (problem.answer, problem.references) == (None, ())


def test_a_response_without_a_box_is_a_reference_and_no_answer(tmp_path: Path):
    row = {**ROWS["ms-swift"], "messages": [
        {"role": "user", "content": "<image>How long is AB?"},
        {"role": "assistant", "content": "AB is five."},
    ]}  # fmt: skip
    problem = read(tmp_path, row)
    assert (problem.answer, problem.references) == (None, ("AB is five.",))


def test_the_answer_of_a_column_wins_over_the_box_of_the_response(tmp_path: Path):
    assert read(tmp_path, {**ROWS["ms-swift"], "answer": 7}).answer == "7"


USER = {"role": "user", "content": "<image>How long is AB?"}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "system", "content": "Be brief."}, USER], "has a turn of the role system"),
        ([USER, {"role": "assistant", "content": "5"}, USER], "has an earlier question"),
        ([USER, USER, USER], "has 2 earlier questions"),
        ([{"role": "assistant", "content": "5"}], "the row has no question"),
        ([], "the row has no question"),
    ],
    ids=["system", "two questions", "three questions", "no question", "empty"],
)
def test_turns_that_training_does_not_read_are_said(
    turns: list[dict[str, str]], message: str, tmp_path: Path
):
    with pytest.raises(ProblemError, match=message) as caught:
        read(tmp_path, {"messages": turns, "images": ["figure.png"]})
    assert "data.jsonl row 1" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "from", "value"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "images"]), JSON))
def test_whatever_a_row_holds_is_a_conversation_or_a_sentence(row: dict[str, Any]):
    try:
        columns = columns_of(row)
    except ProblemError as error:
        assert "\n" not in str(error)
    else:
        assert columns["problem"].strip()


def test_a_row_of_another_layout_that_has_a_prompt_too_is_read_by_its_layout(tmp_path: Path):
    row = {"problem": "<image>How long?", "images": ["figure.png"], "answer": "5", "prompt": "x"}
    assert read(tmp_path, row).prompt == "<image>How long?"


def test_the_last_question_is_read_with_what_is_unread_named():
    found = conversation_of({"messages": [USER, {"role": "assistant", "content": "5"}, USER]})
    assert (found.question, found.unread) == ("<image>How long is AB?", "an earlier question")
