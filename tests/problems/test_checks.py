import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vaopd.errors import ProblemError
from vaopd.problems.checks import damaged_images, without_answer, without_reference
from vaopd.problems.problem import Problem


def png(width: int = 40, height: int = 30) -> bytes:
    encoded = io.BytesIO()
    Image.effect_noise((width, height), 90).save(encoded, "PNG")
    return encoded.getvalue()


def problem(id: str, *images: bytes | Path, answer: str | None = "1") -> Problem:
    return Problem(id, "<image>" * len(images), images, answer, "made", "train", ("So 1.",))


def test_every_problem_with_a_damaged_image_is_found(tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    problems = [
        problem("good", png()),
        problem("cut", png(), png()[:200]),
        problem("text", tmp_path / "text.png"),
        problem("gone", tmp_path / "gone.png"),
        problem("other", png()),
    ]
    seen: list[int] = []
    bad = damaged_images(problems, seen.append)
    assert [row.id for row in bad] == ["cut", "text", "gone"]
    assert bad[0].reason.startswith("image 2 of problem cut cannot be decoded")
    assert sum(seen) == 5


def test_sizes_are_read_from_headers_alone(tmp_path: Path):
    (tmp_path / "cut.png").write_bytes(png(40, 30)[:60])
    (tmp_path / "whole.png").write_bytes(png(7, 9))
    one = problem("p", png(20, 10)[:60], tmp_path / "cut.png", tmp_path / "whole.png")
    assert one.image_sizes() == [(20, 10), (40, 30), (7, 9)]


@pytest.mark.parametrize(
    ("image", "fault"), [(b"no image", "cannot be decoded"), (Path("gone.png"), "cannot be read")]
)
def test_an_image_without_a_header_is_named_with_its_number(image: bytes | Path, fault: str):
    with pytest.raises(ProblemError, match=rf"image 2 of problem p.* {fault}"):
        problem("p", png(), image).image_sizes()


def test_problems_without_answer_or_reference_are_found():
    problems = [problem(name, png()) for name in "abc"]
    problems[1] = replace(problems[1], answer=None)
    problems[2] = replace(problems[2], references=())
    assert [row.id for row in without_answer(problems)] == ["b"]
    assert [row.id for row in without_reference(problems)] == ["c"]
