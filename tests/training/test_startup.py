import io
from collections.abc import Callable

import pytest
from rich.console import Console

from vaopd import display
from vaopd.config import DataConfig
from vaopd.display import Display, duration
from vaopd.models.families import PromptSize, Size
from vaopd.models.measuring import Measured
from vaopd.training.startup import ValidationTime, describe_prompts

DATA = DataConfig(train="", min_pixels=10_000, max_pixels=40_000)


def measured(stored: Size, fitted: Size, tokens: int = 100, visual: int = 60) -> Measured:
    return Measured(PromptSize(tokens, visual), (stored,), (fitted,))


def test_images_inside_the_pixel_budget_are_said_to_stay():
    lines = describe_prompts([measured((120, 100), (120, 100))], DATA)
    assert lines[0] == "images: 120 x 100, 60 visual tokens"
    assert len(lines) == 2


def test_the_image_in_the_middle_stands_for_all():
    some = [
        measured((300, 300), (200, 200), tokens=900, visual=800),
        measured((90, 100), (105, 94), tokens=150, visual=70),
        measured((100, 100), (100, 100), tokens=200, visual=100),
        measured((80, 100), (111, 89), tokens=120, visual=65),
        measured((400, 300), (230, 173), tokens=1000, visual=810),
    ]
    assert describe_prompts(some, DATA) == [
        "images: 100 x 100, the median of 5 by area, 100 visual tokens",
        "prompts: 200 tokens in the median, 1000 in the longest of 5 looked at",
    ]


def test_scaling_down_names_its_key():
    (line, _) = describe_prompts([measured((300, 300), (200, 200))], DATA)
    assert line == (
        "images: 300 x 300 -> 200 x 200 (scaled down to data.max_pixels=40000), 60 visual tokens"
    )


@pytest.mark.parametrize(
    ("stored", "is_warned"),
    # 2500 x 4 are the 10,000 of the budget.
    [((50, 50), False), ((49, 50), True)],
)
def test_more_than_fourfold_areas_are_warned_of(stored: Size, is_warned: bool):
    lines = describe_prompts([measured(stored, (100, 100))], DATA)
    assert any(line.startswith("warning:") for line in lines) == is_warned


def test_the_warning_counts_images_and_names_key_and_a_value_that_ends_it():
    some = [
        measured((20, 20), (100, 100)),
        measured((25, 40), (79, 126)),
        measured((100, 100), (100, 100)),
    ]
    warning = describe_prompts(some, DATA)[-1]
    # 10,000 / 400 is 25 and 9954 / 1000 is 10; in the middle of the two: 17.5.
    assert warning == (
        "warning: data.min_pixels=10000 scales 2 of 3 images up by more than 4x in area (the "
        "median of them by 17x), which adds visual tokens and no detail; the smallest image has "
        "400 pixels, so data.min_pixels=400 leaves all of that size and above as they are"
    )


# --- the time of a validation ---------------------------------------------------------------


def timed(make_config: Callable, processes: int, *overrides: str) -> tuple[ValidationTime, list]:
    """Return an estimate whose clock reads 0, 1, 2, .. seconds, and what it says."""
    said: list[str] = []
    seconds = iter(range(100))
    config = make_config("validation.num_samples=4", "sampling.max_new_tokens=101", *overrides)
    clock = lambda: float(next(seconds))  # noqa: E731
    return ValidationTime(config, 10, processes, said.append, clock), said


def test_the_time_of_a_validation_is_told_once_from_its_first_tokens(make_config: Callable):
    estimate, said = timed(make_config, 1)
    for tokens in range(9):
        assert said == [] or tokens == 8
        estimate.on_token(8, tokens)
    # Before the prompts at 0 s, the first token at 1 s, the eighth at 8 s: a second a token.
    # 40 responses, 8 at a time: 5 batches of 1 + 100 seconds.
    assert said == [
        "sampling them takes at most about 8 min, if every response runs to 101 tokens (8 at a "
        "time, 1.000 s a token)"
    ]
    for tokens in range(9):
        estimate.on_token(8, tokens)
    assert len(said) == 1


def test_processes_share_the_time_and_two_views_double_it(make_config: Callable):
    # Each of three processes has at most 4 problems, so 16 responses of each view.
    estimate, said = timed(make_config, 3, "validation.pixelated=true")
    for tokens in range(9):
        estimate.on_token(16, tokens)
    assert said[0].startswith("sampling them takes at most about 3 min")
    assert said[0].endswith("; scoring both views comes on top")
    assert estimate.describe() == (
        "a validation samples 10 problems x 4 x 2 views = 80 responses of at most 101 tokens"
    )


def test_sampled_answers_count_beside_the_others(make_config: Callable):
    estimate, said = timed(
        make_config, 1, "validation.sampled_answers=6", "validation.load_teacher=true"
    )
    assert estimate.describe() == (
        "a validation samples 10 problems x (4 + 6 at temperature 1) = 100 responses of at most "
        "101 tokens"
    )
    for tokens in range(9):
        estimate.on_token(16, tokens)
    assert said[0].endswith("; scoring them comes on top")


def test_a_validation_without_a_teacher_scores_nothing(make_config: Callable):
    estimate, said = timed(make_config, 1, "validation.pixelated=true", "method.name=sft")
    for tokens in range(9):
        estimate.on_token(8, tokens)
    assert said[0].endswith("s a token)")


def test_responses_that_end_at_once_tell_nothing(make_config: Callable):
    estimate, said = timed(make_config, 1)
    for _ in range(3):
        for tokens in range(4):
            estimate.on_token(8, tokens)
    assert said == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (9000.0, "2.5 h")],
)
def test_times_are_said_in_the_unit_one_reads_them_in(seconds: float, text: str):
    assert duration(seconds) == text


def test_long_work_is_followed_in_a_log_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    text = io.StringIO()
    shown = Display(Console(file=text, width=200))
    bar = shown.start("checking", 4)
    shown.advance(bar, 1)
    assert text.getvalue() == ""
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    for _ in range(3):
        shown.advance(bar, 1)
    lines = [line.partition(", about ")[0] for line in text.getvalue().splitlines()]
    # The end is told by whoever did the work.
    assert lines == ["checking: 2/4", "checking: 3/4"]
