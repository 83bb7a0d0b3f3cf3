"""Every branch before an exchange between processes is named, with why all processes take the same.

A process that takes another branch skips an exchange in which the others wait. So the decision may
depend only on values that are alike in all processes; other decisions belong inside `agree`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "vaopd"
FILES = [
    *sorted((SOURCE / "training").glob("*.py")),
    SOURCE / "evaluation" / "validation.py",
    SOURCE / "evaluation" / "teacher_divergence.py",
    SOURCE / "evaluation" / "visual_reliance.py",
    SOURCE / "rollouts" / "vllm" / "sampler.py",
]
EXCHANGES = {
    *("gather", "same", "agree", "agree_unless_sharded", "on_main", "sum", "any", "in_order"),
    *("sum_gradients", "share_weights", "agree_if_sharded"),
}
HANDED = {"agree", "agree_if_sharded", "on_main"}
"""Take work that may fail in one process."""

STRANGERS = {"subprocess", "prompts", "model", "engine"}
"""Have methods of the same names as our functions, which do not communicate."""

COMMAND = "the recipe and the options, compared at the start"
DATA = "the recipe and the problems, compared at the start"
HISTORY = "follows from the steps so far, which all took"
TOLD = "an exchange returned it, the same to all"

BRANCHES = {
    "checkpoint._save_shards: failure is not None": "handed to agree",
    "reference.load_reference: not config.method.needs.reference_logprobs": COMMAND,
    "reference.load_reference: not needs_copy(config)": COMMAND,
    "setup.make_teacher: config.teacher.addresses": COMMAND,
    "setup.make_teacher: not config.loads_teacher": COMMAND,
    "checkpoint.save_checkpoint: student.sharding is not None": COMMAND,
    "run._reopen: ahead is not None": TOLD,
    "run._reopen: newest is not None": TOLD,
    "run._take_steps: done < self.steps and (not is_stopping)": f"{DATA}; {TOLD}",
    "run._take_steps: not result.skipped_in_a_row": TOLD,
    "run._take_steps: is_last or is_due(training.validate_every, number)": DATA,
    "run._take_steps: is_last or is_best or is_stopping or is_due(training.save_every, number)": (
        f"{DATA}; {TOLD}: the numbers of a validation are the main process's"
    ),
    "run._train: not resume": COMMAND,
    "run._train: world.on_main(output.is_dir)": TOLD,
    "run._validate: validator is None or validation_time is None": COMMAND,
    "data.read_data: resumed is None": COMMAND,
    "run.execute: done == 0": TOLD,
    "run.execute: done < self.steps": f"{DATA}; {TOLD}",
    "run.execute: resume": COMMAND,
    "run.prepare: any(bad.values())": TOLD,
    "run.prepare: is_new": COMMAND,
    "run.train: resume and overwrite": "before there are processes",
    "pipeline._sample: self.method.needs.sampling": COMMAND,
    "pipeline._score: not shares.are_turns": "compares the shares of all, which all know",
    "pipeline._score: step == 1 and needs.views == 2": f"{COMMAND}; {HISTORY}",
    "pipeline._score: teacher is not None and needs.views > 0": COMMAND,
    "pipeline.begin: self.samples_beside": COMMAND,
    "pipeline.begin: self.scores_beside": COMMAND,
    "pipeline.take: prepared is not None": HISTORY,
    "pipeline.take: sampled is not None": HISTORY,
    "assignment.all_scores: degraded is None": COMMAND,
    "assignment.all_scores: divergence is None": COMMAND,
    "assignment.all_scores: self.world.size == 1": "the launcher's",
    "assignment.everybodys: self.world.size == 1": "the launcher's",
    "step._gradient_statistics: every is None or step % every": COMMAND,
    "step._uniform_norm: not self.method.needs.uniform_gradient": COMMAND,
    "step._with_scores: (mask := needs.mask) is not None": COMMAND,
    "step._with_scores: needs.reference_logprobs": COMMAND,
    "step._with_scores: needs.student_entropy": COMMAND,
    "step.accumulate_gradient: coming and self.config.training.rollout_lag": DATA,
    "validation._sample: (vllm := self.sampler) is not None": COMMAND,
    "validation._sleep: self.sampler is not None": COMMAND,
    "validation.examine: self.sampler is not None": COMMAND,
    "validation.examine: options.pixelated": COMMAND,
    "validation.examine: blind is None": COMMAND,
    "validation.examine: options.sampled_answers": COMMAND,
    "validation._advantage: self.teacher is None": COMMAND,
    "validation.examine: self.teacher is not None and options.load_teacher": COMMAND,
    "visual_reliance.score_advantage: own": "the two views",
    "sampler.sleep: self.options.sleep and self.held is not None": f"{COMMAND}; {HISTORY}",
    "sampler.take_weights: self.model.device.type == 'cuda'": "processes of one kind of device",
    "sampler.take_weights: version == self.held": HISTORY,
}

TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
FUNCTIONS = [
    (f"{stem}.{node.name}", node)
    for stem, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
]


def called(call: ast.Call) -> tuple[str, str]:
    """Return the last name of what a function is called on, and its own name."""
    if isinstance(call.func, ast.Attribute):
        return ast.unparse(call.func.value).split(".")[-1], call.func.attr
    return "", call.func.id if isinstance(call.func, ast.Name) else ""


def is_exchange(call: ast.Call) -> bool:
    owner, name = called(call)
    return owner in ("world", "beside") and name in EXCHANGES


def tells(node: ast.AST, telling: set[str]) -> bool:
    """Return whether something in the node talks to other processes."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    return any(
        is_exchange(call) or (called(call)[1] in telling and called(call)[0] not in STRANGERS)
        for call in calls
    )


def telling_functions() -> set[str]:
    """Return the names of all functions that talk to other processes, or call one that does."""
    telling: set[str] = set()
    while True:
        more = {node.name for _, node in FUNCTIONS if tells(node, telling)} - telling
        if not more:
            return telling
        telling |= more


TELLING = telling_functions()


def leaves(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Return | ast.Raise | ast.Continue | ast.Break)
        for part in ast.walk(node)
    )


def deciding(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what decides whether, and how often, something in a node is exchanged."""
    for part in ast.walk(node):
        match part:
            case ast.If() | ast.While():
                inside = [*part.body, *part.orelse]
                # An early end leaves out whatever comes after it.
                if any(tells(s, TELLING) for s in inside) or any(map(leaves, inside)):
                    yield part.test
            case ast.IfExp() if tells(part.body, TELLING) or tells(part.orelse, TELLING):
                yield part.test
            case ast.BoolOp() if any(tells(value, TELLING) for value in part.values[1:]):
                yield part
            case ast.For() if any(tells(statement, TELLING) for statement in part.body):
                yield part.iter
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() if tells(part.elt, TELLING):
                yield from (generator.iter for generator in part.generators)
            case ast.ExceptHandler() if any(tells(s, TELLING) for s in part.body):
                raise AssertionError(f"line {part.lineno} exchanges values after an error")


def test_every_branch_in_front_of_an_exchange_is_named_with_why_all_processes_take_it():
    found = {
        f"{name}: {ast.unparse(condition)}"
        for name, node in FUNCTIONS
        if tells(node, TELLING)
        for condition in deciding(node)
    }
    new, gone = sorted(found - BRANCHES.keys()), sorted(BRANCHES.keys() - found)
    assert not new, "decide by World.any or World.same, or say here why all decide alike"
    assert not gone


def test_work_that_may_fail_in_one_process_exchanges_nothing():
    handed = [
        (name, argument)
        for name, node in FUNCTIONS
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and is_exchange(call) and called(call)[1] in HANDED
        for argument in call.args
    ]
    assert len(handed) > 20
    for name, argument in handed:
        assert not tells(argument, TELLING), name
        assert called(ast.Call(argument, [], []))[1] not in TELLING, name


def test_the_functions_that_talk_are_found_through_those_they_call():
    assert {"_take_steps", "_validate", "examine", "_answers", "take", "_sample"} <= TELLING
    assert {"step_metrics", "mark_best", "weigh", "learning_rate"}.isdisjoint(TELLING)
