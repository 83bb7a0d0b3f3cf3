import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from vaopd.distributed.world import World
from vaopd.errors import PeerError, ProblemError
from vaopd.problems.bad_rows import BadRow
from vaopd.problems.manifest import digest
from vaopd.problems.sources import load_problems
from vaopd.training.data import read_data


@dataclass(frozen=True)
class Second(World):
    """The second process, with what the others tell it."""

    told: Any = None
    """What the main process found."""

    others: str | None = None
    """What the main process compares with its own; none = the same."""

    def on_main(self, work: Callable) -> Any:
        """Return what the main process found."""
        return self.told

    def gather(self, value: Any) -> list[Any]:
        """Return the value of the main process, and this one's."""
        return [value if self.others is None else self.others, value]


@pytest.fixture
def source(tmp_path: Path) -> str:
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    rows = [{"images": ["a.png"], "problem": f"<image>{n}?", "answer": "1"} for n in range(4)]
    path = tmp_path / "made.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_process_leaves_out_what_the_main_process_found(make_config: Callable, source: str):
    config = make_config(f"data.train={source}", "data.on_bad_row=skip")
    found = {"train": [BadRow("problem made:train:2 is bad on purpose", "made:train:2")]}
    data = read_data(config, Second(rank=1, told=found), quiet())
    assert [one.id for one in data.train] == [f"made:train:{n}" for n in (0, 1, 3)]
    assert data.num_skipped() == {"train": 1}


def test_a_process_that_reads_other_rows_than_the_first_is_an_error(
    make_config: Callable, source: str
):
    expected = digest(load_problems(source))
    # Its copy of the file lacks an image; the row would be left out here alone.
    lines = Path(source).read_text().splitlines()
    lines[1] = lines[1].replace("a.png", "gone.png")
    Path(source).write_text("\n".join(lines) + "\n")
    config = make_config(f"data.train={source}", "data.on_bad_row=skip")
    with pytest.raises(
        PeerError, match=r"^process 1 has other problems than process 0 \(data.train"
    ):
        read_data(config, Second(rank=1, told={}, others=expected), quiet())


def test_drawn_problems_are_neither_drawn_nor_left_out(make_config: Callable):
    config = make_config("data.train=drawn:train?count=1000000", "data.on_bad_row=skip")
    data = read_data(config, World(), quiet())
    assert len(data.train) == 1_000_000
    assert data.num_skipped() == {"train": 0}


def test_one_reason_is_given_for_each_bad_row(make_config: Callable, source: str, tmp_path: Path):
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    (tmp_path / "text.png").write_text("no image")
    rows[2] |= {"images": ["text.png"], "answer": None}
    Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(f"data.validation={source}", "data.on_bad_row=skip")
    (_, held_out) = read_data(config, World(), quiet()).parts
    assert [row.id for row in held_out.skipped] == ["made:train:2"]
    assert "has no answer" in held_out.skipped[0].reason
    assert len(held_out.problems) == 3


def test_held_out_images_are_decoded_whatever_is_said_of_training_images(
    make_config: Callable, source: str, tmp_path: Path
):
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    careless = "data.check_images=false"
    assert (
        len(read_data(make_config(f"data.train={source}", careless), World(), quiet()).train) == 4
    )
    with pytest.raises(ProblemError, match="cannot be decoded"):
        read_data(make_config(f"data.validation={source}", careless), World(), quiet())
