"""The result of a run, and its text and JSON forms."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vaopd.evaluation.validation import ValidationResult
from vaopd.training.best import Best


@dataclass(frozen=True)
class RunResult:
    """The folder and the results of a finished run."""

    output: Path
    steps: int
    before: ValidationResult | None
    after: ValidationResult | None
    seconds: float
    best: Best | None = None
    """The validation whose model ``checkpoints/best`` holds."""
    skipped_steps: int = 0
    """Steps that were skipped because their loss was a spike, or it or its gradient not finite."""
    is_stopped: bool = False
    """Whether a request stopped the run before its last step; ``steps`` counts the steps taken."""
    skipped_rows: dict[str, int] = field(default_factory=dict)
    """Number of bad rows of ``train`` and of ``validation`` that were left out."""
    text_only: dict[str, int] = field(default_factory=dict)
    """Number of problems of ``train`` and of ``validation`` that have no image."""


def describe(result: ValidationResult) -> str:
    """Return a line of text that describes a validation."""
    text = f"accuracy {result.accuracy:.1%}"
    if result.accuracy_sampled is not None:
        text += f", sampled {result.accuracy_sampled:.1%}"
    if result.teacher_kl is not None:
        text += f", KL to the teacher {result.teacher_kl:.3f} nats"
    if result.accuracy_pixelated is not None:
        text += f", pixelated {result.accuracy_pixelated:.1%}"
    if result.student_va is not None:
        text += f", student VA {result.student_va:.3f} nats (teacher {result.teacher_va:.3f})"
    return f"{text}, unparsed {result.unparsed:.1%}, truncated {result.truncated:.1%}"


def summary(
    result: RunResult, warnings: list[dict[str, Any]], noise_floor: float | None
) -> dict[str, Any]:
    """Return the content of ``summary.json``: the result, warnings, and the noise floor of VA."""

    def numbers(validation: ValidationResult | None) -> dict[str, Any] | None:
        return None if validation is None else asdict(validation)

    return {
        "before": numbers(result.before),
        "after": numbers(result.after),
        "best": asdict(result.best) if result.best else None,
        "steps": result.steps,
        "skipped_steps": result.skipped_steps,
        "seconds": result.seconds,
        "warnings": warnings,
        "noise_floor": noise_floor,
        "skipped_rows": result.skipped_rows,
        "text_only": result.text_only,
    }
