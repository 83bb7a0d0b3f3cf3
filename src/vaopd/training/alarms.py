"""Warns about runs that learn little or collapse; each warning is given once, with its cause."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaopd.config import RunConfig
from vaopd.config.methods import AdvantageOptions, RolloutOptions, options_of
from vaopd.errors import TrainingError
from vaopd.evaluation.validation import ValidationResult
from vaopd.records import append_row, read_rows

WARNINGS_FILE = "warnings.jsonl"

ENOUGH_RESPONSES = 16
"""Number of consecutive responses that a warning needs. If one response in five is different, 16
equal ones in a row occur by chance in 3 % of cases (0.8 ** 16)."""

NO_ADVANTAGE_NATS = 1e-3
"""Mean advantage that counts as zero. The paper reports 0.07 to 0.16 nats, the demo has 0.11 to
0.26; at 0.001, tokens are only 0.1 % more probable with the image detail than without it."""

REPEATED_SHARE = 0.5
"""Mean share of repeated runs of four tokens that counts as a loop."""

LENGTH_FACTOR = 4.0
"""Change of the mean length since the first step that counts as a collapse or a growth."""

STOPS = {"zero_advantage"}
"""Warnings that end a run."""

OF_IMAGES = {"no_advantage", "zero_advantage", "two_siblings"}
"""Warnings about responses to problems with an image; others do not count for them."""

WEIGHT_TOLERANCE = 1e-3
"""If two siblings differ by 0.001 nats or more, ``method.epsilon`` moves the weights by less."""


def step_warnings(row: dict[str, Any], config: RunConfig) -> dict[str, str]:
    """Return the warnings that apply to all responses of a ``metrics.jsonl`` row, by name."""
    found = _response_warnings(
        row["response/truncated_share"], row.get("response/unparsed_share"), config
    )
    advantage, method = row.get("va/mean"), options_of(config.method)
    # Signed advantages can add up to zero.
    is_signed = isinstance(method, AdvantageOptions) and method.advantage == "signed"
    if advantage is not None and not is_signed:
        found |= _advantage_warnings(advantage)
    found |= _collapse_warnings(row, config)
    if row.get("reward/equal_share") == 1:
        found["equal_rewards"] = (
            "the siblings of every problem have the same reward, all right or all wrong, so they "
            "have advantage 0 and only the other terms of the loss teach; raise "
            "sampling.num_rollouts, or use problems that the student answers sometimes"
        )
    if isinstance(method, RolloutOptions) and config.sampling.num_rollouts == 2:
        found |= _sibling_warnings(row.get("weights/rollout_max", 0.0), method)
    return found


def _collapse_warnings(row: dict[str, Any], config: RunConfig) -> dict[str, str]:
    """Return the warnings about responses that loop or are all the same."""
    found = {}
    if row.get("response/repeated_share", 0.0) >= REPEATED_SHARE:
        found["repetition"] = (
            f"{row['response/repeated_share']:.0%} of each response repeats what it said before: "
            "the student writes in loops; lower training.learning_rate or go back to "
            "checkpoints/best, and read some responses with vaopd inspect"
        )
    if config.sampling.num_rollouts > 1 and row.get("response/same_share", 0.0) == 1:
        found["same_responses"] = (
            "every response equals another one to its problem: the student's distribution has next "
            "to no entropy, so siblings teach nothing new; raise sampling.temperature or lower "
            "training.learning_rate"
        )
    return found


def _sibling_warnings(largest_weight: float, method: RolloutOptions) -> dict[str, str]:
    """Return a warning if the weights of two siblings show only which has the larger advantage."""
    order_only = 1 / (1 + math.exp(-2 / method.rollout_temperature))
    if method.deviation_floor > 0 or abs(largest_weight - order_only) >= WEIGHT_TOLERANCE:
        return {}
    return {
        "two_siblings": (
            f"the weights of two siblings are always {order_only:.3f} and {1 - order_only:.3f}: "
            "their standardised advantages are 1 and -1 whatever their size, so only the order "
            "counts; use sampling.num_rollouts=4, as published"
        )
    }


def validation_warnings(result: ValidationResult, config: RunConfig) -> dict[str, str]:
    """Return the warnings that apply to all responses of a validation, by name."""
    found = _response_warnings(result.truncated, result.unparsed, config)
    # This is the mean of the high group only; the mean of all tokens is even lower.
    if result.teacher_va is not None:
        found |= _advantage_warnings(result.teacher_va)
    return found


def _response_warnings(
    truncated: float, unparsed: float | None, config: RunConfig
) -> dict[str, str]:
    if truncated == 1:
        # This also explains why no response has an answer.
        return {
            "truncated": "all responses were cut off at sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens}: raise it; if they end at no length, the model does "
            "not write its end token"
        }
    if unparsed == 1:
        return {
            "unparsed": "no response has an answer that is recognised, so none can be right: the "
            "prompts may not ask for \\boxed{..} or 'answer: ..', or the student does not follow "
            "them; read some responses with vaopd inspect"
        }
    return {}


def _advantage_warnings(nats: float) -> dict[str, str]:
    if nats >= NO_ADVANTAGE_NATS:
        return {}
    name = "no_advantage" if nats else "zero_advantage"
    return {
        name: f"the mean visual advantage is {nats:.1g} nats, which is none: the two views may be "
        "equal (view.ratio too high, images too small to lose detail), or the teacher does not use "
        "the image; compare the images of both views with vaopd inspect"
    }


class Alarms:
    """Shows each warning of a run once and records it in ``warnings.jsonl``."""

    def __init__(self, config: RunConfig, output: Path, say: Callable[[str], None]) -> None:
        self.config = config
        self.path = output / WARNINGS_FILE
        self.say = say
        self.responses: dict[str, Counter[str]] = {"training": Counter(), "validation": Counter()}
        """Maps a warning to the number of consecutive responses that gave a reason for it."""

    def watch_step(
        self, row: dict[str, Any], num_responses: int, num_about_images: int | None = None
    ) -> None:
        """Warn if a step and the steps before it give a reason; only in the main process.

        Args:
            row: The step's row of ``metrics.jsonl``.
            num_responses: Number of its responses.
            num_about_images: Of these, to problems with an image; None = all.

        Raises:
            TrainingError: The visual advantage was 0 at every token.
        """
        found = step_warnings(row, self.config) | self._length_warnings(row)
        about = num_responses if num_about_images is None else num_about_images
        self._watch("training", row["step"], found, (num_responses, about))

    def first_row(self) -> dict[str, Any]:
        """Return the numbers of the first step, from disk; empty before it."""
        path = self.path.with_name("metrics.jsonl")
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8") as rows:
            return json.loads(rows.readline())

    def _length_warnings(self, row: dict[str, Any]) -> dict[str, str]:
        """Return a warning if responses are much shorter or longer than in the first step."""
        first, length = self.first_row().get("response/length"), row.get("response/length")
        if not first or not length or 1 / LENGTH_FACTOR < length / first < LENGTH_FACTOR:
            return {}
        return {
            "length": f"responses have {length:.0f} tokens on average and had {first:.0f} in the "
            "first step; read some with vaopd inspect, and lower training.learning_rate if they "
            "lost their content"
        }

    def watch_validation(self, step: int, result: ValidationResult, num_responses: int) -> None:
        """Warn if a validation and those before it give a reason; only in the main process."""
        found = validation_warnings(result, self.config)
        self._watch("validation", step, found, (num_responses, num_responses))

    def raised(self) -> list[dict[str, Any]]:
        """Return the warnings so far: step, name, text."""
        # Read from disk: a resumed run has deleted the warnings of steps that it repeats.
        return read_rows(self.path) if self.path.is_file() else []

    def _watch(
        self, source: str, step: int, found: dict[str, str], counts: tuple[int, int]
    ) -> None:
        before, (num_responses, num_about_images) = self.responses[source], counts
        streaks = Counter(
            {
                name: before[name] + (num_about_images if name in OF_IMAGES else num_responses)
                for name in found
            }
        )
        if not num_about_images:  # the step says nothing about them
            streaks |= Counter({name: before[name] for name in OF_IMAGES})
        self.responses[source] = streaks
        due = [name for name in found if streaks[name] >= ENOUGH_RESPONSES]
        known = {row["name"] for row in self.raised()} if due else set()
        for name in due:
            if name in STOPS and source == "training":
                raise TrainingError(f"{found[name]}; the run ends here")
            if name not in known:
                append_row(self.path, {"step": step, "name": name, "text": found[name]})
                self.say(f"warning: {found[name]}")
