"""MMMU validation: college-level questions from 30 subjects, some with several images."""

import re
from collections.abc import Mapping, Sequence

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    OFFICIAL,
    Benchmark,
    ImageSource,
    Item,
    Row,
    Verdict,
    by_reference_category,
    image_first,
    verdict_of,
)
from vaopd.evaluation.benchmarks.ai2d import ASK_LETTER
from vaopd.evaluation.options import option_lines
from vaopd.grading.equality import is_equal
from vaopd.grading.grades import grade_choice, graded
from vaopd.grading.reading import Rule, read_answer
from vaopd.problems.problem import IMAGE_PLACEHOLDER

ASK_PHRASE = "Answer the question using a single word or phrase."
SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory",
    "Basic_Medical_Science", "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science",
    "Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics",
    "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage", "Marketing",
    "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip
_PLACE = re.compile(r"<image (\d)>")
_ID = re.compile(r"validation_(\w+?)_\d+")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?[eE][+-]?\d{1,3}")
_SIMPLE = re.compile(r"-?(?:\d{1,30}\.\d{1,30}|\.\d{1,30}|\d{1,30}\b)(?![eE][+-]?\d|[,\d])")


def item(row: Row) -> Item | None:
    """Return one question; each image replaces its placeholder ``<image k>``."""
    id = cells.required(row, "id", "index")
    if cells.text(row, "split") in ("dev", "test") or id.startswith(("dev_", "test_")):
        return None
    question = cells.required(row, "question")
    choices = cells.options(row)
    # The TSV of VLMEvalKit has no question types, but open items have no options there.
    kind = cells.text(row, "question_type") or ("multiple-choice" if choices else "open")
    is_choice = kind == "multiple-choice"
    text = f"{question}\n{option_lines(choices)}\n\n{ASK_LETTER}" if is_choice else ""
    prompt, images = _interleave(text or f"{question}\n\n{ASK_PHRASE}", row)
    named = _ID.fullmatch(id)
    return Item(
        id=id,
        prompt=prompt,
        images=images,
        reference={
            "answer": cells.answer_letter(row, choices) if is_choice else _open_answers(row),
            "options": choices if is_choice else {},
            "category": named[1] if named else cells.text(row, "category"),
            "question": question,
        },
    )


def _open_answers(row: Row) -> list[str]:
    answer = cells.required(row, "answer")
    return cells.sequence(answer) if answer.startswith("[") else [answer]


def _interleave(text: str, row: Row) -> tuple[str, tuple[ImageSource, ...]]:
    """Return the prompt with placeholders, and the images in the order of the text.

    An image that the text names twice is sent twice; one that it does not name is not sent.
    """
    numbers = [int(number) for number in _PLACE.findall(text)]
    listed = cells.images(row, "image", "images")
    if not numbers:
        listed = listed or cells.images(row, "image_1")
        return image_first(text, len(listed)), listed
    images: list[ImageSource] = []
    for number in numbers:
        found = cells.images(row, f"image_{number}") or listed[number - 1 : number]
        if not found:
            raise ProblemError(f"the question names <image {number}>, which the row does not have")
        images.append(found[0])
    return _PLACE.sub(IMAGE_PLACEHOLDER, text), tuple(images)


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict: letters are compared, or open answers by value or as the owners do.

    ``official`` is the owners' parser on the whole response. It chooses a random option if it
    finds none; here such a response is wrong.
    """
    reference = item.reference
    gold, options = reference["answer"], reference["options"]
    if options:
        letter = parse_choice(response, options, num_words=len(response.split()))
        found = grade_choice(response, gold, options, rule=rule, is_truncated=is_truncated)
        return verdict_of(found, {OFFICIAL: letter == gold})
    reading = read_answer(response, rule=rule, is_truncated=is_truncated)
    is_correct = reading.text is not None and (
        is_equal(reading.text, gold) or is_open_answer(reading.text, gold)
    )
    official = bool(response.strip()) and is_open_answer(response, gold)
    return verdict_of(graded(reading, is_correct), {OFFICIAL: official})


def parse_choice(text: str, options: Mapping[str, str], *, num_words: int) -> str | None:
    """Return the letter in the official order: ``(B)``, ``B ``, ``B.``, then option texts.

    Of several matches of one form the last counts. Option texts count only in replies of more
    than five words (``num_words``, of the whole reply).
    """
    # The official parser strips these characters one after the other, each once.
    for character in ",.!?;:'":
        text = text.strip(character)
    text = f" {text} "
    for pattern in ("({})", "{} ", "{}."):
        found = [letter for letter in options if pattern.format(letter) in text]
        if found:
            # It orders letters without brackets by the place of " B ", also those found by "B.".
            ordered = "({})" if pattern == "({})" else " {} "
            return max(found, key=lambda letter: text.rfind(ordered.format(letter)))
    if num_words <= 5:
        return None
    low = text.lower()
    mentioned = [letter for letter, option in options.items() if option.lower() in low]
    return max(mentioned, key=lambda letter: low.rfind(options[letter].lower()), default=None)


def is_open_answer(text: str, golds: list[str]) -> bool:
    """Return whether a part of the text equals a reference number or contains a phrase of it."""
    wanted = [form for gold in golds for form in _forms(gold)]
    for candidate in _candidates(text):
        if isinstance(candidate, str):
            if any(isinstance(form, str) and form in candidate for form in wanted):
                return True
        elif candidate in wanted:
            return True
    return False


def _candidates(text: str) -> list[str | float]:
    """Return the phrases after an indicator at the end of sentences, and their numbers."""
    text = text.strip().strip(".").lower()
    # In lower case only line breaks separate sentences, as in the official parser.
    sentences = text.split("\n")
    phrases = []
    for number, sentence in enumerate(sentences, start=1):
        keys = (*_KEYS, "=") if number == len(sentences) else _KEYS
        tails = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = min(filter(None, tails), key=len, default="")
        if shortest and shortest not in set(":,.!?;'"):
            phrases.append(shortest)
    phrases = phrases or [text]
    numbers = [
        number
        for phrase in phrases
        for pattern in (_COMMAS, _SCIENTIFIC, _SIMPLE)
        for number in pattern.findall(phrase)
    ]
    return [form for phrase in [*phrases, *numbers] for form in _forms(phrase)]


def _forms(text: str) -> Sequence[str | float]:
    """Return a number rounded to two decimals, or the text in lower case."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        # A single letter would occur inside many words.
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    hub_id="MMMU/MMMU",
    revision="98e6ac0cb9b7b2cd2c991b85a50762edc4aedc68",
    configs=SUBJECTS,
    split="validation",
    columns=(
        "id",
        "question",
        "options",
        "answer",
        "question_type",
        *(f"image_{number}" for number in range(1, 8)),
    ),
    files=("validation.jsonl", "validation_sample.jsonl", "MMMU_DEV_VAL.tsv"),
    size=900,
    licence="Apache-2.0",
    citation="Yue et al. 2024, arXiv:2311.16502",
    item=item,
    grade=grade,
    measure=by_reference_category,
    judge_question=lambda item: item.reference["question"],
)
