"""Rows whose teacher sees images of its own: what the student sees stays as it is."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor

from vaopd.config import RunConfig, parse_config
from vaopd.errors import ConfigError
from vaopd.evaluation.validation import Validator
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.problem import Problem
from vaopd.records import read_json, read_rows, write_rows
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.rollout_file import score_file
from vaopd.training.run import train
from vaopd.training.step import Step

Pixels = list[Tensor]


def larger(problem: Problem) -> tuple[bytes, ...]:
    """Return the negatives of a problem's images at twice their size."""
    found = []
    for image in problem.load_images():
        inverted = ImageOps.invert(image.convert("RGB"))
        stream = io.BytesIO()
        inverted.resize((image.width * 2, image.height * 2)).save(stream, "PNG")
        found.append(stream.getvalue())
    return tuple(found)


@pytest.fixture
def annotated(problems: list[Problem]) -> list[Problem]:
    """Two problems, of which the second has an image for the teacher."""
    return [problems[0], replace(problems[1], teacher_images=larger(problems[1]))]


@contextmanager
def seen(model: VisionLanguageModel) -> Iterator[Pixels]:
    """Yield a list to which every forward of a model adds the pixels that it is given."""
    pixels: Pixels = []
    handle = model.base.register_forward_pre_hook(
        lambda module, args, kwargs: pixels.append(kwargs["pixel_values"]) or None, with_kwargs=True
    )
    yield pixels
    handle.remove()


def take(step: Step, problems: list[Problem]) -> tuple[Any, Pixels, Pixels]:
    """Return the result of a step, and the pixels that student and teacher saw."""
    assert isinstance(step.teacher, LocalTeacher)
    with seen(step.student) as student, seen(step.teacher.model) as teacher:
        return step.run(problems, 1), student, teacher


def equal(one: Pixels, two: Pixels) -> bool:
    return len(one) == len(two) and all(a.equal(b) for a, b in zip(one, two, strict=True))


@pytest.fixture(params=["true", "false"])
def layout(
    request: pytest.FixtureRequest, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Pack siblings in the forwards of both models, or in none."""
    monkeypatch.setattr(teacher, "share_prefix", request.param == "true")
    return f"training.share_prefix={request.param}"


def test_the_teacher_sees_its_own_images_and_the_student_does_not(
    layout: str, make_step: Callable[..., Step], problems: list[Problem], annotated: list[Problem]
):
    step = make_step(layout)
    result, student, teacher = take(step, annotated)
    plain, plain_student, plain_teacher = take(make_step(layout), problems)
    assert equal(student, plain_student)
    assert not equal(teacher, plain_teacher)
    # Both views are those of a problem whose images are the teacher's.
    views = [step.pipeline.encoder.both(one.for_teacher()) for one in annotated]
    responses = [[torch.tensor(r.response_ids) for r in result.rollouts[n : n + 3]] for n in (0, 3)]
    assert step.teacher is not None
    direct = step.teacher.score([o for o, _ in views], [d for _, d in views], responses)
    assert equal(result.scores.original_logprobs, direct.original_logprobs)
    assert equal(result.scores.degraded_logprobs, direct.degraded_logprobs or [])
    assert not result.weights.token.equal(plain.weights.token)


@pytest.mark.parametrize("method", ["va_opd", "opd"])
def test_images_of_the_teacher_that_are_those_of_the_student_change_no_bit(
    method: str, layout: str, make_step: Callable[..., Step], problems: list[Problem]
):
    same = [replace(one, teacher_images=one.images) for one in problems]
    one, two = (make_step(f"method.name={method}", layout) for _ in range(2))
    first, second = one.run(problems, 1), two.run(same, 1)
    assert first.loss == second.loss
    assert first.weights.token.equal(second.weights.token)
    assert equal(first.token_divergence, second.token_divergence)
    parameters = zip(one.student.model.parameters(), two.student.model.parameters(), strict=True)
    assert all(a.equal(b) for a, b in parameters)


def test_a_teacher_that_writes_the_responses_sees_its_own_images(
    make_step: Callable[..., Step], annotated: list[Problem]
):
    step = make_step("method.name=off_policy_kd")
    asked: Pixels = []
    sample = step.pipeline.sampler.sample
    step.pipeline.sampler.sample = lambda prompts, settings: (  # type: ignore[method-assign]
        asked.extend(one.image_inputs["pixel_values"] for one in prompts)
        or sample(prompts, settings)
    )
    with seen(step.student) as learned:
        step.run(annotated, 1)
    encoder = step.pipeline.encoder
    pixels = [encoder.original(one).image_inputs["pixel_values"] for one in annotated]
    own = encoder.original(annotated[1].for_teacher()).image_inputs["pixel_values"]
    assert equal(asked, [pixels[0], own])
    assert sorted(map(len, torch.cat(learned)[None])) == [sum(map(len, pixels))]


def test_a_validation_gives_the_teacher_its_own_images(
    sharp_student: VisionLanguageModel,
    teacher: LocalTeacher,
    make_config: Callable[..., RunConfig],
    annotated: list[Problem],
):
    config = make_config(
        "validation.pixelated=true",
        "validation.load_teacher=true",
        "sampling.max_new_tokens=4",
        "data.validation=python:validation",
    )

    def validated(problem: Problem) -> Any:
        return Validator(config, [problem], teacher).run(sharp_student)

    with_both = validated(annotated[1])
    plain = validated(replace(annotated[1], teacher_images=()))
    assert with_both.accuracy == plain.accuracy
    assert with_both.teacher_va != plain.teacher_va
    assert with_both.teacher_kl != plain.teacher_kl


def stored(folder: Path, problems: list[Problem], **cells: Any) -> Path:
    """Write problems as rows of JSONL with their images as files."""
    rows = []
    for number, one in enumerate(problems):
        names = [f"{number}.png", f"{number}-teacher.png"]
        for name, images in zip(names, (one.images, one.for_teacher().images), strict=True):
            assert isinstance(images[0], bytes)
            (folder / name).write_bytes(images[0])
        row = {"problem": one.prompt, "images": names[:1], "answer": one.answer, **cells}
        rows.append(row | ({"teacher_images": names[1:]} if one.teacher_images else {}))
    write_rows(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def test_scored_rollouts_are_scored_and_shown_with_the_images_of_the_teacher(
    teacher: LocalTeacher, tmp_path: Path, annotated: list[Problem]
):
    config = parse_config(
        {
            "student": {"model": "tiny:student"},
            "data": {"train": "-", "min_pixels": 1024, "max_pixels": 1048576},
        }
    )
    as_image = replace(annotated[1].for_teacher(), id="other")
    files = []
    for number, one in enumerate((annotated[1], as_image)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = stored(folder, [one], response="It is 5.")
        score_file(path, folder / "scored.jsonl", teacher, config)
        files.append(json.loads((folder / "scored.jsonl").read_text()))
    for column in ("visual_advantage", "original_images", "degraded_images"):
        assert files[0][column] == files[1][column]


def test_a_run_shows_says_and_resumes_what_the_teacher_saw(
    make_config: Callable[..., RunConfig], tmp_path: Path, annotated: list[Problem]
):
    path = stored(tmp_path, annotated)
    config = make_config(
        f"data.train={path}", "training.max_steps=1", "training.log_rollouts_every=1"
    )
    text = io.StringIO()
    train(config, tmp_path / "run", console=Console(file=text, width=200))
    assert "data.train: the teacher has images of its own for 1 of 2 problems" in text.getvalue()
    rows = read_rows(tmp_path / "run" / "rollouts" / "step_000001.jsonl")
    images = {row["problem_id"]: row for row in rows}
    plain, own = (images[id] for id in sorted(images))
    assert "teacher_images" not in plain
    sizes = {}
    for name in ("images", "teacher_images", "degraded_images"):
        with Image.open(tmp_path / "run" / "rollouts" / own[name][0]) as image:
            sizes[name] = image.size
    assert sizes["teacher_images"] == sizes["degraded_images"] != sizes["images"]
    # Without the column it is another run.
    before = read_json(tmp_path / "run" / "manifest.json")
    bare = [{k: v for k, v in row.items() if k != "teacher_images"} for row in read_rows(path)]
    path.unlink()
    write_rows(path, bare)
    with pytest.raises(ConfigError, match=r"data\.train has changed"):
        train(config, tmp_path / "run", resume=True, console=Console(file=io.StringIO()))
    assert read_json(tmp_path / "run" / "manifest.json") == before


def test_a_run_without_a_teacher_says_that_its_images_are_not_read(
    make_config: Callable[..., RunConfig], tmp_path: Path, annotated: list[Problem]
):
    path = stored(tmp_path, annotated, references=["It is 5."])
    text = io.StringIO()
    config = make_config(f"data.train={path}", "method.name=sft", "training.max_steps=1")
    train(config, tmp_path / "run", console=Console(file=text, width=200))
    assert "are not read, because there is no teacher" in text.getvalue()


def test_an_encoder_measures_and_checks_the_images_of_the_teacher(
    encoder: PromptEncoder, make_config: Callable[..., RunConfig], annotated: list[Problem]
):
    from vaopd.models.measuring import measure

    prompts = [encoder.original(one) for one in (annotated[1], annotated[1].for_teacher())]
    assert len(prompts[0]) < len(prompts[1])
    data = make_config(f"data.max_prompt_tokens={len(prompts[1]) - 1}").data
    measured, bad = measure(annotated, encoder.family, data)
    assert [one.prompt.tokens for one in measured] == [len(encoder.original(annotated[0]))]
    assert [row.id for row in bad] == [annotated[1].id]
    assert bad[0].reason.startswith("teacher_images: problem ")
