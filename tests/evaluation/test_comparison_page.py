"""The page of two evaluations: a sentence for each result and the items that flipped."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vaopd.evaluation.comparison import compare_folders
from vaopd.evaluation.comparison_page import MOST_FLIPS, page, sentence
from vaopd.evaluation.flips import MOST_CHARACTERS, Flip, FlipSide, flips
from vaopd.records import write_rows


def write_answers(folder: Path, verdicts: list[list[bool]], text: str = "I say <b>{}</b>") -> Path:
    """Write an evaluation of one benchmark: by item, whether each sample is right."""
    place = folder / "drawn"
    write_rows(
        place / "items.jsonl",
        [
            {"id": f"p{n}", "prompt": f"Question {n}?", "reference": {"answer": "5"}, "cluster": ""}
            for n in range(len(verdicts))
        ],
    )
    samples = [(n, k, yes) for n, each in enumerate(verdicts) for k, yes in enumerate(each)]
    write_rows(
        place / "verdicts.jsonl",
        [
            {"id": f"p{n}", "sample": k, "extracted": "5" if yes else None, "is_correct": yes}
            for n, k, yes in samples
        ],
    )
    write_rows(
        place / "predictions.jsonl",
        [{"id": f"p{n}", "sample": k, "response": text.format(f"{n}.{k}")} for n, k, _ in samples],
    )
    return folder


def test_flipped_items_stand_side_by_side_with_both_responses(tmp_path: Path):
    # Item 0 is right in both, item 1 in B only, item 2 in A only; item 3 more often in A.
    first = write_answers(tmp_path / "a", [[True] * 2, [False] * 2, [True] * 2, [False, True]])
    second = write_answers(tmp_path / "b", [[True] * 2, [True] * 2, [False] * 2, [False] * 2])
    found = flips("drawn", first / "drawn", second / "drawn")
    assert [(flip.id, flip.is_gain) for flip in found] == [
        ("p2", False), ("p3", False), ("p1", True)
    ]  # fmt: skip
    # Of item 3 the second sample is shown, the first one that differs.
    assert (found[1].first.response, found[1].first.num_right) == ("I say <b>3.1</b>", 1)
    text = page(compare_folders(first, second), first, second)
    assert "2 that A answers better, then 1 that B answers better." in text
    assert text.count("<article>") == 3
    assert "I say &lt;b&gt;3.1&lt;/b&gt;" in text
    assert "A: right" in text
    assert "answer not recognised; 0 of 2 samples right" in text
    assert "Question 0?" not in text
    assert "currentColor" in text
    assert "#010203" not in text


def test_many_flips_are_counted_and_shown_from_both_sides(tmp_path: Path):
    many = MOST_FLIPS
    first = write_answers(tmp_path / "a", [[True]] * many + [[False]] * 5)
    second = write_answers(tmp_path / "b", [[False]] * many + [[True]] * 5)
    text = page(compare_folders(first, second), first, second)
    assert text.count("<article>") == MOST_FLIPS
    assert text.count("B: right") == 5
    assert f"{many} that A answers better, then 5 that B answers better." in text
    assert "5 of them are left out here." in text


def test_an_evaluation_without_responses_is_compared_and_says_so(tmp_path: Path):
    first = write_answers(tmp_path / "a", [[True], [True]])
    second = write_answers(tmp_path / "b", [[True], [False]], text="x" * (MOST_CHARACTERS + 7))
    (first / "drawn" / "predictions.jsonl").unlink()
    (flip,) = flips("drawn", first / "drawn", second / "drawn")
    assert flip.first.response is None
    assert "[7 characters left out]" in (flip.second.response or "")
    text = page(compare_folders(first, second), first, second)
    assert "The folder does not hold the response." in text


def test_a_difference_is_only_claimed_if_its_interval_leaves_zero_out(tmp_path: Path):
    first = write_answers(tmp_path / "a", [[True]] * 10 + [[False]] * 30)
    better = write_answers(tmp_path / "b", [[True]] * 30 + [[False]] * 10)
    (one,) = compare_folders(first, better)
    said = sentence(one)
    assert "B has more than A, 75.0 and 25.0: +50.0 points (" in said
    (same,) = compare_folders(first, first)
    # The interval has a width although no item differs.
    assert "+0.0 points (-6.6 to +6.6), is not distinguishable from zero" in sentence(same)


sides = st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(first=sides, second=sides)
def test_a_gain_is_a_larger_share(first: tuple[int, int], second: tuple[int, int]):
    a, b = (FlipSide(right, count, None, False, None) for right, count in (first, second))
    flip = Flip("p", "", "", a, b)
    assert flip.is_gain == (b.num_right / b.num_samples > a.num_right / a.num_samples)
