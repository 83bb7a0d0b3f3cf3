"""Runs whose numbers go wrong stop with the reason and keep their last sound checkpoint."""

from collections.abc import Callable

from tests.drill.children import Child
from tests.drill.runs import RECIPE, Drill, train

from vaopd.records import read_json
from vaopd.training.checkpoint import checkpoint_damage, checkpoints


def run(drill: Drill) -> None:
    """Try learning rates that destroy the student, and views that are equal."""
    cases: dict[str, Callable[[Drill], str]] = {
        "learning rate of 1e3": destroy,
        "equal views": give_equal_views,
    }
    for name, case in cases.items():
        while drill.left(name) > 0:
            found = case(drill)
            drill.tally.add(name, "wrong" if found else "survived", 1, found)


def destroy(drill: Drill) -> str:
    """Train at 1e3 from the fourth step on: the run stops, the checkpoints before it stay."""
    recipe, run = drill.folder / "rising.yaml", drill.fresh("destroyed")
    text = RECIPE.replace("keep_checkpoints: null", "keep_checkpoints: 1")
    recipe.write_text(text.replace("1.0e-3", "1.0e3"))
    seed = 1 + drill.tally.count("learning rate of 1e3").tried
    more = ("training.max_steps=12", "training.warmup_fraction=0", f"training.seed={seed}")
    child = Child([*train(recipe, run), *more], drill.log, prepare=small_until_step_4)
    code, said = child.wait(), child.errors()
    if code != 1 or len(said) != 1 or "max_skipped_steps=3 ends the run" not in said[0]:
        return f"exit code {code}: {child.text()[-300:]}"
    sound = [int(path.name[5:]) for path in checkpoints(run) if not checkpoint_damage(path)]
    if not any(step <= 3 for step in sound):
        return f"only the checkpoints of steps {sound} are left"
    best = read_json(run / "checkpoints" / "best.json")["step"]
    return "" if best == 3 and not (run / "final").exists() else f"best is that of step {best}"


def small_until_step_4() -> None:
    """Let the learning rate be 1e-4 in the first three steps, in this process."""
    from vaopd.training import run as run_module

    planned = run_module.learning_rate
    run_module.learning_rate = lambda training, step, total: (
        1e-4 if step <= 3 else planned(training, 1, total)
    )


def give_equal_views(drill: Drill) -> str:
    """Train with views that are equal: refused before there is a folder."""
    run = drill.fresh("equal")
    child = Child([*train(drill.recipe, run), "view.ratio=1"], drill.log)
    code, said = child.wait(), child.errors()
    if code != 2 or len(said) != 1 or "the visual advantage is 0 everywhere" not in said[0]:
        return f"exit code {code}: {child.text()[-300:]}"
    return f"{run} exists" if run.exists() else ""
