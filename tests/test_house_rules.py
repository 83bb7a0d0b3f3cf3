import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vaopd.config import load_config
from vaopd.study.recipe import load_plan

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "recipes").glob("study*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(STUDIES))
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_the_schema(recipe: Path):
    assert load_config(recipe).student.model


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_every_study_passes_the_schema(recipe: Path):
    # Every run of every arm is resolved and checked here.
    assert len(load_plan(recipe).runs) >= 10


def test_the_study_has_all_of_its_tables_and_a_quick_version():
    assert {path.stem for path in STUDIES} == {"study", "study_regime"}
    names = {table.name for table in load_plan(ROOT / "recipes" / "study.yaml").tables}
    assert names >= {"table1", "components", "masking", "sparsity", "sensitivity", "advantage"}
    assert 10 <= len(load_plan(ROOT / "recipes" / "study.yaml", is_quick=True).runs) <= 20


def test_the_recipes_that_the_readme_and_the_paper_need_are_there():
    names = {path.stem for path in RECIPES}
    assert names >= {
        "quickstart",
        "geometry3k_sample",
        "va_opd_geometry3k",
        "opd_geometry3k",
        "va_opd_virl39k",
        "read",
        "figures",
    }


@pytest.mark.parametrize("name", ["va_opd_geometry3k", "opd_geometry3k", "va_opd_virl39k"])
def test_the_recipes_of_the_paper_keep_its_settings(name: str):
    config = load_config(ROOT / "recipes" / f"{name}.yaml")
    training, sampling = config.training, config.sampling
    assert (training.problems_per_step, sampling.num_rollouts, training.epochs) == (16, 4, 5)
    assert (training.learning_rate, training.betas, training.weight_decay) == (
        1e-6,
        (0.9, 0.95),
        0.1,
    )
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.7, 0.95, 4096)
    assert (config.student.model, config.teacher.model) == (
        "Qwen/Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
    )


def test_the_baseline_differs_from_the_method_in_nothing_but_the_method():
    ours = load_config(ROOT / "recipes" / "va_opd_geometry3k.yaml").model_dump()
    baseline = load_config(ROOT / "recipes" / "opd_geometry3k.yaml").model_dump()
    assert ours.pop("method") != baseline.pop("method")
    assert ours == baseline


def test_the_command_line_starts_without_torch():
    script = "import vaopd, vaopd.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_files_and_functions_stay_small():
    too_long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 460:
            too_long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 80:
                too_long.append(f"{path.name}:{node.name}")
    assert len(SOURCES) > 30
    assert too_long == []


def test_the_shipped_tiny_models_stay_small():
    folder = ROOT / "src" / "vaopd" / "assets" / "tiny"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 12_000_000
