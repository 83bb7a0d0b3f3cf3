"""Damage of the records of a run that leaves them readable is found when it is resumed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vaopd.errors import RunFolderError
from vaopd.records import append_row, read_rows, write_rows
from vaopd.training.ledger import LEDGER, check_records, note_file, note_row
from vaopd.training.run_folder import forget_after


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The records of three steps, as the tracker writes them."""
    for step in (1, 2, 3):
        for name in ("metrics.jsonl", "validation.jsonl"):
            row = {"step": step, "loss": 0.5 + step, "text": "é\u2028"}
            append_row(tmp_path / name, row)
            note_row(tmp_path, name, row)
        file = tmp_path / "rollouts" / f"step_{step:06d}.jsonl"
        write_rows(file, [{"step": step, "response": "12"}, {"step": step, "response": "13"}])
        note_file(tmp_path, file, step)
    return tmp_path


def refusal(output: Path, step: int = 3) -> str:
    with pytest.raises(RunFolderError) as caught:
        check_records(output, step)
    return str(caught.value)


Edit = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("name", "step", "edit"),
    [
        ("metrics.jsonl", 2, lambda c: c.replace(b"2.5", b"2.6")),
        ("metrics.jsonl", 2, lambda c: b"".join(c.splitlines(keepends=True)[::2])),
        ("metrics.jsonl", 3, lambda c: c.replace(b'"step": 3', b'"step": 7')),
        ("metrics.jsonl", 1, lambda c: c.replace(b'"step": 2', b'"step": 1')),
        ("metrics.jsonl", 1, lambda c: b""),
        ("validation.jsonl", 1, lambda c: c.replace(b"1.5", b"9.5")),
        ("rollouts/step_000002.jsonl", 2, lambda c: c.replace(b"13", b"15")),
        ("rollouts/step_000003.jsonl", 3, lambda c: c[: len(c) // 2]),
        ("rollouts/step_000003.jsonl", 3, lambda c: b""),
    ],
)
def test_a_changed_record_is_named_with_its_step(output: Path, name: str, step: int, edit: Edit):
    file = output / name
    file.write_bytes(edit(file.read_bytes()))
    assert refusal(output) == (
        f"{file} is not as it was written: the checksum of step {step} differs; restore it from a "
        f"copy, or remove {output / LEDGER} to go on with the records as they are"
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts/step_000001.jsonl"])
def test_a_missing_record_is_named(output: Path, name: str):
    (output / name).unlink()
    assert refusal(output).startswith(f"{output / name} is missing; restore it")


def test_records_of_steps_that_are_written_again_may_be_damaged(output: Path):
    for name in ("metrics.jsonl", "rollouts/step_000003.jsonl"):
        file = output / name
        file.write_bytes(file.read_bytes()[:-5])
    check_records(output, 2)
    assert "step 3 differs" in refusal(output)


def test_nothing_is_deleted_if_a_record_is_damaged(output: Path):
    file = output / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b"1.5", b"1.6"))
    before = {path: path.read_bytes() for path in output.rglob("*.jsonl")}
    with pytest.raises(RunFolderError):
        forget_after(output, 1)
    assert {path: path.read_bytes() for path in output.rglob("*.jsonl")} == before


def test_checksums_of_later_steps_are_forgotten_with_their_records(output: Path):
    forget_after(output, 1)
    assert [row["step"] for row in read_rows(output / LEDGER)] == [1, 1, 1]
    row = {"step": 2, "loss": 7}
    append_row(output / "metrics.jsonl", row)
    note_row(output, "metrics.jsonl", row)
    check_records(output, 2)


@pytest.mark.parametrize("line", ["3", '{"step": 1}', '{"file": "a", "step": "x"}', '{"file": 1}'])
def test_a_damaged_line_of_checksums_is_a_sentence(output: Path, line: str):
    with (output / LEDGER).open("a") as file:
        file.write(line + "\n")
    assert str(output / LEDGER) in refusal(output)


def test_a_run_of_an_earlier_version_has_no_checksums(output: Path):
    (output / LEDGER).unlink()
    (output / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    check_records(output, 3)
