"""A method of the user's own: from a file, from Python, and the examples of docs/methods.md."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain_forward import double, plain_logprobs
from rich.console import Console

from vaopd.config import (
    MethodOptions,
    Needs,
    OwnMethodOptions,
    RunConfig,
    load_config,
    parse_config,
)
from vaopd.config.methods import high_fraction
from vaopd.errors import ConfigError
from vaopd.methods import make_method, section_of
from vaopd.methods.base import Method, StepRollouts, Weights
from vaopd.problems.problem import Problem
from vaopd.study.recipe import load_plan
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.run import train

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
LENGTHS = (5, 2)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files of docs/methods.md."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert {name for name, _ in blocks} == {"top_tokens.py", "uncertain_tokens.py", "own_run.py"}
    for name, code in blocks:
        (tmp_path / name).write_text(code, encoding="utf-8")
        assert len(code.strip().splitlines()) < 30
    monkeypatch.chdir(tmp_path)
    return tmp_path


def section(name: str, **options: float) -> OwnMethodOptions:
    recipe = {"student": {"model": "s"}, "data": {"train": "t"}}
    method = parse_config({**recipe, "method": {"name": name, **options}}).method
    assert isinstance(method, OwnMethodOptions)
    return method


def two_siblings(entropy: list[torch.Tensor] | None = None) -> StepRollouts:
    responses = [[torch.arange(length) for length in LENGTHS]]
    return StepRollouts(responses=responses, keys=["a", "b"], student_entropy=entropy)


def test_the_mask_keeps_the_tokens_of_largest_divergence_as_worked_out_by_hand(examples: Path):
    chosen = section("top_tokens.py:TopTokens")
    assert (chosen.needs.views, chosen.needs.view_divergence) == (2, True)
    zeros = [torch.zeros(length) for length in LENGTHS]
    divergence = [torch.tensor([0.1, 3.0, 0.2, 2.0, 0.0]), torch.tensor([0.5, 0.4])]
    scores = TeacherScores(
        hidden=[], original_logprobs=zeros, degraded_logprobs=zeros, view_divergence=divergence
    )
    token = make_method(chosen).weigh(two_siblings(), scores).token
    # ceil(.4 x 5) = 2 tokens share the half of the first sibling, ceil(.4 x 2) = 1 has the second.
    expected = torch.tensor([[0, 0.25, 0, 0.25, 0], [0.5, 0, 0, 0, 0]])
    torch.testing.assert_close(token, expected)


def test_the_weights_by_entropy_are_as_worked_out_by_hand(examples: Path):
    chosen = section("uncertain_tokens.py:UncertainTokens", power=2)
    assert chosen.needs.student_entropy
    entropy = [torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]), torch.tensor([3.0, 3.0])]
    token = make_method(chosen).weigh(two_siblings(entropy), None).token
    # Squares 1 and 4 of 5 share the half of the first sibling, 9 and 9 that of the second.
    expected = torch.tensor([[0.1, 0, 0.4, 0, 0], [0.25, 0.25, 0, 0, 0]])
    torch.testing.assert_close(token, expected)


@pytest.mark.parametrize("name", ["top_tokens.py:TopTokens", "uncertain_tokens.py:UncertainTokens"])
def test_a_step_learns_by_a_method_of_a_file(
    name: str, examples: Path, make_step: Callable, problems: list[Problem]
):
    step = make_step(f"method.name={name}")
    before = [parameter.clone() for parameter in step.student.model.parameters()]
    weights = step.run(problems[:2], 1).weights
    torch.testing.assert_close(weights.token.sum(-1), torch.full((6,), 1 / 3))
    after = step.student.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_entropy_that_a_method_gets_is_that_of_plain_forwards(
    examples: Path, make_step: Callable, problems: list[Problem]
):
    seen: list[StepRollouts] = []
    step = make_step("method.name=uncertain_tokens.py:UncertainTokens")
    twin, weigh = double(step.student), step.method.weigh

    def watched(batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        seen.append(batch)
        return weigh(batch, scores)

    step.method.weigh = watched
    step.run(problems[:2], 1)
    (batch,) = seen
    assert batch.student_entropy is not None
    assert torch.cat(list(batch.student_entropy)).std() > 0.01
    found = iter(batch.student_entropy)
    for problem, siblings in zip(problems[:2], batch.responses, strict=True):
        prompt = step.pipeline.encoder.original(problem)
        for response in siblings:
            with torch.no_grad():
                logprobs = plain_logprobs(twin, prompt, response)
            expected = -(logprobs.exp() * logprobs).sum(-1)
            torch.testing.assert_close(next(found).double(), expected, atol=1e-4, rtol=1e-4)


def test_a_run_by_a_method_object_records_its_file_and_is_resumed_by_it(
    examples: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(examples)
    monkeypatch.delitem(sys.modules, "top_tokens", raising=False)
    from top_tokens import TopTokens  # pyright: ignore[reportMissingImports]

    quiet, output = Console(quiet=True), examples / "run"
    config = make_config("training.max_steps=1")
    train(config, output, method=TopTokens(TopTokens.Options(kept=0.3)), console=quiet)
    recorded = load_config(output / "config.yaml")
    assert isinstance(recorded.method, OwnMethodOptions)
    assert recorded.method.name == f"{examples / 'top_tokens.py'}:TopTokens"
    assert recorded.method.options.model_dump() == {"kept": 0.3}
    longer = load_config(output / "config.yaml", ["training.max_steps=2"])
    assert train(longer, output, resume=True, console=quiet).steps == 2
    with pytest.raises(ConfigError, match=r"method\.kept was 0\.3 and is 0\.5"):
        other = load_config(output / "config.yaml", ["method.kept=0.5"])
        train(other, output, resume=True, console=quiet)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"name": "nowhere.py:TopTokens"}, "names the file nowhere.py, which does not exist in"),
        ({"name": "top_tokens.py:Other"}, "no class Other derived from vaopd.Method"),
        ({"name": "broken.py:Own"}, "broken.py, which fails when read: ZeroDivisionError"),
        (
            {"name": "top_tokens.py:TopTokens", "kapt": 0.3},
            "unknown key method.kapt; did you mean method.kept",
        ),
        ({"name": "top_tokens.py:TopTokens", "kept": "x"}, "method.kept is 'x': input should be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_an_own_method_is_one_sentence(
    method: dict, sentence: str, examples: Path
):
    (examples / "broken.py").write_text("1 / 0", encoding="utf-8")
    recipe = {"student": {"model": "s"}, "data": {"train": "t"}, "method": method}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_config(recipe)


def test_options_that_extend_those_of_a_built_in_method_keep_its_keys(examples: Path):
    (examples / "calm.py").write_text(
        "from vaopd.methods.va_opd import TokenOnly\n\n\nclass Calm(TokenOnly):\n"
        "    class Options(TokenOnly.Options):\n        high_fraction: float = 0.3\n",
        encoding="utf-8",
    )
    chosen = section("calm.py:Calm", high_mass=0.7)
    method = make_method(chosen)
    assert (method.options.high_mass, high_fraction(chosen)) == (0.7, 0.3)
    assert chosen.needs.views == 2


def test_a_run_records_all_options_of_an_own_method_with_their_defaults(examples: Path):
    assert section("top_tokens.py:TopTokens").model_dump() == {
        "name": "top_tokens.py:TopTokens",
        "kept": 0.4,
    }


def test_the_object_that_python_gives_is_the_one_that_weighs(examples: Path):
    class Kept(Method[MethodOptions]):
        def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
            raise NotImplementedError

    given = Kept(MethodOptions())
    assert make_method(section_of(given)) is given


def test_needs_that_contradict_themselves_are_one_sentence(examples: Path):
    with pytest.raises(ValueError, match="say views=2"):
        Needs(degraded_hidden=True)
    (examples / "torn.py").write_text(
        "from vaopd import Method, MethodOptions, Needs\n\n\nclass Torn(Method):\n"
        "    class Options(MethodOptions):\n        @property\n        def needs(self):\n"
        "            return Needs(view_divergence=True)\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="say views=2"):
        section("torn.py:Torn")


def test_a_study_of_own_methods_has_runs_of_plain_names_that_change_with_the_code(examples: Path):
    recipe = examples / "base.yaml"
    recipe.write_text(
        "student: {model: s}\ndata: {train: t, validation: v}\nmethod: {name: opd}\n", "utf-8"
    )
    arm = f"{examples / 'top_tokens.py'}:TopTokens"
    run = load_plan(recipe, arms=[arm], seeds=[3]).tables[0].arms[arm].runs[3]
    assert re.fullmatch(r"top_tokens-TopTokens-seed3-[0-9a-f]{8}", run.name)
    code = examples / "top_tokens.py"
    code.write_text(code.read_text("utf-8") + "# changed\n", "utf-8")
    changed = load_plan(recipe, arms=[arm], seeds=[3]).tables[0].arms[arm].runs[3]
    assert changed.name != run.name
