"""Options of choice questions: their lines in a prompt, and the verdict on the chosen one."""

from collections.abc import Mapping, Sequence

from vaopd.evaluation.benchmark import Item, Verdict, verdict_of
from vaopd.grading.grades import grade_choice
from vaopd.grading.naming import LETTERS
from vaopd.grading.reading import Rule


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Return options by letter, starting at A."""
    return {LETTERS[index]: text for index, text in enumerate(options)}


def option_lines(options: Mapping[str, str], pattern: str = "{letter}. {text}") -> str:
    """Return the options as text, one line for each."""
    return "\n".join(pattern.format(letter=k, text=v) for k, v in options.items())


def grade_letter(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict on the chosen letter: right if it is the letter of the reference."""
    reference = item.reference
    return verdict_of(
        grade_choice(
            response,
            reference["answer"],
            reference["options"],
            rule=rule,
            is_truncated=is_truncated,
        )
    )
