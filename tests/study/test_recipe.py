import subprocess
import sys
from pathlib import Path

import pytest

from vaopd.config import RunConfig
from vaopd.errors import ConfigError
from vaopd.records import write_text
from vaopd.study.plan import PlannedRun
from vaopd.study.recipe import load_plan


def test_every_arm_has_a_run_for_each_seed_that_differs_in_nothing_else(recipe: Path):
    table = load_plan(recipe).tables[0]
    assert list(table.arms) == ["base", "opd", "va_opd"]
    for arm in table.arms.values():
        first, second = (arm.runs[seed].config for seed in (0, 1))
        assert (first.training.seed, second.training.seed) == (0, 1)
        assert first.model_copy(update={"training": second.training}) == second
        assert first.validation.seed == second.validation.seed


def test_runs_that_several_tables_need_are_shared(recipe: Path):
    plan = load_plan(recipe)
    methods, views = plan.tables
    # The override of the second table is the default, so the resolved recipes are equal.
    assert methods.arms["va_opd"].runs[0].name == views.arms["va_opd"].runs[0].name
    # opd, va_opd and blur with two seeds each; base has no run of its own.
    assert len(plan.runs) == 6


def test_the_name_of_a_run_changes_with_anything_that_is_learned(recipe: Path):
    first, second = (
        load_plan(recipe, overrides).tables[0].arms["opd"].runs[0].name
        for overrides in ([], ["training.weight_decay=0.3"])
    )
    assert first.startswith("opd-seed0-")
    assert first != second


def test_the_name_of_a_run_does_not_change_with_a_key_that_is_left_at_its_default(recipe: Path):
    run = load_plan(recipe).tables[0].arms["opd"].runs[0]
    values = run.config.model_dump(exclude_defaults=True)
    sparse = PlannedRun(RunConfig.model_validate(values))
    assert "deviation_floor" not in values["method"]
    assert sparse.name == run.name


def test_a_table_may_have_fewer_seeds_than_the_study(recipe: Path):
    text = recipe.read_text(encoding="utf-8")
    write_text(recipe, text.replace("  views:\n", "  views:\n    seeds: [1]\n"))
    methods, views = load_plan(recipe).tables
    assert (list(methods.arms["opd"].runs), list(views.arms["blur"].runs)) == ([0, 1], [1])
    with pytest.raises(ConfigError, match="table views has the seeds 1, none of which is among 0"):
        load_plan(recipe, seeds=[0])


def test_an_arm_wins_over_its_table_over_the_command_line_over_the_study(recipe: Path):
    plan = load_plan(
        recipe, ["training.learning_rate=2.0e-4", "view.name=noise", "method.epsilon=1.0"]
    )
    config = plan.tables[1].arms["blur"].runs[0].config
    assert config.training.learning_rate == 2e-4
    assert config.method.epsilon == 1e-6
    assert config.view.name == "blur"
    # An option of the command line is for the arms that read it.
    assert "epsilon" not in plan.tables[0].arms["opd"].runs[0].config.method.model_dump()


def test_the_quick_version_has_its_own_seeds_tables_and_values(recipe: Path):
    plan = load_plan(recipe, is_quick=True)
    assert (plan.seeds, [table.name for table in plan.tables]) == ([5], ["methods"])
    assert plan.tables[0].arms["opd"].runs[5].config.training.max_steps == 1


def test_seeds_and_tables_can_be_chosen(recipe: Path):
    plan = load_plan(recipe, seeds=[7], tables=["views"])
    assert list(plan.tables[0].arms["blur"].runs) == [7]
    assert len(plan.tables) == 1


def test_an_ordinary_recipe_becomes_one_table_of_methods(recipe: Path):
    plan = load_plan(recipe.parent / "base.yaml", arms=["opd", "va_opd", "base"], seeds=[0, 1, 2])
    (table,) = plan.tables
    assert (table.name, table.settings.baseline) == ("study", "opd")
    assert {run.config.method.name for run in plan.runs.values()} == {"opd", "va_opd"}
    assert table.arms["base"].is_untrained
    assert len(plan.runs) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: opd", "baseline: grpo", "table methods has no arm 'grpo' for a baseline"),
        ("base: []", "base: [method.name=opd]", "gives values to the arm base"),
        ("title: Views", "titel: Views", "unknown key tables.views.titel"),
        ("seeds: [0, 1]", "seeds: []", "seeds is"),
        ("[view.name=blur]", "[view.name=fog]", "with .*view.name=fog.*: view.name is 'fog'"),
        ("[view.name=blur]", "[view.nam=blur]", "unknown key view.nam; did you mean view.name"),
        ("recipe: base.yaml", "recipe: other.yaml", "other.yaml does not exist"),
        ("quick: {seeds: [5],", "quick: {seeds: [-1],", "quick.seeds.0 is -1"),
    ],
)
def test_a_broken_study_recipe_is_one_sentence(recipe: Path, old: str, new: str, message: str):
    text = recipe.read_text()
    assert text.count(old) == 1
    write_text(recipe, text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(recipe)
    assert "\n" not in str(caught.value)


def test_a_study_without_validation_is_refused(recipe: Path):
    with pytest.raises(ConfigError, match=r"no data\.validation, so there is nothing to compare"):
        load_plan(recipe, ["data.validation=null"])


def test_a_table_of_the_untrained_student_alone_is_refused(recipe: Path):
    with pytest.raises(ConfigError, match="only the arm base"):
        load_plan(recipe.parent / "base.yaml", arms=["base"], seeds=[0])


def test_options_that_do_not_fit_the_kind_of_recipe_are_refused(recipe: Path):
    base = recipe.parent / "base.yaml"
    with pytest.raises(ConfigError, match="--arms and --seeds are needed"):
        load_plan(base)
    with pytest.raises(ConfigError, match="leave out --tables and --quick"):
        load_plan(base, arms=["opd"], seeds=[0], is_quick=True)
    with pytest.raises(ConfigError, match="leave out --arms"):
        load_plan(recipe, arms=["opd"])
    with pytest.raises(ConfigError, match="no table 'table9'; choose among methods, views"):
        load_plan(recipe, tables=["table9"])


def test_planning_and_reporting_leave_torch_unloaded():
    script = "import vaopd.study.run, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_key_of_a_method_that_no_arm_reads_is_refused(recipe: Path):
    with pytest.raises(
        ConfigError, match=r"method\.label_smoothing=0\.1 is not read by the method"
    ):
        load_plan(recipe, ["method.label_smoothing=0.1"])


def test_the_seed_of_the_study_wins_over_one_that_an_arm_names(recipe: Path):
    text = recipe.read_text(encoding="utf-8")
    assert "[method.name=opd]" in text
    write_text(recipe, text.replace("[method.name=opd]", "[method.name=opd, training.seed=7]"))
    runs = load_plan(recipe).tables[0].arms["opd"].runs
    assert [run.config.training.seed for run in runs.values()] == list(runs)
