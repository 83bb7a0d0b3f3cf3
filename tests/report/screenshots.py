"""Screenshots of a report in Chromium, for the documentation.

python tests/report/screenshots.py RUN docs
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from vaopd.report.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLORS = 256
"""Of the palette: a page of flat colours loses nothing that one would see."""


def browser_path() -> str | None:
    """Return the first Chromium in PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium and close it again."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox"], timeout=300_000
        )
        try:
            yield browser
        finally:
            browser.close()


def strongest(page: Page) -> Locator:
    """Return the token with the strongest colour of the problem that is shown."""
    shades = page.locator(".token").evaluate_all(
        "tokens => tokens.map(token => Number(token.style.getPropertyValue('--v')))"
    )
    return page.locator(".token").nth(shades.index(max(shades)))


def save(page: Page, path: Path, *, full_page: bool = False) -> None:
    """Write what the page shows as a small PNG."""
    with Image.open(io.BytesIO(page.screenshot(full_page=full_page, timeout=300_000))) as image:
        small = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(run: Path, output: Path) -> None:
    """Write report-light.png, report-dark.png and report-narrow.png."""
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, chromium() as browser:
        report = write_report([run], Path(folder) / "report.html")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.on("console", lambda message: print(f"console: {message.text}"))
        page.on("pageerror", lambda error: print(f"page error: {error}"))
        page.goto(report.path.as_uri())
        page.set_viewport_size({"width": 1280, "height": 1360})
        strongest(page).hover()
        save(page, output / "report-light.png")
        page.mouse.move(0, 0)
        page.emulate_media(color_scheme="dark")
        page.locator("#advantage").evaluate("part => part.scrollIntoView({behavior: 'instant'})")
        save(page, output / "report-dark.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 400, "height": 1200})
        page.locator(".measures").evaluate("part => part.scrollIntoView({behavior: 'instant'})")
        strongest(page).focus()
        save(page, output / "report-narrow.png")
        print("page width at 400 px:", page.evaluate("document.documentElement.scrollWidth"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
