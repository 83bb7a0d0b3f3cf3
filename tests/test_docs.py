"""Statements of README and docs that can be checked: names, links, commands, code blocks."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest
import typer
import yaml

import vaopd
from vaopd.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METHOD = DOCS / "method.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
FUNCTION = re.compile(r"`(vaopd(?:\.\w+)+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --- the page of the method ----------------------------------------------------------------------


def rows_with_functions() -> list[str]:
    lines = text_of(METHOD).splitlines()
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


# --- links and pages -----------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}


def broken_links(page: Path) -> Iterator[str]:
    for path, anchor in LINK.findall(text_of(page)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{page.name}: {path}#{anchor}"


def test_links_lead_to_files_and_headings_that_exist():
    pages = [*PAGES, *sorted((ROOT / "benchmarks").rglob("*.md"))]
    assert sum(len(LINK.findall(text_of(page))) for page in pages) > 100
    assert [link for page in pages for link in broken_links(page)] == []


def test_a_link_to_a_heading_that_does_not_exist_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# One, and *two*\n[a](#one-and-two) [b](page.md#three) [c](no.md)\n")
    assert list(broken_links(page)) == ["page.md: page.md#three", "page.md: no.md#"]


def nav_pages(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else ():
        yield from nav_pages(inner)
    for inner in entry if isinstance(entry, list) else ():
        yield from nav_pages(inner)


def test_the_navigation_of_the_site_lists_every_page_once():
    settings = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))
    assert sorted(nav_pages(settings["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))
    assert settings["strict"] is True


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_begins_with_a_command(page: Path):
    assert re.match(r"# .+\n\n {4}(vaopd|make|pip|python|tail|recipes/)\b", text_of(page))


def test_the_page_of_the_python_names_has_all_of_them():
    documented = re.findall(r"^::: (\S+)$", text_of(DOCS / "api.md"), re.MULTILINE)
    assert {path.rpartition(".")[2] for path in documented} == set(dir(vaopd))
    for path in documented:
        assert resolve_name(path) is getattr(vaopd, path.rpartition(".")[2])


# --- code blocks and commands --------------------------------------------------------------------


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of code blocks; continued lines as one."""
    text = text_of(page)
    blocks = [body for _, body in FENCE.findall(text)]
    blocks += [
        re.sub(r"^ {4}", "", m[0], flags=re.M) for m in INDENTED.finditer(FENCE.sub("", text))
    ]
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()


def vaopd_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after ``vaopd`` of each command line of a page."""
    for line in code_lines(page):
        if re.match(r"(torchrun .*-m )?vaopd ", line):
            words = shlex.split(line, comments=True)
            yield words[words.index("vaopd") + 1 :]


def check_command(words: list[str]) -> None:
    """Parse a command line as the command would; keys of recipes must be in its schema."""
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version", "--install-completion")
        return
    command = COMMANDS[words[0]]
    if "--help" in words:
        return
    command.make_context(words[0], words[1:])
    is_own_method = any(re.match(r"method\.name=.*\.py:", word) for word in words)
    for word in words[1:]:
        key = re.match(r"([a-z]+(?:\.\w+)+)=", word)
        if key and not (is_own_method and key[1].startswith("method.")):
            assert f"`{key[1]}`" in text_of(DOCS / "configuration.md"), key[1]


def test_every_command_line_of_the_docs_can_be_parsed():
    found = [(page.name, words) for page in PAGES for words in vaopd_commands(page)]
    assert len(found) > 80
    for page, words in found:
        try:
            check_command(words)
        except Exception as error:
            raise AssertionError(f"{page}: vaopd {' '.join(words)}: {error!r}") from error


@pytest.mark.parametrize(
    "line",
    ["trian quickstart", "train quickstart --ouput x", "train quickstart training.stepz=1"],
)
def test_a_command_line_with_an_unknown_name_is_found(line: str):
    with pytest.raises(Exception, match=r"trian|ouput|stepz"):
        check_command(line.split())


def test_commands_in_the_text_exist():
    spans = [span for page in PAGES for span in re.findall(r"`vaopd ([a-z-]+)", text_of(page))]
    assert len(spans) > 30
    assert {name for name in spans if name not in COMMANDS and not name.startswith("--")} == set()


def test_yaml_and_json_in_code_blocks_can_be_read():
    blocks = [(page.name, *found) for page in PAGES for found in FENCE.findall(text_of(page))]
    readers = {"yaml": yaml.safe_load, "json": json.loads, "python": ast.parse}
    read = [readers[language](body) for _, language, body in blocks if language in readers]
    assert len(read) >= 5


# --- the notebook --------------------------------------------------------------------------------


def code_cells() -> list[str]:
    notebook = json.loads(text_of(DOCS / "tour.ipynb"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)  # stripped
    return ["".join(cell["source"]) for cell in cells]


def test_the_cells_of_the_tour_are_python_without_outputs():
    assert len([ast.parse(cell) for cell in code_cells()]) == 4


@pytest.mark.slow
def test_the_tour_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    # Not in a kernel: the environment of the tests has no nbclient.
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code_cells():
        exec(compile(cell, "tour.ipynb", "exec"), names)
    out = capfd.readouterr().out
    assert "3 steps in" in out and " * ===" in out
    assert re.search(r"\d+ % right, 95 % interval \d+ to \d+", out)
    assert (tmp_path / "runs" / "tour" / "report.html").is_file()
