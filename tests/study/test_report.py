import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaopd import cli
from vaopd.evaluation.statistics import Interval
from vaopd.records import write_text
from vaopd.study.figures import Point, interval_plot
from vaopd.study.headline import headline
from vaopd.study.pages import is_study, write_reports
from vaopd.study.recipe import load_plan
from vaopd.study.results import ArmComparison, Results
from vaopd.study.run import write_study
from vaopd.study.runs import run_folder

WRONG, HALF, ALL = [False] * 4, [True, True, False, False], [True] * 4
UNCLEAR = "The difference in accuracy is not distinguishable from zero"


@pytest.fixture
def page(recipe: Path, finish: Callable, tmp_path: Path) -> str:
    plan = load_plan(recipe)
    for name, arm in [*plan.tables[0].arms.items(), *plan.tables[1].arms.items()]:
        for run in arm.runs.values():
            finish(run, WRONG, {"va_opd": ALL, "blur": ALL}.get(name, WRONG))
    write_study(plan, tmp_path / "out", {"x": "<b>bold</b>"}, ["vaopd", "study", "<recipe>"])
    return (tmp_path / "out" / "study.html").read_text()


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.031, 0.01, 0.05), "va_opd answers more than opd: +3.1 points (+1.0 to +5.0)"),
        (
            Interval(-0.03, -0.05, -0.01),
            "va_opd answers fewer than opd: -3.0 points (-5.0 to -1.0)",
        ),
        (Interval(0.031, -0.01, 0.05), UNCLEAR),
        (Interval(0.031, None, None), UNCLEAR),
    ],
)
def test_the_headline_names_a_difference_only_if_its_interval_leaves_zero_out(
    recipe: Path, interval: Interval, said: str
):
    gaps = [
        ArmComparison("methods", arm, "opd", "accuracy", gap, [0, 1])
        for arm, gap in (("base", Interval(-0.5, -0.6, -0.4)), ("va_opd", interval))
    ]
    plan = load_plan(recipe, tables=["methods"])
    assert headline(plan, Results([], [], gaps)) == said


def test_the_headline_counts_what_it_does_not_name(recipe: Path):
    plan = load_plan(recipe)
    assert "no two trained arms" in headline(plan, Results([], [], []))
    clear, unclear = Interval(0.031, 0.01, 0.05), Interval(0.0, -0.1, 0.1)
    gaps = [ArmComparison("views", "blur", "va_opd", "accuracy", clear, [0])] * 5
    said = headline(plan, Results([], [], gaps))
    assert said.count("blur answers more than va_opd: +3.1 points (+1.0 to +5.0) in Views") == 3
    assert said.endswith("; and 2 more of 5")
    gaps = [ArmComparison("views", "blur", "va_opd", "accuracy", unclear, [0])] * 2
    said = headline(plan, Results([], [], gaps))
    assert said == "None of the 2 differences in accuracy is distinguishable from zero"


def test_each_seed_leads_to_the_report_of_its_run(recipe: Path, finish: Callable, tmp_path: Path):
    plan = load_plan(recipe, tables=["methods"], seeds=[1])
    out = tmp_path / "out"
    for arm in ("opd", "va_opd"):
        run = plan.tables[0].arms[arm].runs[1]
        finish(run, WRONG, ALL)
        write_text(run_folder(out, run) / "config.yaml", run.config.to_yaml())
    write_study(plan, out, {}, ["vaopd", "study"])
    links = re.findall(r'<a href="(runs/[^"]+)">1</a>', (out / "study.html").read_text())
    reports = sorted(out.glob("runs/*/report.html"))
    # The untrained arm is read from another arm's run and has no link.
    assert sorted({out / link for link in links}) == reports
    assert len(reports) == 2
    for report in reports:
        report.write_text("kept")
    assert write_reports(out, is_new_only=True) == reports
    assert {report.read_text() for report in reports} == {"kept"}


def inspected(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["inspect", *map(str, arguments)])
    return done.exit_code, f"{done.stdout}{done.exception or ''}"


def test_inspecting_a_study_writes_the_reports_of_its_runs(
    recipe: Path, finish: Callable, tmp_path: Path
):
    run = load_plan(recipe).tables[0].arms["opd"].runs[1]
    folder, out = run_folder(tmp_path / "out", run), tmp_path / "out"
    write_text(folder / "config.yaml", run.config.to_yaml())
    assert is_study(out)
    assert not is_study(folder)
    code, said = inspected(out)
    assert (code, "no run of the study" in said) == (1, True)
    finish(run, WRONG, ALL)
    code, said = inspected(out)
    assert (code, said.startswith("1 reports")) == (0, True), said
    assert (folder / "report.html").is_file()
    code, said = inspected(out, "--output", tmp_path / "page.html")
    assert (code, "leave out --output" in said) == (1, True)


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


def test_the_page_shows_means_differences_and_what_is_not_distinguishable(page: str):
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    # va_opd answers everything, opd nothing, over all problems and seeds.
    assert re.search(r"va_opd\s+0\s*, 1\s+100\.0\s+\(100\.0 to 100\.0\)", text)
    assert re.search(r"over opd\s+\+100\.0\s+\(100\.0 to 100\.0\)\s+\+", text)
    assert re.search(r"over va_opd\s+\+0\.0\s+\(0\.0 to 0\.0\)\s+not distinguishable", text)
    assert "va_opd answers 100.0% correctly and opd 0.0%: +100.0 points (+100.0 to +100.0)" in text
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
