"""WeMath: composite problems and their one-step problems."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from vaopd.errors import ProblemError
from vaopd.evaluation import cells
from vaopd.evaluation.benchmark import (
    OFFICIAL,
    Benchmark,
    Graded,
    Item,
    Measurement,
    Row,
    Verdict,
    image_first,
    verdict_of,
)
from vaopd.evaluation.options import option_lines
from vaopd.grading.grades import grade_choice
from vaopd.grading.reading import Rule

_KEY = re.compile(r"([23])steps_(\d|multi)")
_OPTION = re.compile(r"\s*([A-I])\s*[.．:、]\s*(.*)", re.DOTALL)
_AFTER_ANSWER = re.compile(r"[><:.\s]*([A-H])")


def item(row: Row) -> Item | None:
    """Return one question with its place in its tree: ``2steps_1``, .., ``3steps_multi``."""
    if cells.text(row, "split") not in ("", "testmini"):
        return None
    choices = cells.options(row, "options") or _split_options(cells.text(row, "option"))
    key = cells.required(row, "key")
    if not _KEY.fullmatch(key):
        raise ProblemError(f"key is {key!r}, expected such as 2steps_1 or 3steps_multi")
    tree = f"{key[0]}steps:{cells.required(row, 'ID')}"
    hint = cells.text(row, "hint")
    prompt = (f"Hint: {hint}\n" if hint else "") + f"Question: {cells.required(row, 'question')}"
    reference = {
        "answer": cells.answer_letter(row, choices),
        "options": choices,
        "key": key,
        "tree": tree,
        "category": f"S{key[0]}" if key.endswith("multi") else "S1",
    }
    return Item(
        id=f"{tree}:{key}",
        prompt=image_first(f"{prompt}\nOptions:\n{option_lines(choices)}"),
        images=cells.images(row, "image", "image_path", "decoded_image"),
        reference=reference,
        cluster=tree,
    )


def _split_options(text: str) -> dict[str, str]:
    """Return the options of ``A. ..; B. ..``; an option may contain a semicolon."""
    choices: dict[str, str] = {}
    for part in text.split(";"):
        matched = _OPTION.fullmatch(part)
        # Letters are in order, so "; B" begins a new option only if B is the next letter.
        if matched and ord(matched[1]) - ord("A") == len(choices):
            choices[matched[1]] = matched[2].strip()
        elif choices and part.strip():
            last = list(choices)[-1]
            choices[last] += ";" + part
    return choices


def grade(response: str, item: Item, rule: Rule, *, is_truncated: bool = False) -> Verdict:
    """Return the verdict on the letter; the published form ``<Answer>: <<B>>`` is one commitment.

    ``official`` is the published rule: the first character after the last "Answer".
    """
    options: Mapping[str, str] = item.reference["options"]
    gold = item.reference["answer"]
    found = grade_choice(response, gold, options, rule=rule, is_truncated=is_truncated)
    official = _AFTER_ANSWER.match(response.rpartition("Answer")[2])
    return verdict_of(found, {OFFICIAL: official is not None and official[1] == gold})


def measure(run: Sequence[Graded]) -> Iterable[Measurement]:
    """Yield the outcome of every tree in four classes, and plain accuracy by number of steps.

    IK: some step and the composite problem are wrong. IG: all steps are right, the composite is
    wrong. CM: the composite is right, and so are all steps (strict) or at least one (loose). RM:
    the composite is right, but the steps do not give CM. Score = (trees - 0.5 IG - RM - IK) /
    trees, so CM counts 1, IG 0.5, and the others 0. A tree without all questions has no outcome.
    """
    trees: dict[str, dict[str, bool]] = defaultdict(dict)
    for graded in run:
        reference, is_correct = graded.item.reference, graded.verdict.is_correct
        trees[reference["tree"]][reference["key"].partition("_")[2]] = is_correct
        for part in ("accuracy", reference["category"]):
            yield Measurement(part, reference["tree"], float(is_correct))
    for tree, answers in trees.items():
        num_steps = int(tree[0])
        steps = [answers.get(str(step)) for step in range(1, num_steps + 1)]
        composite = answers.get("multi")
        if composite is not None and None not in steps:
            for form, mastered in (("strict", all(steps)), ("loose", any(steps))):
                yield from _outcome(tree, form, composite, all(steps), mastered)


def _outcome(
    tree: str, form: str, composite: bool, all_steps: bool, mastered: bool
) -> Iterable[Measurement]:
    right, wrong = ("CM" if mastered else "RM"), ("IG" if all_steps else "IK")
    outcome = right if composite else wrong
    yield Measurement(form, tree, {"CM": 1.0, "IG": 0.5}.get(outcome, 0.0))
    for name in ("IK", "IG", "CM", "RM"):
        yield Measurement(f"{name} {form}", tree, float(outcome == name))
    if composite:
        yield Measurement(f"RM rate {form}", tree, float(outcome == "RM"))


BENCHMARK = Benchmark(
    name="wemath",
    title="WeMath",
    hub_id="We-Math/We-Math",
    split="testmini",
    columns=("ID", "split", "question", "option", "answer", "image_path", "key"),
    files=("testmini.jsonl", "testmini.json", "WeMath.tsv"),
    size=1740,
    licence="CC BY-NC 4.0",
    citation="Qiao et al. 2024, arXiv:2407.01284",
    item=item,
    grade=grade,
    measure=measure,
    combinations={"score": {"strict": 0.5, "loose": 0.5}},
    headline="score",
)
