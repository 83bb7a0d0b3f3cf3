"""Pages in a real browser: text of models, data and recipes runs nothing and reaches nowhere."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev extra)")

from playwright.sync_api import Browser, Page
from screenshots import browser_path, chromium
from tests.study.conftest import BASE
from tests.study.conftest import write_run as write_study_run
from written_runs import LATEX, row, stored, write_evaluation, write_rows

from vaopd.evaluation.comparison import Comparison
from vaopd.evaluation.comparison_page import page as comparison_page
from vaopd.evaluation.flips import Flip, FlipSide
from vaopd.records import write_text
from vaopd.report.report import write_report
from vaopd.study.recipe import load_plan
from vaopd.study.run import write_study
from vaopd.study.runs import run_folder

pytestmark = pytest.mark.skipif(
    browser_path() is None, reason="no chromium, chromium-browser or google-chrome in PATH"
)

OUTSIDE = "http://127.0.0.1:9"
IMAGE = f"<img src={OUTSIDE}/i onerror=window.broken=1>"
SCRIPT = "</script><script>window.broken=1</script>"
ATTRIBUTE = '" onmouseover="window.broken=1" autofocus onfocus=\'window.broken=1\' x="'
STYLE = f"</style><style>body {{ background: url({OUTSIDE}/s) }}</style>"
LINK = f"<a href=javascript:window.broken=1>x</a><iframe src={OUTSIDE}></iframe>"
VECTOR = "<svg onload=window.broken=1></text>"
HOSTILE = IMAGE + SCRIPT + ATTRIBUTE + STYLE + LINK + VECTOR + "{{ 7 * 7 }} ${7*7} $\\frac{"
"""Markup of every kind, and a formula that does not parse."""

NAME = "</text><img src=x onerror=window.broken=1> $\\frac{"
"""A shorter name, for figures."""


@dataclass
class Watched:
    """A page that was opened, and what it tried."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[[Path], Watched]]:
    opened: list[Page] = []

    def open_(path: Path) -> Watched:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        seen = Watched(page)
        opened.append(page)
        page.on("request", lambda request: seen.asked.append(request.url))
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        page.goto(path.as_uri())
        return seen

    yield open_
    for page in opened:
        page.close()


def check_inert(seen: Watched) -> None:
    """Check that no text of a page became markup, and that the page cannot reach a network."""
    page = seen.page
    for element in page.locator("a, summary, button, [tabindex]").all()[:20]:
        element.dispatch_event("mouseover")
    assert page.evaluate("window.broken") is None
    assert page.locator("iframe, img[onerror], svg[onload], [onmouseover], [onfocus]").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
    assert seen.complaints == []
    # Even markup that got in could load nothing: the browser itself refuses.
    tried = page.evaluate(
        """address => Promise.all([
            fetch(address).then(() => 'loaded', () => 'refused'),
            new Promise(done => {
                const image = new Image();
                image.onload = () => done('loaded');
                image.onerror = () => done('refused');
                image.src = address;
            }),
        ])""",
        OUTSIDE,
    )
    assert tried == ["refused", "refused"]
    refused = [text for text in seen.complaints if "Content Security Policy" in text]
    assert len(refused) >= 2, seen.complaints


def hostile_run(folder: Path) -> Path:
    run = folder / "<img src=x onerror=window.broken=1>"
    run.mkdir()
    config = {"student": {"model": HOSTILE}, "teacher": {"model": HOSTILE},
              "method": {"name": HOSTILE}, HOSTILE: HOSTILE}  # fmt: skip
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "environment.json").write_text(json.dumps({"device": HOSTILE, HOSTILE: HOSTILE}))
    write_rows(run / "metrics.jsonl", [{"step": 1, "loss": 1.0, f"va/{HOSTILE}": 2.0, HOSTILE: 1}])
    write_rows(
        run / "validation.jsonl",
        [{"step": s, "accuracy": 0.5, "accuracy_by_kind": {HOSTILE: 0.5}} for s in (0, 1)],
    )
    write_rows(run / "warnings.jsonl", [{"step": 1, "name": HOSTILE, "text": HOSTILE}])
    pictures = stored(run / "rollouts", "one")
    tokens = [*LATEX, *HOSTILE.split(" ")]
    hostile = {"problem_id": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE, "kind": HOSTILE}
    rows = [row(tokens, **hostile, **pictures, finish_reason=HOSTILE, sibling=n) for n in (0, 1)]
    write_rows(run / "rollouts" / "step_000001.jsonl", rows)
    write_evaluation(run / "evaluations" / "a<b onclick=x>", [True, False])
    return run


def test_a_report_of_hostile_text_is_inert(tmp_path: Path, watch: Callable[[Path], Watched]):
    run = hostile_run(tmp_path)
    seen = watch(write_report([run], tmp_path / "report.html").path)
    shown = seen.page.locator("#group .text").first.inner_text()
    assert "onerror=window.broken=1" in shown
    check_inert(seen)


def test_a_study_page_of_hostile_text_is_inert(tmp_path: Path, watch: Callable[[Path], Watched]):
    study = {
        "recipe": "base.yaml",
        "seeds": [0, 1],
        "tables": {
            "methods": {
                "title": HOSTILE,
                "baseline": "opd",
                "figures": ["intervals", "curves", "sparsity"],
                "axis": {"name": NAME, "value": 0.5},
                "arms": {"opd": ["method.name=opd"], NAME: []},
            }
        },
    }
    write_text(tmp_path / "base.yaml", BASE)
    write_text(tmp_path / "study.yaml", json.dumps(study))
    plan = load_plan(tmp_path / "study.yaml")
    for arm in plan.tables[0].arms.values():
        for run in arm.runs.values():
            write_study_run(run_folder(tmp_path / "out", run), [False] * 4, [True] * 4)
    write_study(plan, tmp_path / "out", {HOSTILE: HOSTILE}, ["vaopd", "study", HOSTILE])
    seen = watch(tmp_path / "out" / "study.html")
    assert "onerror=window.broken=1" in seen.page.locator("h2").first.inner_text()
    check_inert(seen)


def test_a_comparison_of_hostile_names_is_inert(
    tmp_path: Path, watch: Callable[[Path], Watched], monkeypatch: pytest.MonkeyPatch
):
    side = FlipSide(1, 2, HOSTILE, True, HOSTILE)
    flip = Flip(HOSTILE, HOSTILE, HOSTILE, side, side)
    monkeypatch.setattr("vaopd.evaluation.comparison_page.flips", lambda *_: [flip])
    one = Comparison(
        benchmark=NAME,
        metric=HOSTILE,
        num_items=9,
        first=1.0,
        second=2.0,
        difference=1.0,
        low=0.5,
        high=1.5,
        p_difference=0.1,
        first_only=1,
        second_only=2,
        p_mcnemar=0.2,
        unparsed=(0.0, 0.0),
        left_out=(0, 0),
    )
    (tmp_path / "comparison.html").write_text(comparison_page([one], Path(HOSTILE), Path(HOSTILE)))
    seen = watch(tmp_path / "comparison.html")
    assert "onerror=window.broken=1" in seen.page.locator("code").first.inner_text()
    check_inert(seen)
