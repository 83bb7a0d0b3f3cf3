import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from written_runs import write_evaluation

from vaopd.errors import ConfigError, RunFolderError
from vaopd.report.evaluations import evaluation_tables, find_evaluations
from vaopd.report.report import follow_report, report_path, write_report

RIGHT = [True] * 10 + [False] * 30
MORE = [True] * 30 + [False] * 10


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """A run with two evaluations inside, of 10 and of 30 right answers of 40."""
    folder = make_run()
    write_evaluation(folder / "evaluations" / "best", RIGHT)
    write_evaluation(folder / "evaluations" / "final", MORE)
    return folder


def test_evaluations_inside_a_run_and_named_ones_are_found_once(run: Path, tmp_path: Path):
    other = write_evaluation(tmp_path / "other", RIGHT)
    (run / "evaluations" / "unfinished").mkdir()
    found = find_evaluations([other, run, run / "evaluations" / "best"])
    assert [one.name for one in found] == ["other", "best", "final"]


def test_every_score_has_its_interval_and_shares(run: Path):
    tables = evaluation_tables(find_evaluations([run]))
    assert [(row["span"], row["evaluation"], row["value"]) for row in tables["rows"]] == [
        (2, "best", 25.0), (0, "final", 75.0),
    ]  # fmt: skip
    first = tables["rows"][0]
    assert first["benchmark"] == "drawn problems"
    assert (first["low"], first["high"], first["unparsed"], first["truncated"]) == (
        20.0, 30.0, 0.25, 0.125,
    )  # fmt: skip


def test_others_are_compared_with_the_first(run: Path, tmp_path: Path):
    other = write_evaluation(tmp_path / "other", RIGHT)
    pairs = evaluation_tables(find_evaluations([run, other]))["comparisons"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        ("best", "final"), ("best", "other"),
    ]  # fmt: skip
    (better,), (same,) = (pair["rows"] for pair in pairs)
    assert (better["difference"], better["second_only"], better["is_clear"]) == (50.0, 20, True)
    assert (same["difference"], same["is_clear"], same["p_mcnemar"]) == (0.0, False, 1.0)


def test_evaluations_of_another_protocol_are_shown_and_not_compared(run: Path, tmp_path: Path):
    write_evaluation(run / "evaluations" / "longer", MORE, limit=128)
    tables = evaluation_tables(find_evaluations([run]))
    assert len(tables["rows"]) == 3
    pair = tables["comparisons"][1]
    assert (pair["second"], pair["rows"]) == ("longer", [])
    assert "max_new_tokens=64" in pair["reason"]
    page = write_report([run], tmp_path / "page.html").path.read_text()
    assert "Not compared: " in page


def test_a_score_without_a_value_is_a_dash(run: Path, tmp_path: Path):
    path = run / "evaluations" / "best" / "results.json"
    results = json.loads(path.read_text())
    results["benchmarks"]["drawn"] |= {"value": None, "interval": [None, None]}
    path.write_text(json.dumps(results))
    page = write_report([run], tmp_path / "page.html").path.read_text()
    assert re.search(r"strong\">–</td>\s*<td class=\"number\">– to –</td>\s*<td></td>", page)


def test_damaged_results_are_named(run: Path):
    path = run / "evaluations" / "best" / "results.json"
    for text, message in (("{", "is not JSON"), ('{"benchmarks": [1]}', "has no benchmarks")):
        path.write_text(text)
        with pytest.raises(RunFolderError, match=message):
            find_evaluations([run])


def test_a_page_needs_a_run(run: Path):
    only = [run / "evaluations" / "best"]
    with pytest.raises(ConfigError, match="is an evaluation; name the run folder before it"):
        report_path(only, None)
    assert report_path([*only, run], None) == run / "report.html"


def test_a_run_without_evaluations_has_no_such_section(make_run: Callable[..., Path]):
    plain = make_run("plain")
    page = write_report([plain], plain / "report.html").path.read_text()
    assert 'id="evaluations"' not in page


def test_a_page_that_follows_a_run_takes_new_evaluations(make_run: Callable[..., Path]):
    run = make_run(is_finished=False)
    seen = []

    def wait(_: float) -> None:
        seen.append('id="evaluations"' in (run / "report.html").read_text())
        if len(seen) == 1:
            write_evaluation(run / "evaluations" / "best", RIGHT)
        else:
            (run / "summary.json").write_text("{}")

    follow_report([run], run / "report.html", wait=wait)
    assert seen == [False, True]


def test_hostile_names_stay_text(make_run: Callable[..., Path], tmp_path: Path):
    run = make_run()
    write_evaluation(tmp_path / "<img src=x onerror=alert(1)>", RIGHT, benchmark="my<b>own")
    page = write_report(
        [run, tmp_path / "<img src=x onerror=alert(1)>"], run / "report.html"
    ).path.read_text()
    assert "<img src=x" not in page
    assert "my<b>own" not in page
    assert "my&lt;b&gt;own" in page
