import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaopd import cli
from vaopd.config import load_config
from vaopd.errors import ConfigError
from vaopd.recipes.shipped import copy_recipe, find_recipe, shipped_recipes
from vaopd.study.recipe import load_plan

ROOT = Path(__file__).parents[2]
MINE = 'student: {model: "tiny:student"}\nteacher: {model: "tiny:teacher-l"}\n'
MINE += 'data: {train: "drawn:train?count=4"}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is the working folder too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_checkout_shows_every_shipped_recipe_as_the_same_file():
    for name, path in shipped_recipes().items():
        assert os.path.samefile(ROOT / "recipes" / f"{name}.yaml", path)


def test_the_list_has_one_line_for_each_recipe_that_ends_as_a_sentence(run: Callable):
    code, out, _ = run("recipes")
    lines = dict(line.split("  ", maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert [name.strip() for name in lines] == list(shipped_recipes())
    assert len(lines) == 8
    for sentence in lines.values():
        assert sentence.strip()[0].isupper()
        assert sentence.endswith(".")


def test_a_recipe_is_trained_by_its_name_from_any_folder(here: Path, run: Callable):
    code, out, _ = run("train", "quickstart", "training.max_steps=3", "--dry-run")
    assert code == 0
    assert "model: tiny:teacher-m" in out
    assert "max_steps: 3" in out


def test_a_study_is_planned_by_its_name_from_any_folder(here: Path, run: Callable):
    code, out, _ = run("study", "study", "--quick", "--dry-run", "--output", "out")
    expected = load_plan(ROOT / "recipes" / "study.yaml", is_quick=True)
    assert (code, out.split()) == (0, list(expected.runs))


def test_the_table_of_rewards_gives_each_arm_as_many_choices_as_opd_has(here: Path, run: Callable):
    code, out, _ = run("study", "study_gain", "--tables", "rewards", "--dry-run", "--output", "o")
    names = out.split()
    # Four choices with two tuning seeds, then five seeds of the chosen one, for each of three arms.
    assert code == 0
    for arm in ("opd", "grpo", "papo"):
        assert sum(name.startswith(f"{arm}-") for name in names) == 4 * 2 + 5
    assert len(names) == 39
    plan = load_plan("study_gain", tables=["rewards"])
    configs = {name: arm.runs[0].config for name, arm in plan.tables[0].arms.items()}
    assert {name: config.method.needs.teacher for name, config in configs.items()} == {
        "opd": True, "grpo": False, "papo": False
    }  # fmt: skip
    assert configs["opd"].validation == configs["papo"].validation


@pytest.mark.parametrize("path", ["quickstart.yaml", "./quickstart", "folder/quickstart.yaml"])
def test_a_path_means_the_file_of_the_user(here: Path, path: str):
    (here / "folder").mkdir()
    (here / path).write_text(MINE)
    assert load_config(path).teacher.model == "tiny:teacher-l"
    assert load_config("quickstart").teacher.model == "tiny:teacher-m"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("quikstart", "did you mean the shipped recipe quickstart?"),
        ("recipes/quickstart.yaml", "did you mean the shipped recipe quickstart?"),
        ("zzz", "`vaopd recipes` lists those that ship"),
    ],
)
@pytest.mark.parametrize("command", ["train", "study", "doctor"])
def test_an_unknown_recipe_is_one_sentence_with_the_nearest_name(
    here: Path, run: Callable, command: str, text: str, remedy: str
):
    options = ["--output", "out"] if command != "doctor" else []
    code, out, err = run(command, text, *options)
    assert (code, out) == (2, "")
    assert err == f"error: recipe {text} does not exist; {remedy}\n"


@pytest.mark.parametrize(
    ("destination", "expected"),
    [(None, "study.yaml"), ("folder", "folder/study.yaml"), ("mine.yml", "mine.yml")],
)
def test_a_copy_goes_to_a_folder_or_a_file(
    here: Path, run: Callable, destination: str | None, expected: str
):
    (here / "folder").mkdir()
    code, out, _ = run("recipes", "copy", "study", *([destination] if destination else []))
    assert (code, out) == (0, f"copied study: {expected}\n")
    assert (here / expected).read_bytes() == shipped_recipes()["study"].read_bytes()


def test_a_copied_study_finds_its_base_recipe_in_any_folder(here: Path):
    copied = load_plan(copy_recipe("study", here))
    assert list(copied.runs) == list(load_plan("study").runs)


def test_a_study_reads_a_path_beside_itself(here: Path):
    (here / "quickstart.yaml").write_text(MINE)
    text = shipped_recipes()["study"].read_text(encoding="utf-8")
    assert "\nrecipe: quickstart " in text
    folder = here / "folder"
    folder.mkdir()
    (folder / "study.yaml").write_text(
        text.replace("recipe: quickstart", "recipe: ../quickstart.yaml")
    )
    run = next(iter(load_plan(folder / "study.yaml", tables=["table1"]).runs.values()))
    assert run.config.teacher.model == "tiny:teacher-l"


def test_a_copy_never_replaces_a_file(here: Path, run: Callable):
    (here / "study.yaml").write_text("mine")
    code, out, err = run("recipes", "copy", "study")
    assert (code, out) == (2, "")
    assert err == "error: study.yaml exists; choose another file or remove it\n"
    assert (here / "study.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "destination", "message"),
    [
        ("studi", ".", "no recipe 'studi' ships; did you mean the shipped recipe study?"),
        ("study", "nowhere", "nowhere is neither a folder that exists nor a .yaml file"),
    ],
)
def test_a_copy_that_cannot_be_made_is_refused(
    here: Path, name: str, destination: str, message: str
):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        copy_recipe(name, Path(destination))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["copy"], "copy needs the name of a recipe"), (["cpoy", "study"], "'cpoy' is not one of")],
)
def test_wrong_usage_of_recipes_is_exit_code_2(run: Callable, arguments: list[str], message: str):
    code, out, err = run("recipes", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_folder_named_like_a_recipe_does_not_hide_it(here: Path):
    (here / "quickstart").mkdir()
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]


@pytest.mark.parametrize("command", ["train", "study", "doctor", "recipes copy"])
def test_the_shell_completes_names_of_recipes(command: str):
    line = f"vaopd {command} va_"
    asked = {
        "_VAOPD_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    done = CliRunner().invoke(cli.app, [], env=asked, prog_name="vaopd")
    assert done.stdout.split() == ["va_opd_geometry3k", "va_opd_virl39k"]


def test_the_version_is_told_with_those_of_torch_and_transformers_without_their_import():
    code = (
        "import sys\n"
        "from vaopd import cli\n"
        "sys.argv[1:] = ['--version']\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names = ("vaopd", "torch", "transformers")
    assert done.stdout.splitlines() == [*(f"{name} {version(name)}" for name in names), "[]"]
