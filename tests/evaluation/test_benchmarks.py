r"""The rules of every benchmark on hand-made rows in the schema of the set."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import pytest

from vaopd.errors import ProblemError
from vaopd.evaluation.benchmark import Benchmark, Graded, Item, Verdict
from vaopd.evaluation.predictions import Prediction
from vaopd.evaluation.registry import BENCHMARKS, PAPER
from vaopd.evaluation.scoring import grade_runs, metrics_of, tables_of

IMAGE = b"not looked at"
LETTERED: dict[str, Any] = {"options": ["mitosis", "the water cycle", "an acute triangle"]}


def item(name: str, **cells: Any) -> Item:
    found = BENCHMARKS[name].item({"image": IMAGE, **cells})
    assert found is not None
    return found


def is_right(name: str, question: Item, response: str) -> bool:
    return BENCHMARKS[name].grade(response, question, "last_committed").is_correct


def extracted(name: str, question: Item, response: str) -> str | None:
    return BENCHMARKS[name].grade(response, question, "last_committed").extracted


def metrics(name: str, runs: Iterable[list[tuple[Item, bool]]]) -> dict[str, float]:
    benchmark = BENCHMARKS[name]
    graded = [[Graded(one, Verdict("x", right)) for one, right in run] for run in runs]
    found = metrics_of(benchmark, tables_of(benchmark, graded), resamples=20)
    return {key: metric.value for key, metric in found.items()}


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda one: one.name)
def test_every_benchmark_says_where_it_is_from_and_what_it_may_be_used_for(benchmark: Benchmark):
    assert benchmark.licence
    assert benchmark.columns
    assert (benchmark.hub_id is None) == (benchmark.problems is not None)
    assert benchmark.citation or benchmark.name == "drawn"


def test_the_eight_of_the_paper_have_their_published_sizes():
    assert [BENCHMARKS[name].size for name in PAPER] == [
        1740, 1000, 3940, 951, 3088, 900, 1500, 1000,
    ]  # fmt: skip


# --- WeMath ---------------------------------------------------------------------------------


def wemath(tree: int, key: str, **cells: Any) -> Item:
    row = {"ID": str(tree), "key": key, "question": "How many?", "answer": "B", "split": "testmini"}
    return item("wemath", **(row | {"option": "A. 3 cm; B. 4; 5 cm; C. none"} | cells))


def test_wemath_asks_with_one_option_a_line_and_keeps_semicolons_inside_options():
    question = wemath(1, "2steps_1")
    assert question.prompt == ("<image>Question: How many?\nOptions:\nA. 3 cm\nB. 4; 5 cm\nC. none")


def test_wemath_leaves_other_splits_out_and_refuses_unknown_keys():
    assert BENCHMARKS["wemath"].item({"split": "train"}) is None
    with pytest.raises(ProblemError, match="key is '4steps_1'"):
        wemath(1, "4steps_1")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<3 + 1>> <Answer>: <<B>>", "B"),
        ("<Answer>: <<A>> and again <Answer>: <<B>>", "B"),
        ("Answer: B. 4; 5 cm", "B"),
        ("\\boxed{C}", "C"),
        ("B", "B"),
        ("I cannot tell.", None),
    ],
)
def test_wemath_reads_its_own_template_and_committed_answers(response: str, letter: str | None):
    assert extracted("wemath", wemath(1, "2steps_1"), response) == letter


@pytest.mark.parametrize(
    ("steps", "composite", "strict", "loose"),
    [
        ((True, True), True, "CM", "CM"),
        ((True, False), True, "RM", "CM"),
        ((False, False), True, "RM", "RM"),
        ((True, True), False, "IG", "IG"),
        ((True, False), False, "IK", "IK"),
        ((False, False), False, "IK", "IK"),
    ],
)
def test_wemath_names_the_outcome_of_a_tree(
    steps: tuple[bool, bool], composite: bool, strict: str, loose: str
):
    keys = ("2steps_1", "2steps_2", "2steps_multi")
    run = [(wemath(1, k), r) for k, r in zip(keys, (*steps, composite), strict=True)]
    found = metrics("wemath", [run])
    worth = {"CM": 100.0, "IG": 50.0, "RM": 0.0, "IK": 0.0}
    for form, outcome in (("strict", strict), ("loose", loose)):
        assert {n: found[f"{n} {form}"] for n in worth} == {
            n: 100.0 * (n == outcome) for n in worth
        }
        assert found[form] == worth[outcome]
    assert found["score"] == fmean([worth[strict], worth[loose]])


def test_wemath_scores_trees_of_three_steps_and_gives_an_incomplete_tree_no_outcome():
    three = [(wemath(1, f"3steps_{k}"), True) for k in ("1", "2", "3", "multi")]
    incomplete = [(wemath(2, "2steps_1"), False), (wemath(2, "2steps_multi"), False)]
    found = metrics("wemath", [three + incomplete])
    assert found["strict"] == 100.0
    # Four of six questions: S1 3 of 4, S2 0 of 1, S3 1 of 1.
    assert (found["S1"], found["S2"], found["S3"]) == (75.0, 0.0, 100.0)


def test_wemath_is_scored_in_each_run_before_runs_are_averaged():
    keys = ("2steps_1", "2steps_2", "2steps_multi")
    # Run 1 is CM (100), run 2 is IK (0). By majority of an item's samples it would be no such mean.
    runs = [[(wemath(1, k), right) for k in keys] for right in (True, False)]
    assert metrics("wemath", runs)["strict"] == 50.0


# --- MathVista ------------------------------------------------------------------------------


def mathvista(answer: str, kind: str, precision: int | None = None, **cells: Any) -> Item:
    row = {"pid": "1", "question": "How long?", "answer": answer, "answer_type": kind,
           "precision": precision, "question_type": "free_form", "choices": None}  # fmt: skip
    return item("mathvista", **(row | cells))


def choice(**cells: Any) -> Item:
    choices = ["3/11", "8/11", "6/11"]
    return mathvista("8/11", "text", question_type="multi_choice", choices=choices, **cells)


def test_mathvista_sends_the_published_query_or_writes_it():
    assert mathvista("2", "integer", query="Hint: x\nQuestion: y").prompt == (
        "<image>Hint: x\nQuestion: y"
    )
    assert mathvista("2", "integer", unit="cm").prompt == (
        "<image>Hint: Please answer the question requiring an integer answer and provide the final "
        "value, e.g., 1, 2, 3, at the end.\nQuestion: How long? (Unit: cm)"
    )
    assert choice().prompt.endswith("Choices:\n(A) 3/11\n(B) 8/11\n(C) 6/11")


@pytest.mark.parametrize(
    ("question", "response", "right"),
    [
        (choice(), "The answer is (B).", True),
        (choice(), "\\boxed{8/11}", True),
        (choice(), "Answer: 8 / 11", True),  # the nearest by edit distance
        (choice(), "Answer: A", False),
        (choice(), "(B) 8/11", True),
        (choice(), "I cannot see it", False),
        (mathvista("12", "integer"), "12", True),
        (mathvista("12", "integer"), "There are 5 + 7 = 12", True),
        (mathvista("12", "integer"), "Answer: 12.9", True),  # int(float(x)) cuts
        (mathvista("12", "integer"), "The answer is 12 of 15", True),
        (mathvista("1200", "integer"), "Answer: 1,200 g", True),
        (mathvista("-3", "integer"), "Answer: x = -3", True),
        (mathvista("12", "integer"), "none", False),
        (mathvista("1.2", "float", 1), "Answer: 1.24 m", True),
        (mathvista("1.2", "float", 1), "Answer: 1.26 m", False),
        (mathvista("0.25", "float", 2), "\\boxed{\\frac{1}{4}}", True),
        (mathvista("[1, 2]", "list"), "Answer: [1,2]", True),
        (mathvista("[1, 2]", "list"), "Answer: [2, 1]", False),
        (mathvista("[1, 2]", "list"), "one and two", False),
    ],
)
def test_mathvista_brings_answers_to_the_form_of_their_type(
    question: Item, response: str, right: bool
):
    assert is_right("mathvista", question, response) == right


def test_mathvista_refuses_rows_that_cannot_be_scored():
    with pytest.raises(ProblemError, match="none of the choices"):
        item(
            "mathvista", pid="1", question="?", answer="9/11", answer_type="text",
            question_type="multi_choice", choices=["3/11"],
        )  # fmt: skip
    with pytest.raises(ProblemError, match="choices is empty"):
        mathvista("A", "text", question_type="multi_choice")
    with pytest.raises(ProblemError, match="unknown"):
        mathvista("1", "float", 7)


# --- MathVerse ------------------------------------------------------------------------------


def mathverse(answer: str = "8.246", version: str = "Text Lite", **cells: Any) -> Item:
    row = {"sample_index": "1", "problem_index": "1", "problem_version": version, "answer": answer,
           "question": "Find the length.", "question_type": "free-form"}  # fmt: skip
    return item("mathverse", **(row | cells))


def test_mathverse_sends_the_direct_query_and_has_one_for_questions_inside_the_image():
    assert mathverse(query_wo="Directly: ?").prompt == "<image>Directly: ?"
    # The queries that the hub's rows carry, as the owners' output template prints them.
    inside = mathverse(version="Vision Only", question="")
    assert inside.prompt == (
        "<image>According to the question shown in the image, please directly answer the question "
        "and provide the final value, e.g., 1, 2.5, 300."
    )
    assert mathverse().prompt == (
        "<image>Please directly answer the question and provide the final value, e.g., 1, 2.5, 300."
        "\nQuestion: Find the length."
    )
    chosen = mathverse("A", question="What?\nChoices:\nA:1\nB:2", question_type="multi-choice")
    assert chosen.prompt == (
        "<image>Please directly answer the question and provide the correct option letter, e.g., "
        "A, B, C, D.\nQuestion: What?\nChoices:\nA:1\nB:2"
    )


def test_mathverse_leaves_text_only_out():
    row = {"problem_version": "Text Only", "sample_index": "1", "answer": "1"}
    assert BENCHMARKS["mathverse"].item(row) is None


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("8.246", True),
        ("8.246 units", True),
        ("Answer: 8.246 cm", True),
        ("\\boxed{8.246\\text{ cm}}", True),
        ("\\boxed{8.25}", False),
        ("It must be found first", False),
    ],
)
def test_mathverse_compares_free_answers_without_units(response: str, right: bool):
    assert is_right("mathverse", mathverse(), response) == right


def test_mathverse_compares_letters_also_where_the_options_are_in_the_image():
    text = "Which?\nChoices:\nA:red\nB:blue"
    listed = mathverse("B", question=text, question_type="multi-choice")
    hidden = mathverse("B", question="", version="Vision Only", question_type="multi_choice")
    for response, right in (("B", True), ("Answer: (B)", True), ("A", False), ("C", False)):
        assert is_right("mathverse", listed, response) == right
        assert is_right("mathverse", hidden, response) == right
    assert is_right("mathverse", listed, "Answer: blue")


def test_mathverse_averages_its_five_versions_alike():
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    run = [(mathverse(version=name), name == "Vision Only") for name in versions]
    run += [(mathverse(version="Text Lite"), True)] * 3
    found = metrics("mathverse", [run])
    # Text Lite 3 of 4, Vision Only 1 of 1, the others 0: (75 + 100) / 5.
    assert found["mean of versions"] == 35.0
    assert found["micro"] == 50.0


# --- HallusionBench -------------------------------------------------------------------------


def hallusion(figure: str, question: str, gold: str = "1", set_id: str = "0") -> Item:
    return item("hallusionbench", category="VD", subcategory="chart", visual_input="1",
                set_id=set_id, figure_id=figure, question_id=question, question="Is it?",
                gt_answer=gold)  # fmt: skip


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("Yes.", "yes"),
        ("no, never", "no"),
        ("NO!", "no"),
        ("Nothing is known.", None),
        ("yes and no", None),
        ("", None),
        ("At first yes. The answer is no.", "no"),
        ("Answer: unclear, so yes", "yes"),
        ("\\boxed{Yes}", "yes"),
    ],
)
def test_hallusionbench_takes_the_only_one_of_two_whole_words(response: str, said: str | None):
    assert extracted("hallusionbench", hallusion("1", "0"), response) == said
    assert is_right("hallusionbench", hallusion("1", "0"), response) == (said == "yes")
    assert is_right("hallusionbench", hallusion("1", "0", "0"), response) == (said == "no")


def test_hallusionbench_leaves_questions_without_an_image_out():
    assert BENCHMARKS["hallusionbench"].item({"visual_input": "0"}) is None


def test_hallusionbench_reads_the_ids_of_the_tsv():
    question = item("hallusionbench", index="hb_VD_f_3_2_1", category="VD", question="Is it?",
                    **{"l2-category": "map", "answer": "Yes"})  # fmt: skip
    assert question.reference["figure"] == "VD/map/3/2"


def test_hallusionbench_counts_figures_and_questions_only_when_all_is_right():
    verdicts = {("1", "0"): True, ("1", "1"): True, ("2", "0"): True, ("2", "1"): False}
    run = [(hallusion(*key), right) for key, right in verdicts.items()]
    found = metrics("hallusionbench", [run])
    # 3 of 4 questions; figure 1 of 2; question 0 of {0, 1}.
    assert (found["aAcc"], found["fAcc"], found["qAcc"]) == (75.0, 50.0, 50.0)
    assert found["mean"] == pytest.approx((75 + 50 + 50) / 3, abs=1e-3)


def test_hallusionbench_groups_by_category_and_officially_by_subcategory_alone():
    # VLMEvalKit names a figure by subcategory, set and figure, so VD/ocr and VS/ocr become one.
    def ocr(category: str) -> Item:
        return item("hallusionbench", category=category, subcategory="ocr", visual_input="1",
                    set_id="0", figure_id="1", question_id="0", question="Is it?",
                    gt_answer="1")  # fmt: skip

    run = [
        Graded(ocr(category), Verdict("yes", right, {"official": right}))
        for category, right in (("VD", True), ("VS", False))
    ]
    benchmark = BENCHMARKS["hallusionbench"]
    found = metrics_of(benchmark, tables_of(benchmark, [run]), resamples=20)
    assert (found["fAcc"].value, found["qAcc"].value) == (50.0, 50.0)
    assert (found["fAcc official"].value, found["qAcc official"].value) == (0.0, 0.0)
    assert found["aAcc official"].value == 50.0


# --- AI2D -----------------------------------------------------------------------------------


def test_ai2d_asks_for_the_letter_and_reads_an_index_as_answer():
    question = item("ai2d", id="7", question="What is it?", answer="1", **LETTERED)
    assert question.prompt == (
        "<image>What is it?\nA. mitosis\nB. the water cycle\nC. an acute triangle\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert is_right("ai2d", question, "B. the water cycle")
    assert is_right("ai2d", question, "It is the water cycle")
    assert not is_right("ai2d", question, "A")
    assert not is_right("ai2d", question, "\\boxed{42}")


def test_ai2d_refuses_an_answer_beyond_its_options():
    with pytest.raises(ProblemError, match="none of the 3 options"):
        item("ai2d", question="What?", answer="3", **LETTERED)


# --- MMMU -----------------------------------------------------------------------------------


def mmmu(**cells: Any) -> Item:
    row = {"id": "validation_Art_Theory_7", "question": "Look at <image 1>.", "answer": "B",
           "options": str(LETTERED["options"]), "question_type": "multiple-choice",
           "image_1": b"one", "image_2": b"two"}  # fmt: skip
    return item("mmmu", **(row | cells))


def test_mmmu_puts_each_image_where_it_is_named_also_in_options():
    question = mmmu(question="Is <image 2> like <image 1>?", options="['<image 2>', 'no']")
    assert question.images == (b"two", b"one", b"two")
    assert question.prompt.startswith("Is <image> like <image>?\nA. <image>\nB. no\n\n")


def test_mmmu_refuses_a_named_image_that_is_not_there():
    with pytest.raises(ProblemError, match="<image 4>"):
        item("mmmu", id="validation_Art_1", question="See <image 4>", answer="A",
             options="['x', 'y']", question_type="multiple-choice", image=None)  # fmt: skip


def test_mmmu_knows_the_subject_and_leaves_the_development_split_out():
    assert mmmu().reference["category"] == "Art_Theory"
    assert BENCHMARKS["mmmu"].item({"id": "dev_Art_1", "question": "?"}) is None
    assert BENCHMARKS["mmmu"].item({"id": "1", "split": "dev"}) is None


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(A) is tempting, but (B) fits", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("B. the water cycle", "B"),
        ("what the picture shows must be the water cycle", "B"),
        ("the water cycle", "B"),
        ("The answer is the water cycle.", "B"),
        ("no idea", None),
        ("Answer: (C)\nAnswer: (B)", "B"),
    ],
)
def test_mmmu_reads_the_option_that_counts(response: str, letter: str | None):
    assert extracted("mmmu", mmmu(), response) == letter


@pytest.mark.parametrize(
    ("response", "is_right"),
    [
        ("B", True),
        ("(A) is tempting, but (B) fits", True),
        ("what the picture shows must be the water cycle", True),
        ("the water cycle", False),  # official: by lot, for at most five words
        ("\\boxed{B}", False),
        ("Answer: (B)\nAnswer: (C)", False),
    ],
)
def test_mmmu_keeps_the_official_verdict_beside_and_draws_no_lots(response: str, is_right: bool):
    verdict = BENCHMARKS["mmmu"].grade(response, mmmu(), "last_committed")
    assert verdict.variants["official"] == is_right


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("12", "12", True),
        ("12", "The answer is 12.0", True),
        ("12", "We get 5 + 7 = 12", True),
        ("12", "The answer is 13", False),
        ("1,250", "Answer: 1250", True),
        ("0.333", "Answer: 0.33", True),
        ("['6', 'six']", "It is six", True),
        ("mitosis", "Answer: Mitosis.", True),
        ("a", "Answer: banana", False),
        ("12", "", False),
    ],
)
def test_mmmu_compares_open_answers_as_numbers_or_by_containment(
    gold: str, response: str, right: bool
):
    question = mmmu(question_type="open", options="[]", answer=gold)
    assert question.prompt.endswith("Answer the question using a single word or phrase.")
    assert is_right("mmmu", question, response) == right


# --- MMStar ---------------------------------------------------------------------------------


def mmstar(category: str = "math", **cells: Any) -> Item:
    row = {"index": "1", "category": category, "answer": "C",
           "question": "What?\nOptions: A: red, B: blue, C: dark blue, D: none"}  # fmt: skip
    return item("mmstar", **(row | cells))


def test_mmstar_reads_the_options_of_its_text_and_of_the_tsv():
    assert mmstar().reference["options"] == {
        "A": "red", "B": "blue", "C": "dark blue", "D": "none",
    }  # fmt: skip
    columns = mmstar(question="What?", A="red", B="blue", C="green", D="none")
    assert "A. red\nB. blue" in columns.prompt
    with pytest.raises(ProblemError, match="category"):
        mmstar(category="sports")


def test_mmstar_means_the_longer_of_two_options_that_hold_one_another():
    assert is_right("mmstar", mmstar(), "It is dark blue")
    assert not is_right("mmstar", mmstar(), "It is blue")
    assert is_right("mmstar", mmstar(), "The correct answer is C: dark blue")


def test_mmstar_gives_overall_accuracy_and_the_mean_of_six_categories():
    names = ["coarse perception", "fine-grained perception", "instance reasoning",
             "logical reasoning", "math", "science & technology"]  # fmt: skip
    run = [(mmstar(name), name == "math") for name in names] + [(mmstar("math"), True)] * 2
    found = metrics("mmstar", [run])
    assert found["accuracy"] == 37.5
    assert found["mean of categories"] == pytest.approx(100 / 6, abs=1e-3)


# --- OCRBench -------------------------------------------------------------------------------


def ocr(answer: Any = ("CENTRE",), dataset: str = "IIIT5K", **cells: Any) -> Item:
    kind = "Regular Text Recognition"
    if dataset == "HME100k":
        kind = "Handwritten Mathematical Expression Recognition"
    golds = list(answer) if isinstance(answer, tuple) else answer
    return item("ocrbench", index="1", dataset=dataset, question="Read.", question_type=kind,
                answer=golds, **cells)  # fmt: skip


def test_ocrbench_looks_for_a_gold_text_without_case():
    assert ocr().prompt == "<image>Read."
    assert is_right("ocrbench", ocr(), "it says centre")
    assert is_right("ocrbench", ocr(("x y", "centre")), "CENTRE")
    assert is_right("ocrbench", ocr("one\nline"), "One line")
    assert not is_right("ocrbench", ocr(), "center")
    assert extracted("ocrbench", ocr(), " ") is None


def test_ocrbench_drops_spaces_and_keeps_case_in_formulas():
    formula = ocr(("B a = \\frac { 1 } { 2 }\n",), "HME100k")
    assert is_right("ocrbench", formula, "Ba=\\frac{1}{2}")
    assert not is_right("ocrbench", formula, "ba=\\frac{1}{2}")


def test_ocrbench_scores_the_final_span_and_shows_the_raw_text_beside_it():
    response = "It may be CENTRE.\nOr not.\nLet me look.\nNo.\nAnswer: CENTER"
    verdict = BENCHMARKS["ocrbench"].grade(response, ocr(), "last_committed")
    assert (verdict.is_correct, verdict.variants["raw"]) == (False, True)
    long = "It may be CENTRE.\nOr not.\nLet me look.\nTHEATRE"
    verdict = BENCHMARKS["ocrbench"].grade(long, ocr(), "first_committed")
    assert (verdict.extracted, verdict.is_correct, verdict.variants["raw"]) == (
        "THEATRE", False, True,
    )  # fmt: skip


def test_ocrbench_refuses_rows_without_an_answer_or_a_known_type():
    with pytest.raises(ProblemError, match="answer is missing"):
        ocr("")
    with pytest.raises(ProblemError, match="ten types"):
        item("ocrbench", question="?", question_type="Other", answer=["x"])


# --- MATH-Vision and problems ---------------------------------------------------------------


def test_math_vision_puts_the_figure_in_place_and_grades_letters_or_values():
    cells = {"id": "4", "question": "See <image1> and <image2>.", "subject": "logic"}
    question = item("math_vision", **cells, answer="B", options=["5", "\\sqrt{75}"])
    assert question.prompt.endswith("See <image> and (figure 2).\n(A) 5\n(B) \\sqrt{75}")
    for response, right in (("\\boxed{B}", True), ("\\boxed{A}", False), ("nothing", False)):
        assert is_right("math_vision", question, response) == right
    assert is_right("math_vision", question, "\\boxed{5\\sqrt{3}}")
    free = item("math_vision", **cells, answer="0.5", options=[])
    assert is_right("math_vision", free, "\\boxed{\\frac12}")


def test_math_vision_does_not_list_options_that_are_but_letters_of_the_figure():
    cells = {"id": "6", "question": "Which picture?\n<image1>", "options": list("ABCDE")}
    question = item("math_vision", **cells, answer="D")
    assert question.prompt.endswith("Which picture?\n<image>")
    assert is_right("math_vision", question, "\\boxed{D}")
    assert not is_right("math_vision", question, "\\boxed{E}")


def test_math_vision_needs_no_places_for_the_figure():
    question = item("math_vision", id="1", question="How many?", answer="3", options=[])
    assert question.prompt.startswith("<image>")


def test_the_share_where_two_rules_differ_is_of_all_responses():
    question = wemath(1, "2steps_1")
    texts = ("Answer: A\nAnswer: B", "Answer: A", "no idea", "Answer: A\nI see.\nAnswer: C")
    runs = [[Prediction(id=question.id, sample=k, response=t)] for k, t in enumerate(texts)]
    graded, share = grade_runs(BENCHMARKS["wemath"], [question], runs, "last_committed")
    assert [run[0].verdict.extracted for run in graded] == ["B", "A", None, "C"]
    assert share == 2 / 4


def test_a_response_that_was_cut_is_graded_as_one():
    question = wemath(1, "2steps_1")
    runs = [
        [Prediction(id=question.id, sample=k, response="It is B.", finish_reason=reason)]
        for k, reason in enumerate(("stop", "length"))
    ]
    graded, _ = grade_runs(BENCHMARKS["wemath"], [question], runs, "last_committed")
    assert [run[0].verdict.extracted for run in graded] == ["B", None]


def test_last_boxed_is_the_other_rule_for_every_kind_of_answer():
    response = "\\boxed{A}, then \\boxed{B}. The answer is A."
    for name, question in (("ai2d", item("ai2d", question="?", answer="1", **LETTERED)),
                           ("mmmu", mmmu()), ("wemath", wemath(1, "2steps_1")),
                           ("mathvista", choice())):  # fmt: skip
        grade = BENCHMARKS[name].grade
        for rule in ("first_committed", "last_committed"):
            assert not grade(response, question, rule).is_correct
        assert grade(response, question, "last_boxed").is_correct
