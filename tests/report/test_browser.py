"""The page in a real browser: what a reader sees, points at and presses."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev extra)")

from playwright.sync_api import Browser, Locator, Page, expect
from screenshots import browser_path, chromium
from written_runs import write_evaluation

from vaopd.report.report import write_report

pytestmark = pytest.mark.skipif(
    browser_path() is None, reason="no chromium, chromium-browser or google-chrome in PATH"
)
# A busy machine gives a browser a few per cent of a core; nothing here waits longer than it must.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a report from its file without a network; any complaint of the browser fails."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_(path: Path, **options: Any) -> Page:
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.context.set_offline(True)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture
def report(make_run: Callable[..., Path]) -> Path:
    run = make_run()
    return write_report([run], run / "report.html").path


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#filters [name={name}]")


def background(page: Page, token: str) -> str:
    place = page.locator(".token", has_text=re.compile(f"^{token}$")).first
    return place.evaluate("element => getComputedStyle(element).backgroundColor")


def test_tokens_show_their_numbers_when_pointed_at(report: Path, open_page: Callable):
    page = open_page(report)
    tokens = page.locator(".response").first.locator(".token")
    expect(tokens).to_have_count(17)
    tokens.nth(14).hover()
    details = page.locator("#details")
    # Token 14 has 14 / 2 = 7 nats, and is one of the ceil(17 / 5) = 4 last.
    expect(details).to_contain_text("45")
    expect(details.locator("tr", has_text="teacher VA")).to_contain_text("7.000")
    expect(details.locator("tr", has_text="log p, degraded")).to_contain_text("-7.100")
    expect(details.locator("tr", has_text="KL")).to_contain_text("0.300")
    expect(details.locator("tr", has_text="group")).to_contain_text("high")
    expect(details.locator("tr", has_text="token weight")).to_contain_text("0.0441")
    page.mouse.move(0, 0)
    expect(details).to_be_hidden()


def test_the_numbers_of_a_token_go_away_when_the_page_scrolls(report: Path, open_page: Callable):
    page = open_page(report, viewport={"width": 1000, "height": 600})
    tokens = page.locator(".response").first.locator(".token")
    tokens.nth(14).hover()
    details = page.locator("#details")
    expect(details).to_be_visible()
    page.evaluate("scrollBy({top: 200, behavior: 'instant'})")
    expect(details).to_be_hidden()


def test_a_late_report_of_an_earlier_scroll_leaves_the_numbers(report: Path, open_page: Callable):
    page = open_page(report, viewport={"width": 1000, "height": 600})
    page.locator(".response").first.locator(".token").nth(14).hover()
    details = page.locator("#details")
    expect(details).to_be_visible()
    page.evaluate("window.dispatchEvent(new Event('scroll'))")
    expect(details).to_be_visible()


def test_thumbnails_show_the_whole_image(report: Path, open_page: Callable):
    thumbnail = open_page(report).locator("#groups img").first
    assert thumbnail.evaluate("image => getComputedStyle(image).objectFit") == "contain"


def test_the_toggle_changes_the_colours_and_student_va_is_off_without_data(
    report: Path, open_page: Callable
):
    page = open_page(report)
    by_advantage = background(page, "The")
    page.get_by_label("KL", exact=True).check(force=True)
    by_divergence = background(page, "The")
    # "The" is the first token: advantage 0, largest KL.
    assert by_advantage != by_divergence
    expect(page.get_by_label("Student VA")).to_be_disabled()


def test_filters_keep_what_fits_and_sorting_orders_it(report: Path, open_page: Callable):
    page = open_page(report)
    items = page.locator("#groups li")
    expect(items).to_have_count(4)
    field(page, "step").select_option("2")
    expect(items).to_have_count(2)
    field(page, "problem").fill("how long")
    expect(items).to_have_count(1)
    expect(page.locator("#group .text")).to_have_text("How long is AB?")
    field(page, "correct").select_option("wrong")
    expect(page.locator("#count")).to_contain_text("1 of 8 rollouts")
    expect(page.locator(".response.dimmed")).to_have_count(1)
    field(page, "problem").fill("")
    field(page, "step").select_option("")
    field(page, "correct").select_option("")
    field(page, "sort").select_option("va-up")
    # Means of the siblings: (4 + 1.5) / 2 of the triangle, (1.25 + 0.5) / 2 of AB.
    expect(items.first).to_contain_text("How long is AB?")
    field(page, "va").fill("3")
    expect(items).to_have_count(2)
    expect(items.first).to_contain_text("Find the angle")


def test_model_text_is_text_and_formulas_are_formulas(report: Path, open_page: Callable):
    page = open_page(report)
    hostile = page.locator(".tokens").nth(1)
    expect(hostile).to_have_text("<script>window.broken=1</script><img src=x onerror=alert(1)>")
    assert page.evaluate("window.broken") is None
    assert page.locator("#group img[src='x']").count() == 0
    expect(page.locator(".reading math mfrac")).to_have_count(1)
    expect(page.locator(".reading menclose")).to_have_text("45")
    assert page.locator(".tokens").first.inner_text().count("\n") == 1


def test_other_scripts_stay_whole_and_right_to_left(report: Path, open_page: Callable):
    page = open_page(report)
    field(page, "problem").fill("AB")
    expect(page.locator(".tokens").first).to_have_text("角度是שלום مرحبا 45°")


def test_the_page_works_by_keyboard(report: Path, open_page: Callable):
    page = open_page(report)
    page.locator("#groups li[aria-selected=true]").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#group .text")).to_have_text("How long is AB?")
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    details = page.locator("#details")
    expect(details).to_contain_text("token 2 of 6")
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    page.locator(".pair button").first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    slider = page.get_by_label("Share of the original image")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#viewer .stage").evaluate("s => s.style.getPropertyValue('--cut')") == "0%"
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_dark_and_light_follow_the_system_and_the_button(report: Path, open_page: Callable):
    page = open_page(report, color_scheme="dark")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.get_by_label("Switch between dark and light").click()
    expect(root).to_have_attribute("data-theme", "light")


def test_nothing_overflows_on_a_narrow_screen(report: Path, open_page: Callable):
    page = open_page(report, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_every_chart_is_drawn_and_names_itself(report: Path, open_page: Callable):
    page = open_page(report)
    assert page.locator(".chart canvas").count() == page.locator(".chart").count() >= 12
    for plot in page.locator(".plot").all():
        assert " from " in (plot.get_attribute("aria-label") or "")


def test_several_runs_lie_over_each_other_and_can_be_told_apart(
    make_run: Callable[..., Path], open_page: Callable
):
    first, second = make_run("first"), make_run("second")
    page = open_page(write_report([first, second], first / "report.html").path)
    loss = page.locator(".chart", has=page.get_by_text("Loss", exact=True))
    expect(loss).to_contain_text("first: loss")
    expect(loss).to_contain_text("second: loss")
    # The legend has a line for each run and none for the axis.
    expect(loss.locator(".u-legend .u-series")).to_have_count(2)
    expect(loss.locator(".u-legend .u-marker").first).to_be_hidden()
    for shape in ("weight-correctness .sample line", "weight-length .sample circle"):
        drawn = page.locator(f"#chart-{shape}").evaluate_all(
            "shapes => shapes.map(shape => shape.outerHTML)"
        )
        assert len(drawn) == len(set(drawn)) == 4
    field(page, "run").select_option("1")
    expect(page.locator("#groups li")).to_have_count(4)


def test_a_live_page_offers_to_reload_and_to_hold(
    make_run: Callable[..., Path], open_page: Callable
):
    run = make_run(is_finished=False)
    page = open_page(write_report([run], run / "report.html", is_live=True).path)
    expect(page.get_by_role("button", name="Reload now")).to_be_visible()
    hold = page.get_by_role("button", name="Hold")
    hold.click()
    expect(page.locator("#hold")).to_have_attribute("aria-pressed", "true")
    field(page, "step").select_option("2")
    page.get_by_role("button", name="Reload now").click()
    expect(page.locator("#groups li")).to_have_count(2)


def test_evaluations_are_one_table_and_differences_are_drawn_to_scale(
    make_run: Callable[..., Path], open_page: Callable
):
    run = make_run()
    write_evaluation(run / "evaluations" / "before", [True] * 10 + [False] * 30)
    write_evaluation(run / "evaluations" / "final", [True] * 30 + [False] * 10)
    path = write_report([run], run / "report.html").path
    page = open_page(path, viewport={"width": 400, "height": 800})
    # The table scrolls inside its frame and the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("link", name="Evaluations").click()
    scores = page.get_by_role("region", name="Scores by benchmark")
    expect(scores.locator("tbody tr")).to_have_count(2)
    expect(scores.locator("tbody tr").nth(1)).to_contain_text("75.00")
    expect(scores.locator("tbody tr").nth(1)).to_contain_text("70.00 to 80.00")
    expect(scores.locator("tbody tr").nth(1)).to_contain_text("12.5%")
    pair = page.get_by_role("region", name="final against before")
    expect(pair.locator("tbody tr")).to_contain_text("+50.00")
    frame, dot = (
        pair.locator(f".whisker{part}").evaluate(
            "element => { const box = element.getBoundingClientRect();"
            " return [box.left + box.width / 2, box.width]; }"
        )
        for part in ("", " b")
    )
    # Zero is in the middle; the gain lies right of it, and inside.
    assert frame[0] < dot[0] < frame[0] + frame[1] / 2
