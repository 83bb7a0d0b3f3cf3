"""Statements of README and docs that can be checked: names of functions and tests, and links."""

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
METHOD = ROOT / "docs" / "method.md"
FUNCTION = re.compile(r"`(vaopd(?:\.\w+)+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def rows_with_functions() -> list[str]:
    lines = METHOD.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|") and FUNCTION.search(line)]


def test_every_equation_of_the_paper_is_on_the_page_of_the_method():
    rows = rows_with_functions()
    for number in range(1, 7):
        assert any(row.startswith(f"| Eq. {number}") for row in rows)
    assert len(rows) >= 25


@pytest.mark.parametrize("row", rows_with_functions(), ids=lambda row: row.split("|")[1].strip())
def test_the_functions_and_tests_that_an_equation_names_exist(row: str):
    for name in FUNCTION.findall(row):
        resolve_name(name)  # raises where a part of the name does not exist
    tests = TEST.findall(row)
    assert tests, "a row needs a test"
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs", "benchmarks"])
def test_links_lead_to_files_that_exist(name: str):
    path = ROOT / name
    pages = [path] if path.is_file() else sorted(path.rglob("*.md"))
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text("utf-8"))]
    assert links
    assert [
        f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()
    ] == []
