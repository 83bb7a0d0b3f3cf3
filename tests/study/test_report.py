import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vaopd.evaluation.statistics import Interval
from vaopd.study.figures import Point, interval_plot
from vaopd.study.recipe import load_plan
from vaopd.study.report import difference_text
from vaopd.study.run import write_study

WRONG, HALF, ALL = [False] * 4, [True, True, False, False], [True] * 4


@pytest.fixture
def page(recipe: Path, finish: Callable, tmp_path: Path) -> str:
    plan = load_plan(recipe)
    for name, arm in [*plan.tables[0].arms.items(), *plan.tables[1].arms.items()]:
        for run in arm.runs.values():
            finish(run, WRONG, {"va_opd": ALL, "blur": ALL}.get(name, WRONG))
    write_study(plan, tmp_path / "out", {"x": "<b>bold</b>"}, ["vaopd", "study", "<recipe>"])
    return (tmp_path / "out" / "study.html").read_text()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.031, 0.01, 0.05), "+3.1"),
        (Interval(-0.031, -0.05, -0.01), "-3.1"),
        (Interval(0.031, -0.01, 0.05), "none"),
        (Interval(0.031, 0.0, 0.05), "none"),
        (Interval(0.0, 0.0, 0.0), "none"),
        (Interval(0.031, None, None), "+3.1 (one seed)"),
    ],
)
def test_a_difference_is_only_named_when_its_interval_leaves_zero_out(
    interval: Interval, text: str
):
    assert difference_text(interval, lambda value: f"{100 * value:.1f}") == text


def test_the_page_needs_nothing_from_outside(page: str):
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    assert policy is not None
    assert policy[1] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = page.replace(policy[0], "")
    links = re.findall(r'(?:href|src|url\()\s*=?\s*["\']?([^"\'\s>)]+)', page)
    assert links
    assert all(link.startswith("#") or "w3.org" in link for link in links)
    assert "<script" not in page
    assert "@import" not in page


def test_the_page_closes_what_it_opens_and_ids_are_unique(page: str):
    seen: list[str] = []
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.extend(value or "" for name, value in attrs if name == "id")
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []
    assert {"methods", "views", "map"} <= set(seen)
    assert len(seen) == len(set(seen)) > 100
    used = re.findall(r'(?:href="#|url\(#)([^"\)]+)', page)
    assert used
    assert set(used) <= set(seen)


def test_the_page_shows_means_differences_and_what_is_none(page: str):
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    # va_opd answers everything, opd nothing, over all problems and seeds.
    assert re.search(r"va_opd\s+2\s+100\.0\s+100\.0 to 100\.0", text)
    assert re.search(r"over opd\s+\+100\.0", text)
    assert re.search(r"over va_opd\s+none", text)
    assert "Accuracy by kind of problem" in text


def test_the_foot_names_command_commit_seeds_and_machine(page: str):
    for text in ("vaopd study &#39;&lt;recipe&gt;&#39;", "abc1234", "0, 1", "cores"):
        assert text in page
    assert "<recipe>" not in page


def test_plots_take_the_colour_of_the_page_and_scale_with_it():
    svg = interval_plot([Point("an <arm>", Interval(0.5, 0.4, 0.6))], "accuracy")
    assert svg.startswith("<svg")
    opening = svg[: svg.index(">")]
    assert "viewBox" in opening
    assert "width=" not in opening
    assert "currentColor" in svg
    assert "#010203" not in svg
    # Text is text, so it can be searched and read aloud, and is escaped.
    assert "an &lt;arm&gt;" in svg


def test_curves_sparsity_and_the_regime_map_are_drawn(page: str):
    # Two of accuracy, three curves and one of sparsity; two of accuracy; one map.
    assert page.count("<svg") == 6 + 2 + 1
    for label in ("steps", "seconds", "tokens", "share of VA", "strength", "blur - va_opd"):
        assert re.search(rf">\s*{re.escape(label)}\s*<", page), label
