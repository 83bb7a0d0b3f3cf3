"""Reports before a run begins: sizes of images, lengths of prompts, time of a validation."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from statistics import median

from rich.console import Console

from vaopd.config import DataConfig, RunConfig
from vaopd.display import duration, with_bar
from vaopd.errors import ConfigError, ProblemError
from vaopd.models.families import Family, Size
from vaopd.models.measuring import Measured, measure
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.bad_rows import BadRow
from vaopd.problems.problem import Problem
from vaopd.problems.reading import asked_line
from vaopd.training.data import Bad, Part, RunData
from vaopd.training.schedule import problems_of_step

MUCH = 4
"""Factor of the image area above which a warning about scaling up is given."""

FIRST_TOKENS = 8
"""Number of tokens of the first responses after which the validation time is estimated."""


def check_prompts(
    data: RunData, family: Family, config: RunConfig, console: Console
) -> tuple[list[str], Bad]:
    """Return the log lines about images and prompts, and the rows that cannot be used.

    All stored prompts are measured. If the problems are generated, those of the first step are.

    Raises:
        ProblemError: There are bad rows and the recipe does not skip them, or no row is left.
    """
    measured: list[Measured] = []
    bad: Bad = {}
    if not data.parts[0].is_stored:
        first = problems_of_step(data.train, 1, config.training)
        measured += measure(first, family, config.data)[0]
    for part in data.stored:
        title = f"measuring prompts of data.{part.key}"
        work = partial(measure, part.problems, family, config.data)
        good, bad[part.key] = with_bar(console, title, len(part.problems), work)
        measured += good
        if part.key == "train" and config.method.needs.responses == "references":
            bad[part.key] += _bad_references(part.problems, family)
    data.without(bad)
    lines = describe_prompts(measured, config.data) if measured else []
    said = (asked_line(config.data), *(_teacher_line(part, config) for part in data.stored))
    return [*lines, *(line for line in said if line)], bad


def _teacher_line(part: Part, config: RunConfig) -> str:
    """Return a line about the images that only the teacher sees; '' if there are none."""
    count = sum(bool(one.teacher_images) for one in part.problems)
    if not count:
        return ""
    line = f"data.{part.key}: the teacher has images of its own for {count} of "
    unread = "" if config.loads_teacher else ", which are not read, because there is no teacher"
    return f"{line}{len(part.problems)} problems (teacher_images){unread}"


def _bad_references(problems: Sequence[Problem], family: Family) -> list[BadRow]:
    """Return the problems of which a reference contains a control token."""
    bad = []
    for problem in problems:
        try:
            for text in problem.references:
                family.control_tokens.check(problem, text, "references")
        except ProblemError as error:
            bad.append(BadRow(str(error), problem.id))
    return bad


def encode_first(data: RunData, config: RunConfig, encoder: PromptEncoder) -> None:
    """Encode the generated problems of the first step and all generated held-out problems.

    Raises:
        ProblemError: An image cannot be read, or a prompt is too long.
        ConfigError: The method compares two views, and those of the first step are equal.
    """
    first = problems_of_step(data.train, 1, config.training)
    shown = [one for one in first if not one.is_text_only]
    is_compared = config.method.needs.views == 2 and shown
    if is_compared and not any(_views_differ(one, encoder) for one in shown):
        raise ConfigError(
            f"the two views of all {len(shown)} problems of the first step are equal at view.ratio="
            f"{config.view.ratio}, so the visual advantage is 0 everywhere; lower view.ratio, or "
            "use images with detail that it removes"
        )
    drawn = [one for part in data.parts[1:] if not part.is_stored for one in part.problems]
    seen = [one.for_teacher() for one in first if one.teacher_images]
    for problem in [*first, *seen, *drawn]:
        encoder.original(problem)


def _views_differ(problem: Problem, encoder: PromptEncoder) -> bool:
    original, degraded = (prompt.image_inputs for prompt in encoder.both(problem.for_teacher()))
    return any(not values.equal(degraded[name]) for name, values in original.items())


def describe_prompts(measured: Sequence[Measured], data: DataConfig) -> list[str]:
    """Return the log lines about images and prompts, with warnings if there is a reason."""
    lengths = [one.prompt.tokens for one in measured]
    about = (
        f"prompts: {median(lengths):.0f} tokens in the median, {max(lengths)} in the longest of "
        f"{len(lengths)} looked at"
    )
    measured = [one for one in measured if one.stored]
    if not measured:
        return [about]
    middle = sorted(measured, key=lambda one: _area(one.stored[0]))[len(measured) // 2]
    (stored, fitted), visual = (middle.stored[0], middle.fitted[0]), middle.prompt.visual_tokens
    images = [pair for one in measured for pair in zip(one.stored, one.fitted, strict=True)]
    became = _size(stored) if stored == fitted else f"{_size(stored)} -> {_size(fitted)}"
    if stored != fitted:
        is_up = _area(fitted) > _area(stored)
        became += (
            f" (scaled up to data.min_pixels={data.min_pixels})"
            if is_up
            else f" (scaled down to data.max_pixels={data.max_pixels})"
        )
    if len(set(images)) > 1:
        became += f", the median of {len(images)} by area"
    return [
        f"images: {became}, {visual} visual tokens",
        about,
        *_warnings(images, data),
    ]


def _warnings(images: Sequence[tuple[Size, Size]], data: DataConfig) -> list[str]:
    growth = [_area(fitted) / _area(stored) for stored, fitted in images]
    much = [times for times in growth if times > MUCH]
    if not much:
        return []
    smallest = min(_area(stored) for stored, _ in images)
    return [
        f"warning: data.min_pixels={data.min_pixels} scales {len(much)} of {len(images)} images "
        f"up by more than {MUCH}x in area (the median of them by {median(much):.0f}x), which adds "
        f"visual tokens and no detail; the smallest image has {smallest} pixels, so "
        f"data.min_pixels={smallest} leaves all of that size and above as they are"
    ]


def _area(size: Size) -> int:
    return size[0] * size[1]


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


class ValidationTime:
    """Estimates the sampling time of a validation from the speed of its first tokens.

    Measurements on the finished responses (``validation.pixelated``) take additional time.
    """

    def __init__(
        self,
        config: RunConfig,
        num_problems: int,
        processes: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = config.validation
        self.num_problems = num_problems
        self.num_samples = options.num_samples
        self.views = 2 if options.pixelated else 1
        self.limit = config.sampling.max_new_tokens
        self.processes = processes
        self.sampled = options.sampled_answers
        has_teacher = config.method.needs.teacher or options.load_teacher
        self.beside = ""
        if options.load_teacher or (options.pixelated and has_teacher):
            self.beside = f"; scoring {'both views' if options.pixelated else 'them'} comes on top"
        self.say = say
        self.clock = clock
        self.is_told = False
        self.began = self.first_token = 0.0

    @property
    def of_each(self) -> int:
        """Number of responses to each problem."""
        return self.num_samples * self.views + self.sampled

    @property
    def responses(self) -> int:
        """Number of responses of all processes."""
        return self.num_problems * self.of_each

    def describe(self) -> str:
        """Return a sentence with the number of responses that a validation samples."""
        samples = f"{self.num_samples}{' x 2 views' if self.views == 2 else ''}"
        if self.sampled:
            samples = f"({samples} + {self.sampled} at temperature 1)"
        return (
            f"a validation samples {self.num_problems} problems x {samples} = "
            f"{self.responses} responses of at most {self.limit} tokens"
        )

    def on_token(self, rows: int, tokens: int) -> None:
        """Show the longest expected time once, after some tokens of the first responses.

        Args:
            rows: Number of responses that are decoded together.
            tokens: Tokens of each response so far; 0 before the forward over their prompts.
        """
        if self.is_told:
            return
        now = self.clock()
        if tokens == 0:
            self.began = now
        elif tokens == 1:
            self.first_token = now
        elif tokens == min(FIRST_TOKENS, self.limit):
            self.is_told = True
            own = ceil(self.num_problems / self.processes) * self.of_each
            a_token = (now - self.first_token) / (tokens - 1)
            a_batch = self.first_token - self.began + (self.limit - 1) * a_token
            seconds = ceil(own / rows) * a_batch
            self.say(
                f"sampling them takes at most about {duration(seconds)}, if every response runs to "
                f"{self.limit} tokens ({rows} at a time, {a_token:.3f} s a token){self.beside}"
            )
