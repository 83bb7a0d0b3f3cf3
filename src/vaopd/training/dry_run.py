"""Checks local data for ``vaopd train --dry-run``, in addition to the recipe."""

from collections.abc import Sequence
from itertools import islice

from vaopd.config import RunConfig
from vaopd.errors import ProblemError
from vaopd.problems.bad_rows import BadRow, bad_rows_error
from vaopd.problems.checks import damaged_images, without_answer, without_image, without_reference
from vaopd.problems.files import count_rows
from vaopd.problems.problem import Problem
from vaopd.problems.reading import asked_line, placed_problems, reading_rules
from vaopd.problems.sources import Location, locate, read_source
from vaopd.training.backends import check_installed
from vaopd.training.schedule import total_steps

FIRST_ROWS = 16
"""Number of rows of a stored source that are read."""


def dry_run(config: RunConfig) -> list[str]:
    """Return one line per check, and lines for what was not checked; loads no model.

    Raises:
        ConfigError: A source has invalid options, or fewer problems than the recipe needs; or a
            tracker is not installed.
        ProblemError: A source does not exist, cannot be read or begins with bad rows.
    """
    check_installed(config.tracking)
    found: list[str] = []
    unseen: list[str] = []
    for key, source in (("train", config.data.train), ("validation", config.data.validation)):
        if not source:
            continue
        count, line = _source(key, source, config)
        (unseen if count is None else found).append(line)
        if key == "train" and count is not None:
            steps = total_steps(config.training, count)
            found.append(f"steps: {steps} of {config.training.problems_per_step} problems")
    if line := asked_line(config.data):
        found.append(line)
    return [*found, f"not checked: {'; '.join([*unseen, *_not_checked(config)])}"]


def _source(key: str, source: str, config: RunConfig) -> tuple[int | None, str]:
    """Return the number of problems of a source, if it is known, and a line about the source."""
    if source.startswith("drawn:"):
        problems, _ = read_source(source, rules=reading_rules(config.data))
        problems[0]
        return len(problems), f"data.{key}: {len(problems)} problems that are drawn"
    location = locate(source)
    if location.stream is not None:
        return location.stream.count, f"data.{key}: {location.stream}, of {location.hub.full}"
    if location.path is None:
        return None, f"data.{key}={source}, which is on the hub"
    rows = count_rows(location.path, location.split, config.data.columns or {})
    if not rows:
        raise ProblemError(f"data.{key}={source} has no rows; check that it was written completely")
    taken = location.chosen(rows)
    first = taken[:FIRST_ROWS]
    good, num_bad = _first_problems(location, f"data.{key}={source}", first, key, config)
    shown = next((one for one in good if not one.is_text_only), good[0])
    sizes = " and ".join(f"{w} x {h}" for w, h in shown.image_sizes()) or "in a later row"
    left_out = f" ({num_bad} are left out)" if num_bad else ""
    return len(taken), (
        f"data.{key}: {len(taken)} of {rows} rows of {location.path}; the first {len(first)} can "
        f"be read{left_out}, the first image is {sizes}"
    )


def _first_problems(
    location: Location, name: str, rows: Sequence[int], key: str, config: RunConfig
) -> tuple[Sequence[Problem], int]:
    """Return the problems of the first rows that are used, and the number of bad rows in them."""
    rules = reading_rules(config.data)
    read = islice(location.rows(rules.columns), rows[-1] + 1)
    placed = placed_problems(read, location.name, location.split, rules)
    wanted = set(rows)
    found = [one for index, (_, one) in enumerate(placed) if index in wanted]
    problems = [one for one in found if isinstance(one, Problem)]
    bad = [one for one in found if isinstance(one, BadRow)] + damaged_images(problems[:1])
    if key == "validation":
        bad += without_answer(problems)
        bad += without_image(problems) if config.validation.pixelated else []
    elif not config.method.needs.sampling:
        bad += without_reference(problems)
    ids = {row.id for row in bad}
    good = [one for one in problems if one.id not in ids]
    if bad and (config.data.on_bad_row == "error" or not good):
        remedy = "data.on_bad_row=skip goes on without bad rows"
        raise bad_rows_error(name, bad, len(rows), remedy)
    return good, len(found) - len(good)


def _not_checked(config: RunConfig) -> list[str]:
    teacher, vllm = config.teacher, config.sampling.vllm
    names = [config.student.model]
    if config.loads_teacher:
        names += [] if teacher.addresses else [teacher.model]
    servers = [
        *teacher.addresses,
        *(vllm.addresses if config.sampling.engine != "transformers" else ()),
    ]
    return [
        "all other rows and images, and how long prompts are, which a run checks before it begins",
        f"the weights of {' and '.join(dict.fromkeys(names))}",
        *([f"the servers {', '.join(servers)}"] if servers else ()),
    ]
