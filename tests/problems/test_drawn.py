import hashlib
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaopd.errors import ConfigError
from vaopd.grading.grades import grade
from vaopd.problems.dialects import DIALECTS
from vaopd.problems.drawn import DrawnProblems, parse_source
from vaopd.problems.figures import KINDS, SIDE_PIXELS, Canvas
from vaopd.problems.problem import Problem
from vaopd.views import pixelate

SOLVED = ("triangle", "rectangle", "circle", "bars", "dial", "table")
"""The kinds with words and arithmetic."""

READ_ALOUD = ("number", "numbers")

READING = re.compile(r"(?:is|has the label|there stands|carries the value) (\d+)")


def readings(reference: str) -> list[int]:
    """Return the numbers that a reference says it read in the figure."""
    return [int(number) for number in READING.findall(reference.split("\\boxed")[0])]


def solution(problem: Problem, numbers: list[int]) -> int:
    """Return the answer that the question and the readings call for."""
    match problem.kind:
        case "triangle":
            first, second = numbers
            return 180 - first - second
        case "rectangle":
            width, height = numbers
            return 2 * (width + height)
        case "circle":
            (radius,) = numbers
            return 2 * radius
        case "bars" | "table":
            first, second = numbers
            return first + second
        case "dial":
            (number,) = numbers
            step = re.search(r"What is (\d+) more", problem.prompt)
            assert step is not None
            return number + int(step[1])
    raise AssertionError(problem.kind)


@pytest.mark.parametrize("wording", [0, 1])
def test_every_answer_follows_from_question_and_readings(wording):
    problems = DrawnProblems(num_problems=240, wording=wording, references=2, kinds=SOLVED)
    checked = Counter()
    for problem in problems:
        for reference in problem.references:
            assert problem.answer == str(solution(problem, readings(reference)))
            checked[problem.kind] += 1
    assert checked == dict.fromkeys(SOLVED, 80)


def test_every_sum_in_a_reference_is_right_and_the_last_one_is_the_answer():
    count = 0
    for problem in DrawnProblems(num_problems=240, wording=0.5, kinds=SOLVED):
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", problem.references[0])
        for left, sign, right, total in sums:
            assert int(left) + int(f"{sign}{right}") == int(total)
            count += 1
        assert sums[-1][-1] == problem.answer
    # Triangles and rectangles take two steps, the other four kinds one.
    assert count == 240 // 6 * (2 + 2 + 4)


def test_reading_aloud_ends_in_the_last_number_of_the_figure():
    for problem in DrawnProblems(num_problems=60, kinds=READ_ALOUD):
        numbers = re.findall(r"\b\d\d\b", problem.references[0].split("\\boxed")[0])
        assert problem.references[0] == f"{' '.join(numbers)}. \\boxed{{{numbers[-1]}}}"
        assert problem.answer == numbers[-1]


def test_sums_are_asked_in_words_and_right_without_the_picture():
    signs = Counter()
    for problem in DrawnProblems(num_problems=60, kinds=("sum",)):
        task = re.fullmatch(r"<image>What is (\d+) ([+-]) (\d+)\?", problem.prompt)
        assert task is not None
        left, sign, right = task.groups()
        assert problem.answer == str(int(left) + int(f"{sign}{right}"))
        written = f"{left} {sign} {right} = {problem.answer}"
        assert problem.references == (f"{written}. \\boxed{{{problem.answer}}}",)
        signs[sign] += 1
    assert min(signs["+"], signs["-"]) > 5


def test_a_misreading_is_followed_to_the_end_and_leaves_the_answer_alone():
    right, wrong = Counter(), Counter()
    for index, problem in enumerate(DrawnProblems(num_problems=240, misread=0.5, kinds=SOLVED)):
        truth = DrawnProblems(num_problems=240, kinds=SOLVED)[index]
        assert (problem.images, problem.answer) == (truth.images, truth.answer)
        given, seen = readings(truth.references[0]), readings(problem.references[0])
        conclusion = solution(problem, seen)
        assert problem.references[0].endswith(f"\\boxed{{{conclusion}}}")
        assert conclusion > 0
        for value, read in zip(given, seen, strict=True):
            (right if value == read else wrong)[problem.kind] += 1
            # One digit is wrong, and both numbers have two.
            assert sum(a != b for a, b in zip(str(value), str(read), strict=True)) <= 1
    assert set(wrong) == set(SOLVED)
    assert 0.4 < wrong.total() / (wrong + right).total() < 0.55


def test_told_problems_give_in_words_what_others_print():
    drawn, told = DrawnProblems(kinds=SOLVED), DrawnProblems(kinds=SOLVED, told=1)
    mixed = DrawnProblems(kinds=SOLVED, told=0.5)
    chosen = Counter()
    for index in range(60):
        plain, given = drawn[index], told[index]
        assert (plain.answer, plain.references) == (given.answer, given.references)
        assert plain.images != given.images
        words = given.prompt.removeprefix(f"{plain.prompt} Given: ")
        numbers = [int(n) for n in re.findall(r"\d+", words)]
        assert numbers == readings(plain.references[0])
        assert mixed[index] in (plain, given)
        chosen[mixed[index] == given] += 1
    assert min(chosen.values()) > 15


def test_varied_print_shows_the_same_numbers_in_other_ways():
    plain, varied = DrawnProblems(kinds=tuple(KINDS)), DrawnProblems(kinds=tuple(KINDS), variety=1)
    half = DrawnProblems(kinds=tuple(KINDS), variety=0.5)
    same = 0
    for index in range(54):
        if plain[index].kind == "sum":
            continue  # nothing is printed
        assert plain[index].images != varied[index].images
        same += plain[index].images == half[index].images
    # Figures with one number keep it plain half of the time, those with six hardly ever.
    assert 5 < same < 25


@pytest.mark.parametrize("kind", SOLVED)
def test_varied_print_stays_inside_the_figure(kind: str):
    for problem in DrawnProblems(num_problems=40, kinds=(kind,), variety=1):
        (image,) = problem.load_images()
        edge = np.asarray(image.convert("L")).astype(int)
        border = np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]])
        assert border.min() > 115, "print is darker than shapes"


def test_problems_that_teach_reading_are_never_told():
    for kinds in (READ_ALOUD, ("sum",)):
        drawn = DrawnProblems(num_problems=20, kinds=kinds)
        assert list(drawn) == list(DrawnProblems(num_problems=20, kinds=kinds, told=1))


def test_reading_aloud_is_never_misread():
    aloud = DrawnProblems(num_problems=20, kinds=READ_ALOUD)
    assert list(aloud) == list(DrawnProblems(num_problems=20, kinds=READ_ALOUD, misread=1))


def test_every_kind_is_tested_somewhere_here():
    assert {*SOLVED, *READ_ALOUD, "sum"} == set(KINDS)


def test_references_end_in_a_box_that_is_graded_as_right():
    for problem in DrawnProblems(num_problems=60, wording=0.5, references=2):
        for reference in problem.references:
            assert reference.endswith(f" \\boxed{{{problem.answer}}}")
            assert grade(reference, problem.answer or "").is_correct
            assert not grade(reference, str(int(problem.answer or 0) + 1)).is_correct


def test_problems_are_functions_of_split_seed_and_index():
    first = DrawnProblems(num_problems=20, seed=3, wording=0.5)
    assert list(first) == list(DrawnProblems(num_problems=20, seed=3, wording=0.5))
    assert first[7] == DrawnProblems(num_problems=1000, seed=3, wording=0.5)[7]
    assert first[7].images != DrawnProblems(seed=4)[7].images


def test_wording_and_number_of_references_leave_the_figure_alone():
    plain, wordy = DrawnProblems(), DrawnProblems(wording=1, references=3)
    for index in range(14):
        assert plain[index].images == wordy[index].images
        assert plain[index].answer == wordy[index].answer
    assert len(wordy[0].references) == 3


def test_a_problem_is_drawn_only_when_it_is_asked_for():
    problems = DrawnProblems(num_problems=10**15)
    assert len(problems) == 10**15
    assert problems[10**15 - 1] == problems[-1]
    assert problems[-1].id == f"drawn:train:0:{10**15 - 1}"


def test_indices_work_as_in_any_sequence():
    problems = DrawnProblems(num_problems=10)
    assert [p.id for p in problems[2:8:3]] == ["drawn:train:0:2", "drawn:train:0:5"]
    assert problems[-3:] == list(problems)[7:]
    assert problems[20:] == []
    for index in (10, -11):
        with pytest.raises(IndexError):
            problems[index]


def test_no_image_is_drawn_twice_in_or_across_splits_and_seeds():
    hashes = Counter(
        problem.images[0]
        for split in ("train", "validation", "test")
        for seed in (0, 1)
        for problem in DrawnProblems(split=split, num_problems=120, seed=seed)
    )
    assert hashes.total() == len(hashes) == 720


def test_the_kinds_take_turns():
    counts = Counter(p.kind for p in DrawnProblems(num_problems=18, kinds=SOLVED))
    assert counts == dict.fromkeys(SOLVED, 3)
    chosen = DrawnProblems(num_problems=4, kinds=("dial", "bars"))
    assert [problem.kind for problem in chosen] == ["dial", "bars", "dial", "bars"]


def sentences(wording: int) -> set[str]:
    """Return the sentences of references, numbers and quantities taken out."""
    found = set()
    for problem in DrawnProblems(num_problems=180, wording=wording, kinds=SOLVED):
        for sentence in re.split(r"(?<=[.?:]) ", problem.references[0]):
            found.add(re.sub(r"[\d+=, -]+|\\boxed.*", "", sentence))
    return found


def test_the_two_dialects_share_no_sentence():
    first, second = sentences(0), sentences(1)
    assert min(len(first), len(second)) > 10
    assert first & second <= {""}
    for dialect, own in zip(DIALECTS, (first, second), strict=True):
        assert {re.sub(r"[\d+=, -]+", "", rule) for rule in dialect.rules.values()} <= own


def test_wording_is_the_share_of_the_second_dialect():
    closings = DIALECTS[1].closings
    problems = DrawnProblems(num_problems=400, wording=0.25, kinds=SOLVED)
    references = [problem.references[0] for problem in problems]
    share = sum(any(c in r for c in closings) for r in references) / 400
    # Four standard deviations of a binomial share are 0.087.
    assert abs(share - 0.25) < 0.087


def test_figures_are_small_squares_that_keep_their_size_when_pixelated():
    for problem in DrawnProblems(num_problems=12):
        (image,) = problem.load_images()
        assert (image.mode, image.size) == ("RGB", (SIDE_PIXELS, SIDE_PIXELS))
        assert pixelate(image, 0.1).size == image.size


def labelled(number: int, row: int) -> Canvas:
    canvas = Canvas(random.Random(5))
    canvas.label(number, 2, row)
    return canvas


def difference(canvas: Canvas, other: Canvas, ratio: float) -> int:
    """Return the largest gap between two pixelated figures, in grey levels."""
    one, two = (np.asarray(pixelate(c.image, ratio)).astype(int) for c in (canvas, other))
    return int(np.abs(one - two).max())


@pytest.mark.parametrize(("number", "other"), [(11, 88), (38, 83), (17, 71), (56, 65)])
def test_pixelation_hides_which_number_is_printed_and_keeps_where(number, other):
    # Ink on paper differs by more than 200 of 255 grey levels.
    assert difference(labelled(number, 2), labelled(other, 2), 1.0) > 200
    which = difference(labelled(number, 2), labelled(other, 2), 0.1)
    where = difference(labelled(number, 2), labelled(number, 4), 0.1)
    assert which <= 20 < 25 <= where


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "0"}, "count=0"),
        ({"references": "0"}, "references=0"),
        ({"wording": "1.5"}, "wording=1.5"),
        ({"wording": "nan"}, "wording=nan"),
        ({"misread": "-0.1"}, "misread=-0.1"),
        ({"told": "2"}, r"told=2\.0"),
        ({"scaffolding": "-1"}, "scaffolding=-1.0; it must be in"),
        ({"scaffolding": "nan"}, "scaffolding=nan"),
        ({"count": "many"}, "option count='many' of drawn problems must be a number"),
        ({"count": "1.5"}, "option count='1.5'"),
        (
            {"size": "3"},
            "no option 'size'; use count, seed, references, scaffolding, wording, variety, told, ",
        ),
        ({"kinds": "bars+cube"}, r"unknown drawn kinds \['cube'\]; choose from triangle\+"),
        ({"kinds": ""}, r"unknown drawn kinds \[\]"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_source("train", options)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no split 'dev'; use train, validation or test"):
        parse_source("dev", {})


def test_options_reach_the_problems():
    options = {"count": "5", "seed": "2", "references": "3", "wording": "0.5", "kinds": "bars dial"}
    assert parse_source("test", options) == DrawnProblems(
        split="test", num_problems=5, seed=2, references=3, wording=0.5, kinds=("bars", "dial")
    )


@settings(max_examples=50, deadline=None)
@given(index=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_every_problem_has_a_positive_answer(index, seed):
    problem = DrawnProblems(num_problems=10**6 + 1, seed=seed)[index]
    assert 0 < int(problem.answer or 0) < 400
    assert problem.prompt.startswith("<image>")


def reference_texts(**options) -> list[str]:
    problems = DrawnProblems(num_problems=240, kinds=SOLVED, **options)
    return [problem.references[0] for problem in problems]


def test_the_usual_scaffolding_is_what_drawn_problems_always_said():
    # Of the first dialect, over prompts, answers and references: datasets made by earlier versions.
    text = "".join(
        f"{p.id}{p.prompt}{p.answer}{p.references}"
        for p in DrawnProblems(num_problems=96, references=2, kinds=SOLVED)
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "7883c3da22a1ff5ee7309dc335c122e3c12146f6c1a63660bba2c0128e1bf142"
    # And of both dialects: no random number is drawn for sentences that are not there.
    assert reference_texts(wording=0.5) == reference_texts(wording=0.5, scaffolding=1)


@pytest.mark.parametrize("wording", [0, 1])
def test_more_scaffolding_is_that_many_sentences_more_for_each_reading(wording):
    usual, more, most = (
        [
            text.count(".") + text.count("?")
            for text in reference_texts(wording=wording, scaffolding=s)
        ]
        for s in (1, 2, 3.5)
    )
    wanted = [len(KINDS[k](Canvas(random.Random(0))).readings) for k in SOLVED] * (
        240 // len(SOLVED)
    )
    # One sentence is added for each reading; the first dialect has one full stop in each.
    extra = [after - before for before, after in zip(usual, more, strict=True)]
    assert extra == wanted
    # 2.5 for each reading on average, half a sentence up or down where there is one reading.
    assert all(abs(m - u - 2.5 * n) <= 0.5 for u, m, n in zip(usual, most, wanted, strict=True))


def test_no_scaffolding_leaves_out_introduction_and_rule():
    texts = reference_texts(scaffolding=0)
    for text in texts:
        assert not any(intro in text for intro in DIALECTS[0].intros)
        assert not any(rule in text for rule in DIALECTS[0].rules.values())
    assert sum(DIALECTS[0].intros[0] in text for text in reference_texts()) > 20


def test_fillers_hold_no_number():
    texts = [text for dialect in DIALECTS for text in dialect.fillers]
    assert not any(character.isdigit() for text in texts for character in text)
