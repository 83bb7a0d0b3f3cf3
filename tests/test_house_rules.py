import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaopd.config import load_config
from vaopd.study.recipe import load_plan

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "recipes").glob("study*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(STUDIES))
PACKAGE = ROOT / "src" / "vaopd"
TEXTS = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
Function = ast.FunctionDef | ast.AsyncFunctionDef

MAX_FILE_LINES = 400
MAX_LINES = 60
"""Of a function, its docstring included."""

MAX_PARAMETERS = 6
"""Of a function that is no command; the options of a command are parameters."""

COMMANDS = {
    *("cli.py:train", "cli.py:export", "study/command.py:study", "doctor/command.py:doctor"),
    *("evaluation/command.py:evaluate", "teacher/command.py:serve_teacher"),
}
MANY_PARAMETERS = {
    "evaluation/engines/vllm.py:VllmEngine.__init__": "not yet smaller",
    "integrations/trl.py:VAOPDTrainer.__init__": "the signature is that of TRL",
    "models/attention.py:packed_attention": "the signature is that of transformers",
    "models/loading.py:load_model": "the last one names the setting in its errors",
    "objective/divergence.py:weighted_cross_entropy": "the terms of an equation",
    "objective/divergence.py:weighted_divergence": "the terms of an equation",
    "objective/divergence.py:weighted_reverse_kl": "the terms of an equation",
    "objective/policy.py:weighted_token_loss": "the terms of an equation",
    "objective/weights.py:token_weights": "the terms of an equation",
    "training/run.py:train": "the options of the command, and what only Python can give",
    "rollouts/vllm/server.py:VllmServer.__init__": "a process: command, environment, output",
}
"""By function, why it takes more."""

PRIVATE_OF_OTHERS = {
    "_replace": "NamedTuple",
    "_python_dispatch": "torch",
    "_attn_implementation": "transformers",
    "_get_fsdp_state": "torch",
    "_comm_ctx": "torch",
    "_exit": "os",
}
"""Private names of other packages that tests need, and whose they are."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_the_schema(recipe: Path):
    assert load_config(recipe).student.model


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_every_study_passes_the_schema(recipe: Path):
    # Every run of every arm is resolved and checked here.
    assert len(load_plan(recipe).runs) >= 10


def test_the_study_has_all_of_its_tables_and_a_quick_version():
    assert {path.stem for path in STUDIES} == {"study", "study_gain", "study_regime"}
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


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield every function with its name after those of its classes and outer functions."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, Function | ast.ClassDef)
        name = f"{prefix}{node.name}" if named else prefix.removesuffix(".")
        if isinstance(node, Function):
            yield name, node
        yield from functions(node, f"{name}." if name else "")


def parameters(node: Function) -> list[str]:
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls", "ctx")]


def test_files_stay_small():
    over = {name for name, text in TEXTS.items() if text.count("\n") > MAX_FILE_LINES}
    assert len(TEXTS) > 100
    assert over == set()


def test_functions_stay_small():
    lengths = {
        f"{file}:{name}": (node.end_lineno or 0) - node.lineno + 1
        for file, tree in TREES.items()
        for name, node in functions(tree)
    }
    assert len(lengths) > 1000
    assert {name for name, length in lengths.items() if length > MAX_LINES} == set()


def test_functions_take_few_parameters():
    over = {
        f"{file}:{name}"
        for file, tree in TREES.items()
        for name, node in functions(tree)
        if len(parameters(node)) > MAX_PARAMETERS and f"{file}:{name}" not in COMMANDS
    }
    assert over == MANY_PARAMETERS.keys()


def test_every_class_has_a_name_of_its_own():
    places = defaultdict(list)
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield private names that are read from an object or a module, or patched by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            # setattr(owner, "name", ..), getattr and delattr, also those of monkeypatch.
            for given in node.args[:2]:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield given.value.rpartition(".")[2]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def test_private_names_are_found():
    code = """
from module import _one
a._two, b.__class__
monkeypatch.setattr(c, "_three", 1)
setattr("package.module._four", 2)
"""
    found = [name for name in private_names(ast.parse(code)) if is_private(name)]
    assert sorted(found) == ["_four", "_one", "_three", "_two"]


def test_no_test_touches_a_private_member():
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert len(paths) > 80
    touched = {
        f"{path.relative_to(ROOT / 'tests')}: {name}"
        for path in paths
        if path.parent.name != "stand_in_gpu"  # it takes the place of torch's own GPU
        for name in private_names(ast.parse(path.read_text(encoding="utf-8")))
        if is_private(name) and name not in PRIVATE_OF_OTHERS
    }
    assert touched == set()


def test_the_shipped_tiny_models_stay_small():
    folder = ROOT / "src" / "vaopd" / "assets" / "tiny"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 12_000_000
