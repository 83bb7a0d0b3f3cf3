"""``data.columns``, ``data.system_prompt`` and ``data.prompt_suffix``."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vaopd.config import load_config, parse_config
from vaopd.config.columns import OWN_NAMES, checked_fields
from vaopd.errors import ConfigError, ProblemError
from vaopd.models.families import chat_messages
from vaopd.problems.manifest import digest
from vaopd.problems.sources import load_problems, read_source

Run = Callable[..., tuple[int, str, str]]
MAPPING = {"question": "prompt", "answer": "solution", "image": "picture"}
ROWS = [
    {"prompt": "How long is AB?", "picture": "a.png", "solution": "5", "answer": "no", "n": 1},
    {"prompt": "And <image>?", "picture": ["a.png"], "solution": None, "answer": "no", "n": 2},
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> str:
    Image.new("L", (8, 6)).save(folder / "a.png")
    path = folder / f"made{suffix}"
    if suffix == ".parquet":
        rows = [{**row, "picture": row["picture"] if isinstance(row["picture"], list)
                 else [row["picture"]]} for row in rows]  # fmt: skip
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        lines = [",".join(rows[0])]
        lines += [",".join(["a.png" if name == "picture" else str(cell or "")
                            for name, cell in row.items()]) for row in rows]  # fmt: skip
        path.write_text("\n".join(lines) + "\n")
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_mapped_columns_are_read_from_every_kind_of_file(suffix: str, tmp_path: Path):
    first, second = load_problems(write(tmp_path, suffix), columns=MAPPING)
    assert (first.prompt, first.answer, first.references) == ("<image>How long is AB?", "5", ())
    # A mapped answer that is empty is none, also where a column of our own name has one.
    assert (second.prompt, second.answer) == ("And <image>?", None)
    assert first.images == second.images == (tmp_path / "a.png",)


@pytest.mark.parametrize("name", ["teacher_images", "teacher_image", "marked"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_images_of_the_teacher_are_a_column_of_every_kind_of_file(
    suffix: str, name: str, tmp_path: Path
):
    Image.new("L", (16, 12)).save(tmp_path / "b.png")
    columns = {**MAPPING, **({"teacher_images": name} if name == "marked" else {})}
    cell = "b.png" if suffix == ".csv" else ["b.png"]
    rows = [ROWS[0] | {name: cell}, ROWS[1] | {name: None if suffix == ".csv" else []}]
    first, second = load_problems(write(tmp_path, suffix, rows), columns=columns)
    assert first.teacher_images == (tmp_path / "b.png",)
    assert first.images == second.images == (tmp_path / "a.png",)
    assert second.teacher_images == ()


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "<image>Why?", "images": ["a.png"], "answer": "1"},
        {"question": "<image>Why?", "image": ["a.png"], "answer": "1"},
        {"messages": [{"role": "user", "content": "Why?"}], "image": "a.png"},
        {"prompt": "Why?", "images": ["a.png"]},
    ],
)
def test_images_of_the_teacher_are_read_in_every_layout(row: dict[str, Any], tmp_path: Path):
    path = write(tmp_path, ".jsonl", [row | {"teacher_images": ["a.png"]}, row])
    first, second = load_problems(path)
    assert (first.teacher_images, second.teacher_images) == ((tmp_path / "a.png",), ())
    assert first.for_teacher() == replace(first, images=first.images, teacher_images=())
    assert second.for_teacher() is second


def test_another_number_of_images_for_the_teacher_is_a_bad_row(tmp_path: Path):
    row = {"problem": "<image>Why?", "images": ["a.png"], "answer": "1", "id": "x"}
    path = write(tmp_path, ".jsonl", [row | {"teacher_images": ["a.png", "a.png"]}])
    with pytest.raises(ProblemError, match="x has 2 teacher_images and 1 images; give one for"):
        load_problems(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_mapped_column_that_does_not_exist_is_one_sentence(suffix: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read_source_with(write(tmp_path, suffix), {**MAPPING, "image": "pictures"})
    assert str(caught.value) == (
        f"data.columns maps image to the column pictures, which made{suffix} does not have; its "
        "columns are answer, n, picture, prompt, solution; did you mean image: picture?"
    )


def read_source_with(source: str, columns: dict[str, str]) -> Any:
    return load_problems(source, columns=columns)


def test_a_field_that_is_not_mapped_is_looked_for_under_its_own_names(tmp_path: Path):
    rows = [{"text": "Which?", "images": ["a.png"], "answer": "5", "qid": "x", "category": "angle"}]
    (one,) = load_problems(write(tmp_path, ".jsonl", rows), columns={"question": "text"})
    assert (one.id, one.answer, one.kind) == ("x", "5", "angle")


def test_one_column_may_be_two_fields(tmp_path: Path):
    columns = {**MAPPING, "references": "solution"}
    first, second = load_problems(write(tmp_path, ".jsonl"), columns=columns)
    assert (first.answer, first.references) == ("5", ("5",))
    assert (second.answer, second.references) == (None, ())


def test_mapped_turns_are_a_conversation(tmp_path: Path):
    turns = [
        {"role": "user", "content": "How long?"},
        {"role": "assistant", "content": "\\boxed{5}"},
    ]
    source = write(tmp_path, ".jsonl", [{"dialog": turns, "picture": "a.png"}])
    for field in ("messages", "question"):
        (one,) = load_problems(source, columns={field: "dialog", "image": "picture"})
        assert (one.prompt, one.answer) == ("<image>How long?", "5")


def test_a_later_row_without_a_mapped_column_is_a_bad_row(tmp_path: Path):
    source = write(tmp_path, ".jsonl", [ROWS[0], {"picture": "a.png"}])
    with pytest.raises(ProblemError, match=r"^made\.jsonl row 2: prompt is empty; write the quest"):
        load_problems(source, columns=MAPPING)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ("{picture: image}", "data.columns has the key picture, which is not a field of a problem; "
         "the fields are question, image, answer, id, kind, references, messages, "),
        ("{image: a, images: b}", "data.columns maps image twice (images is another name of it)"),
        ("[a]", "data.columns is ['a']: input should be a valid dictionary"),
        ("{question: 3}", "data.columns.question is 3: input should be a valid string"),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_read_is_one_sentence(columns: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [f"data.columns={columns}"])
    assert str(caught.value).startswith(sentence)


@given(st.dictionaries(st.sampled_from([*OWN_NAMES, "problem", "images"]), st.text(), max_size=4))
def test_fields_have_one_name_each(columns: dict[str, str]):
    try:
        found = checked_fields(columns)
    except ConfigError as error:
        assert "twice" in str(error)
    else:
        assert set(found) <= set(OWN_NAMES)
        assert list(found.values()) == list(columns.values())


# --- texts around the question --------------------------------------------------------------------


@pytest.mark.parametrize("source", ["package:geometry3k_sample", "drawn:train?count=2&told=1"])
def test_every_problem_has_the_system_prompt_and_the_suffix(source: str):
    plain = load_problems(source)
    asked = load_problems(source, system_prompt="Be brief.", prompt_suffix="Box it.")
    assert len(plain) == len(asked) > 1
    for one, other in zip(plain, asked, strict=True):
        assert other.prompt == f"{one.prompt}\nBox it."
        system, user = chat_messages(other)
        assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
        assert chat_messages(one) == [{**user, "content": chat_messages(one)[0]["content"]}]
        assert user["content"][-1]["text"].endswith("\nBox it.")
        assert one.references == other.references


def test_the_digest_of_drawn_problems_does_not_depend_on_the_texts():
    # A run keeps the digest, and folders of earlier versions have one without these keys.
    source = "drawn:train?count=2"
    assert digest(load_problems(source)) == digest(load_problems(source, system_prompt="x"))


def test_a_placeholder_in_an_added_text_is_refused():
    for key in ("system_prompt", "prompt_suffix"):
        with pytest.raises(ConfigError, match=rf"^data\.{key} holds <image>, which stands for"):
            load_config("quickstart", [f"data.{key}='<image>'"])


def test_a_control_token_in_the_system_prompt_is_refused(run: Run, tmp_path: Path):
    text = "data.system_prompt=<|im_end|>"
    data = ("data.train=package:geometry3k_sample", "data.validation=null")
    code, _, err = run("train", "quickstart", *data, text, "--output", tmp_path / "run")
    assert code == 1
    assert "has the control token <|im_end|> in its system prompt; remove" in err


def test_a_dry_run_says_what_is_added_to_every_question(run: Run):
    code, out, err = run("train", "quickstart", "--dry-run")
    assert (code, "every question" in err) == (0, False)
    added = ("data.system_prompt='Be brief.'", "data.prompt_suffix='Box it.'")
    code, out, err = run("train", "quickstart", *added, "--dry-run")
    assert code == 0
    said = "every question has the system prompt 'Be brief.' before it and 'Box it.' after it"
    assert said in err
    assert "system_prompt: Be brief." in out


def test_a_dry_run_reads_mapped_columns(run: Run, tmp_path: Path):
    source = write(tmp_path, ".csv")
    data = (f"data.train={source}", "data.validation=null", "training.problems_per_step=1")
    command = ("train", "quickstart", *data, "--dry-run")
    mapping = "data.columns={question: prompt, answer: solution, image: picture}"
    code, _, err = run(*command, mapping)
    assert (code, "the first 2 can be read" in err) == (0, True)
    code, _, err = run(*command, mapping.replace("picture", "pic"))
    assert (code, "did you mean image: picture?" in err) == (2, True)


def test_mapped_columns_that_only_drawn_problems_could_have_are_named_as_unread(run: Run):
    code, _, err = run("train", "quickstart", "data.columns={image: x}", "--dry-run")
    assert code == 0
    assert "not read: data.columns (drawn problems have no columns)" in err


def test_the_training_data_of_a_recipe_has_its_rules(tmp_path: Path):
    source = write(tmp_path, ".jsonl")
    config = parse_config(
        {
            "student": {"model": "tiny:student"},
            "data": {"train": source, "columns": MAPPING, "prompt_suffix": "Box it."},
        }
    )
    from vaopd.problems.reading import reading_rules

    problems, bad = read_source(source, rules=reading_rules(config.data))
    assert (len(problems), bad) == (2, [])
    assert problems[0].prompt == "<image>How long is AB?\nBox it."
