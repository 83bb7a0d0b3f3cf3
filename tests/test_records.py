import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaopd.errors import RunFolderError
from vaopd.records import (
    CHECKSUMS,
    append_row,
    damage,
    keep_rows_up_to,
    naming,
    new_folder,
    read_rows,
    write_json,
    write_rows,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_back_as_they_were_written(tmp_path: Path):
    rows = [{"step": 1, "loss": 0.1 + 0.2, "text": "x²\u2028\n"}, {"step": 2, "loss": 1e-300}]
    path = tmp_path / "rows.jsonl"
    append_row(path, rows[0])
    append_row(path, rows[1])
    assert read_rows(path) == rows
    write_rows(tmp_path / "whole.jsonl", rows)
    assert (tmp_path / "whole.jsonl").read_bytes() == path.read_bytes()


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    # Within an object, and within the two bytes of a character.
    for cut in (b'{"step": 2, "lo', '{"step": 2, "x²'.encode()[:-1]):
        path.write_bytes(b'{"step": 1}\n' + cut)
        assert read_rows(path) == [{"step": 1}]


@pytest.mark.parametrize("text", ['{"step": 1\n{"step": 2}\n', '{"step": 1}\n{"step": 2, "lo\n'])
def test_a_damaged_whole_line_is_an_error_that_names_it(tmp_path: Path, text: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(RunFolderError, match=r"rows\.jsonl line [12] is not JSON"):
        read_rows(path)


def test_a_row_that_is_no_object_is_an_error(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(RunFolderError, match="line 2 is not a JSON object"):
        read_rows(path)


def test_rows_of_later_steps_are_dropped_and_earlier_ones_keep_their_bytes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_row(path, {"step": step, "loss": step / 3})
    lines = path.read_text().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    keep_rows_up_to(path, 2)
    assert path.read_text() == "".join(lines[:2])


def test_dropping_rows_of_a_file_that_does_not_exist_makes_none(tmp_path: Path):
    keep_rows_up_to(tmp_path / "metrics.jsonl", 3)
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_content(tmp_path: Path):
    path = tmp_path / "a" / "file.json"
    write_json(path, {"old": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new, but with half a surrogate: \ud800")
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_folder_takes_its_name_only_when_it_is_complete(tmp_path: Path):
    with new_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "step").exists()
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step") == ["a", "checksums.json"]


def test_a_failure_inside_leaves_no_folder_at_all(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_failure_inside_leaves_the_older_folder_of_that_name(tmp_path: Path):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "old").touch()
    with pytest.raises(ValueError), new_folder(tmp_path / "step"):
        raise ValueError
    assert names(tmp_path / "step") == ["old"]


def test_a_kill_inside_leaves_nothing_under_the_name_and_the_next_try_starts_clean(tmp_path: Path):
    code = (
        "import os, pathlib, signal, sys\n"
        "from vaopd.records import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "step"
    killed = subprocess.run([sys.executable, "-c", code, str(target)])
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".step.partial"]
    with new_folder(target) as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["step"]
    assert names(target) == ["checksums.json", "whole"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked") / "folder"
    with new_folder(folder) as partial:
        (partial / "weights").write_bytes(bytes(range(64)))
        (partial / "inner").mkdir()
        (partial / "inner" / "state").write_text("{}")
    return folder


@given(data=st.data())
def test_every_flipped_bit_and_every_cut_of_every_file_is_found(checked: Path, data: st.DataObject):
    folder = data.draw(st.sampled_from([checked, checked / "inner"]))
    path = data.draw(st.sampled_from(sorted(p for p in folder.iterdir() if p.is_file())))
    whole = path.read_bytes()
    assert damage(folder) == ""
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    if data.draw(st.booleans()):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
    else:
        changed = whole[: bit // 8]
    path.write_bytes(changed)
    found = damage(folder)
    path.write_bytes(whole)
    # A flip in a name makes the file of that name missing.
    assert path.name in found or (path.name == CHECKSUMS and found)


def test_a_missing_file_is_damage_and_a_file_more_is_not(checked: Path):
    (checked / "README.md").touch()
    assert damage(checked) == ""
    (checked / "inner" / "state").unlink()
    assert damage(checked / "inner") == "state is missing"


def test_a_folder_without_checksums_is_not_judged(tmp_path: Path):
    assert damage(tmp_path) == ""


def test_a_copy_keeps_the_checksums_of_what_it_copies(tmp_path: Path):
    with new_folder(tmp_path / "first") as folder:
        (folder / "weights").write_bytes(b"right")
    with new_folder(tmp_path / "copy") as folder:
        (folder / CHECKSUMS).write_bytes((tmp_path / "first" / CHECKSUMS).read_bytes())
        (folder / "weights").write_bytes(b"wrong")
    assert damage(tmp_path / "copy").startswith("weights is not as it was written")


def test_a_failed_write_names_its_file(tmp_path: Path):
    with pytest.raises(OSError, match=r"rows\.jsonl") as error, naming(tmp_path / "rows.jsonl"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "rows.jsonl")
