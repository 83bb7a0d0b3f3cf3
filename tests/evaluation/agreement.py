"""Agreement of our verdicts with lmms-eval 0.7.3, VLMEvalKit (ms-vlmeval 0.0.20) and mathruler.

    pip install --no-deps --target DIR lmms-eval==0.7.3 ms-vlmeval==0.0.20 mathruler==0.1.0 \
        pylatexenc latex2sympy2==1.9.1 antlr4-python3-runtime==4.7.2
    python tests/evaluation/agreement.py DIR [--show]

Their packages need far more than is installed here, so single functions are taken out of their
files. Nothing of theirs is part of this project. Responses are written by template.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import string
import subprocess
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vaopd.evaluation.benchmark import Graded, Item, Verdict
from vaopd.evaluation.registry import BENCHMARKS

PREAMBLES = ("", "Let us look at the image. ", "The figure shows several parts.\n\n")
CHOICE_TEMPLATES = (
    "{L}", "({L})", "{L}.", "{L})", "{L}. {T}", "({L}) {T}", "{L}: {T}", "**{L}**",
    "**{L}. {T}**", "{T}", "The answer is {L}.", "The answer is ({L}).", "The answer is {L}. {T}",
    "The correct answer is {L}", "Answer: {L}", "Answer: ({L})", "Answer: {L}. {T}",
    "**Answer:** {L}", "Final answer: {L}", "\\boxed{{{L}}}", "$\\boxed{{{L}}}$",
    "\\boxed{{\\text{{{L}}}}}", "So the answer is \\boxed{{{L}}}.", "\\boxed{{{L}. {T}}}",
    "The answer is {T}.", "I think it is ({M}) at first, but it must be ({L}).",
    "{M} is wrong because it does not fit.\nAnswer: {L}", "It could be {M} or {L}.",
    "答案是 {L}", "答案：{L}", "I cannot see the image.", "I'm sorry, but I can't help with that.",
    "", "\\boxed{{{L}", "Answer:\n{L}", "Answer: {L}\nAnswer: {M}", "\\boxed{{{L}}} \\boxed{{{M}}}",
    "Option {L} is correct.", "{L} because the others do not fit.",
    "Looking closely, this is what is called {T}.", "A short look shows that it is {L}.",
)  # fmt: skip
FREE_TEMPLATES = (
    "{V}", "{V}.", "The answer is {V}.", "Answer: {V}", "**Answer:** {V}", "Final answer: {V}",
    "\\boxed{{{V}}}", "So $\\boxed{{{V}}}$.", "The answer is {V} cm.", "答案是 {V}",
    "We get x = {V}.", "Answer: x = {V}", "First 3 of 7 fit.\nThe answer is {V}",
    "The result is {V}", "There are {V}", "I do not know.", "", "\\boxed{{{V}", "Answer: {V}\nAnswer: 99999",
)  # fmt: skip
YES_NO_TEMPLATES = (
    "{Y}", "{Y}.", "{Y}, it is.", "The answer is {Y}.", "Answer: {Y}", "\\boxed{{{Y}}}",
    "**{Y}**", "{Y}! The bars are as stated.", "No doubt: {Y}", "It is not clear.",
    "Yes and no.", "I would say {Y}", "Based on the image, {Y}", "Final answer: **{Y}**",
    "I know that nothing is shown.", "答案是 {Y}", "", "{Y}\n\nThe figure shows it.",
    "Is it so? {Y}. There is no other reading.", "Answer: {Y}, not {N}",
)  # fmt: skip


def functions(path: Path, names: set[str], **scope: Any) -> types.SimpleNamespace:
    """Return single functions of a file, also methods, without importing the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    assert {node.name for node in nodes} == names, f"{path}: {names}"
    for node in nodes:
        node.decorator_list = []
        node.returns = None
    module = ast.fix_missing_locations(ast.Module(nodes, []))
    space = {"re": re, "os": os, "np": np, "string": string, "cp": copy, "random": random,
             "defaultdict": defaultdict, **scope}  # fmt: skip
    exec(compile(module, str(path), "exec"), space)
    return types.SimpleNamespace(**{name: space[name] for name in names})


Case = tuple[Item, str, bool]
"""Item, response, and the independent verdict."""


def choice_responses(item: Item) -> Iterable[str]:
    options, gold = item.reference["options"], item.reference["answer"]
    other = next(letter for letter in reversed(options) if letter != gold)
    for preamble in PREAMBLES:
        for template in CHOICE_TEMPLATES:
            for letter, second in ((gold, other), (other, gold)):
                yield preamble + template.format(L=letter, M=second, T=options[letter])


def item_of(name: str, **cells: Any) -> Item:
    found = BENCHMARKS[name].item(cells)
    assert found is not None
    return found


def choice_items(name: str) -> list[Item]:
    texts = ["mitosis", "the water cycle", "photosynthesis", "an acute triangle"]
    listed = ", ".join(f"{k}: {v}" for k, v in zip("ABCD", texts, strict=True))
    mixed = "; ".join(f"{k}. {v}" for k, v in zip("ABCD", texts, strict=True))
    base: dict[str, Any] = {"question": "What is shown?", "options": texts}
    rows = {
        "ai2d": lambda n: base | {"answer": str(n), "id": str(n)},
        "mmmu": lambda n: base | {"answer": "ABCD"[n], "id": f"validation_Art_{n}",
                                  "question_type": "multiple-choice"},
        "mmstar": lambda n: {"question": f"What is shown?\nOptions: {listed}", "index": n,
                             "answer": "ABCD"[n], "category": "math"},
        "wemath": lambda n: {"question": "What?", "option": mixed, "answer": "ABCD"[n],
                             "ID": str(n), "key": "2steps_1"},
        "mathverse": lambda n: {"question": "What?\nChoices:\n" + mixed.replace("; ", "\n"),
                                "answer": "ABCD"[n], "sample_index": str(n),
                                "question_type": "multi-choice", "problem_version": "Text Lite"},
    }  # fmt: skip
    return [item_of(name, **rows[name](n)) for n in (0, 1, 3)]


def choice_cases(name: str, root: Path) -> list[Case]:
    matching = functions(
        root / "vlmeval/utils/matching_util.py",
        {"can_infer", "can_infer_option", "can_infer_text"},
    )
    mmmu = functions(
        root / "lmms_eval/tasks/_task_utils/mmmu_mcq_utils.py", {"parse_mmmu_multi_choice_response"},
        random=types.SimpleNamespace(choice=lambda choices: None),
    )  # fmt: skip
    path = root / "lmms_eval/tasks/_task_utils/mcq_extract.py"
    lmms = types.ModuleType("mcq_extract")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), lmms.__dict__)

    def official_wemath(text: str) -> str | None:
        # The published rule: behind the last "Answer", without > < : . and then one letter.
        tail = re.sub(r"[><:.]", "", text.split("Answer")[-1].strip()).strip()
        return tail[0] if tail and tail[0] in "ABCDEFGH" else None

    theirs: dict[str, Callable[[str, dict[str, str]], Any]] = {
        "ai2d": lambda text, options: matching.can_infer(text, dict(options)),
        "mathverse": lambda text, options: matching.can_infer(text, dict(options)),
        "mmstar": lambda text, options: lmms.extract_mcq_answer(text, list(options)),
        "mmmu": lambda text, options: mmmu.parse_mmmu_multi_choice_response(
            text, list(options), dict(options)
        ),
        "wemath": lambda text, options: official_wemath(text),
    }
    return [
        (item, response, theirs[name](response, item.reference["options"]) == item.reference["answer"])
        for item in choice_items(name)
        for response in choice_responses(item)
    ]  # fmt: skip


def hallusion_cases(root: Path) -> list[Case]:
    punctuation = functions(
        next(p for p in (root / "vlmeval/smp").glob("*.py") if "def process_punctuation" in p.read_text()),
        {"process_punctuation"},
    )  # fmt: skip
    yorn = functions(
        root / "vlmeval/dataset/utils/yorn.py", {"YOrN_Extraction"},
        process_punctuation=punctuation.process_punctuation,
    )  # fmt: skip
    cases: list[Case] = []
    for gold in ("0", "1"):
        item = item_of("hallusionbench", category="VD", subcategory="chart", visual_input="1",
                       set_id="0", figure_id="1", question_id=gold, question="Is it?",
                       gt_answer=gold)  # fmt: skip
        for response in yes_no_responses():
            said = yorn.YOrN_Extraction(response)
            cases.append((item, response, said == ("Yes" if gold == "1" else "No")))
    return cases


def yes_no_responses() -> Iterable[str]:
    for preamble in (*PREAMBLES, "Both bars are high. ", "Well, "):
        for template in YES_NO_TEMPLATES:
            for yes, no in (("Yes", "No"), ("no", "yes")):
                yield preamble + template.format(Y=yes, N=no)


def ocr_cases(root: Path) -> list[Case]:
    official = functions(
        root / "lmms_eval/tasks/ocrbench/utils.py",
        {"_fold_fullwidth_ascii", "ocrbench_process_results"},
    )
    cases: list[Case] = []
    golds = (["CENTRE"], ["506 million", "$506 million"], ["12-05-2019"], ["Bob & Co"])
    for number, gold in enumerate([*golds, ["\\frac { 1 } { 2 } = a"]]):
        formula = number == len(golds)
        doc = {"answer": gold, "dataset": "HME100k" if formula else "IIIT5K", "question": "Read.",
               "question_type": ("Handwritten Mathematical Expression Recognition" if formula
                                 else "Regular Text Recognition")}  # fmt: skip
        item = item_of("ocrbench", **doc, index=str(number))
        for value in (gold[0], gold[0].lower(), gold[0].replace(" ", ""), "another text"):
            for preamble in PREAMBLES:
                for template in FREE_TEMPLATES:
                    response = preamble + template.format(V=value)
                    score = official.ocrbench_process_results(doc, [response])
                    cases.append((item, response, bool(score["ocrbench_accuracy"]["score"])))
    return cases


def open_mmmu_cases(root: Path) -> list[Case]:
    names = {
        "parse_open_response",
        "extract_numbers",
        "normalize_str",
        "check_is_number",
        "eval_open",
    }
    official = functions(root / "lmms_eval/tasks/mmmu/utils.py", names)
    cases: list[Case] = []
    for number, gold in enumerate(("12", "1,250", "0.75", "mitosis", "['6', 'six']")):
        item = item_of("mmmu", question="How many?", options="[]", answer=gold,
                       id=f"validation_Math_{number}", question_type="open")  # fmt: skip
        golds = item.reference["answer"]
        for value in (golds[0], "13", "meiosis"):
            for preamble in PREAMBLES:
                for template in FREE_TEMPLATES:
                    response = preamble + template.format(V=value)
                    parsed = official.parse_open_response(response)
                    cases.append((item, response, official.eval_open(golds, parsed)))
    return cases


def mathvista_cases(root: Path) -> list[Case]:
    """Their normaliser behind our span: the official scorer lets a language model take the span."""
    official = functions(
        root / "lmms_eval/tasks/mathvista/mathvista_evals.py",
        {"normalize_extracted_answer", "get_most_similar"},
        distance=levenshtein,
    )
    self = types.SimpleNamespace()
    self.get_most_similar = lambda p, c: official.get_most_similar(self, p, c)
    cases: list[Case] = []
    rows: list[tuple[str, str, list[str], int, tuple[str, ...]]] = [
        ("12", "integer", [], 0, ("12", "12.0", "12.7", "13")),
        ("3.5", "float", [], 1, ("3.5", "3.50", "3.46", "3.4")),
        ("0.25", "float", [], 2, ("0.25", "0.254", ".25", "1/4")),
        ("[1, 2]", "list", [], 0, ("[1, 2]", "[1,2]", "[2, 1]")),
        ("3/11", "text", ["3/11", "8/11", "6/11"], 0, ("A", "(A)", "B", "3/11", "3 / 11", "8/11")),
        ("Yes", "text", ["Yes", "No"], 0, ("A", "(B)", "Yes", "yes", "No")),
    ]
    for number, (gold, kind, choices, precision, values) in enumerate(rows):
        question_type = "multi_choice" if choices else "free_form"
        item = item_of("mathvista", pid=str(number), question="What?", question_type=question_type,
                       answer_type=kind, choices=choices, precision=precision, answer=gold)  # fmt: skip
        for value in values:
            theirs = official.normalize_extracted_answer(
                self, value, choices, question_type, kind, precision
            )
            for preamble in PREAMBLES:
                for template in FREE_TEMPLATES[:11]:
                    if choices and template in ("We get x = {V}.", "The answer is {V} cm."):
                        continue
                    cases.append((item, preamble + template.format(V=value), theirs == gold))
    return cases


FREE_ANSWERS = (
    ("8.246", ("8.246", "8.25", "\\frac{4123}{500}", "8.3")),
    ("10 cm", ("10", "10 cm", "10\\text{ cm}", "10.0", "12 cm")),
    ("5\\sqrt{3}", ("5\\sqrt{3}", "5 \\sqrt { 3 }", "\\sqrt{75}", "5√3", "15")),
    ("45°", ("45°", "45^\\circ", "45 degrees", "45", "54°")),
    ("\\frac{1}{2}", ("\\frac{1}{2}", "\\dfrac12", "1/2", "0.5", "2")),
    ("x^2+1", ("x^2+1", "1+x^2", "x^2-1")),
    ("(2, 3)", ("(2, 3)", "(2,3)", "(3, 2)")),
    ("1,250", ("1,250", "1250", "1.250")),
)


COMMITTED = tuple(
    t for t in FREE_TEMPLATES if re.search(r"[Aa]nswer|boxed\{\{.*\}\}|答案", t) or "{V}" not in t
)


def free_mathverse_cases(root: Path) -> list[Case]:
    """Their comparison of the bare value: the official scorer is a language model in both steps.

    Only responses that commit, or hold no value: where prose ends is no matter of comparison.
    """
    sys.path.append(str(root))
    from mathruler.grader import grade_answer  # pyright: ignore[reportMissingImports]

    cases: list[Case] = []
    for number, (gold, values) in enumerate(FREE_ANSWERS):
        item = item_of("mathverse", sample_index=str(number), question="What?", answer=gold,
                       question_type="free-form", problem_version="Text Lite")  # fmt: skip
        for value in values:
            theirs = bool(grade_answer(value, gold))
            for preamble in PREAMBLES:
                for template in COMMITTED:
                    carries = "{V}" in template
                    response = preamble + template.format(V=value)
                    cases.append((item, response, theirs and carries))
    return cases


def free_math_vision_cases(root: Path) -> list[Case]:
    """The official comparison, which lmms-eval keeps a copy of, of the bare value in a box."""
    # In a process of its own: its latex2sympy2 wants an ANTLR that ours refuses.
    pairs = [(value, gold) for gold, values in FREE_ANSWERS for value in values]
    script = (
        "import json, sys\n"
        "from eval_utils import find_math_answer as find, is_equal\n"
        "pairs = json.load(sys.stdin)\n"
        "box = '\\\\boxed{%s}'\n"
        "print(json.dumps([bool(is_equal(find(box % v), find(g))) for v, g in pairs]))\n"
    )
    places = os.pathsep.join([str(root), str(root / "lmms_eval/tasks/mathvision")])
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(pairs), env={"PYTHONPATH": places},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    verdicts = dict(zip(pairs, json.loads(done.stdout), strict=True))

    cases: list[Case] = []
    for number, (gold, values) in enumerate(FREE_ANSWERS):
        item = item_of("math_vision", id=str(number), question="What?", options=[], answer=gold,
                       subject="algebra", level=1)  # fmt: skip
        for value in values:
            theirs = verdicts[value, gold]
            for preamble in PREAMBLES:
                for template in COMMITTED:
                    response = preamble + template.format(V=value)
                    cases.append((item, response, theirs and "{V}" in template))
    return cases


def levenshtein(first: str, second: str) -> int:
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, left in enumerate(first, 1):
        for j, right in enumerate(second, 1):
            cost = table[i - 1][j - 1] + (left != right)
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, cost)
    return table[-1][-1]


def wemath_scores(root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the four-way scores of random answers to 525 trees: ours and theirs, in percent."""
    import pandas as pd

    official = functions(
        root / "vlmeval/dataset/utils/wemath.py",
        {"evaluate_process_steps_data", "evaluate_calculate_metrics", "evaluate_compute_final_scores"},
        pd=pd,
    )  # fmt: skip
    generator = random.Random(0)
    rows, run = [], []
    for tree in range(525):
        steps = 2 if tree < 360 else 3
        for key in [*map(str, range(1, steps + 1)), "multi"]:
            right = generator.random() < 0.6
            rows.append({"ID": tree, "key": f"{steps}steps_{key}", "joker": right})
            item = item_of("wemath", ID=str(tree), key=f"{steps}steps_{key}", question="?",
                           option="A. 1; B. 2", answer="A")  # fmt: skip
            run.append(Graded(item, Verdict("A", right)))
    frame = pd.DataFrame(rows)
    merged = [
        official.evaluate_process_steps_data(frame[frame["key"].str.contains(f"{n}steps")], n)
        for n in (2, 3)
    ]
    counts, _ = official.evaluate_compute_final_scores(
        official.evaluate_calculate_metrics(*merged), 525
    )
    theirs = {
        form: 100 * (525 - 0.5 * counts["InadequateGeneralization"] - counts["InsufficientKnowledge"]
                     - counts[f"RoteMemorization_{form}"]) / 525
        for form in ("strict", "loose")
    }  # fmt: skip
    measured = list(BENCHMARKS["wemath"].measure(run))
    ours = {
        form: 100 * float(np.mean([m.value for m in measured if m.part == form]))
        for form in ("strict", "loose")
    }
    return ours, theirs


def all_cases(root: Path) -> dict[str, list[Case]]:
    found = {name: choice_cases(name, root) for name in ("ai2d", "mathverse", "mmstar", "wemath")}
    found["mmmu"] = choice_cases("mmmu", root)
    found["mmmu open"] = open_mmmu_cases(root)
    found["hallusionbench"] = hallusion_cases(root)
    found["ocrbench"] = ocr_cases(root)
    found["mathvista"] = mathvista_cases(root)
    found["mathverse free"] = free_mathverse_cases(root)
    found["math_vision free"] = free_math_vision_cases(root)
    return found


def ours(name: str, item: Item, response: str) -> bool:
    verdict = BENCHMARKS[name.split()[0]].grade(response, item, "last_committed")
    beside = "raw" if name == "ocrbench" else "official"
    return verdict.variants.get(beside, verdict.is_correct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true", help="print every disagreement")
    options = parser.parse_args()
    for name, cases in all_cases(options.folder).items():
        differing = [c for c in cases if ours(name, c[0], c[1]) != c[2]]
        more = sum(not theirs for _, _, theirs in differing)
        print(
            f"{name}: {len(cases) - len(differing)} of {len(cases)} agree; "
            f"only ours right {more}, only theirs right {len(differing) - more}"
        )
        if options.show:
            for (response, theirs), count in Counter((r, t) for _, r, t in differing).items():
                print(f"   {'theirs' if theirs else 'ours  '} x{count} {response!r}")
    print("wemath four-way score, ours and theirs:", *wemath_scores(options.folder))


if __name__ == "__main__":
    main()
