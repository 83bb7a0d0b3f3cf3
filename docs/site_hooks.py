"""Puts the files beside docs/ that its pages link to into the site, under ``repository/``."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = (
    *("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md"),
    *("benchmarks/growth-cpu-small.svg", "recipes/tiny/README.md"),
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files, which keep their places below ``repository/``."""
    root = Path(config.config_file_path).parent
    for name in OUTSIDE:
        path = f"repository/{name}"
        files.append(File.generated(config, path, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links that also hold in the site."""
    place = page.file.src_uri
    # Where the page is in the repository.
    source = (
        place.removeprefix("repository/") if place.startswith("repository/") else f"docs/{place}"
    )

    def moved(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), match[1]))
        site = f"repository/{target}" if target in OUTSIDE else target.removeprefix("docs/")
        return os.path.relpath(site, os.path.dirname(place) or ".")

    return LINK.sub(moved, markdown)
