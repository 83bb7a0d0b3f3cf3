"""Three processes and five learn what one learns, whoever has more, fewer or no problems."""

from pathlib import Path

import pytest
from parallel_runs import KINDS, UNEVEN, config_of, run_case, run_uneven
from test_parallel import RECIPE, assert_same_rows, assert_same_weights
from world_processes import launched

from vaopd.records import read_rows

pytestmark = pytest.mark.slow

SIZES = (3, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the runs: ``few-one``, ``few-ddp-3``, ``few-fsdp2-3``, ..."""
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "recipe.yaml").write_text(RECIPE)
    for case, overrides in UNEVEN.items():
        run_case(case, config_of(folder, *overrides), folder / f"{case}-one")
    for size in SIZES:
        launched(size, run_uneven, folder, str(size))
    return folder


@pytest.mark.parametrize("case", ["few", "equal", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_several_processes_learn_what_one_learns(folder: Path, case: str, kind: str, size: int):
    found, expected = folder / f"{case}-{kind}-{size}", folder / f"{case}-one"
    assert_same_rows(found / "metrics.jsonl", expected / "metrics.jsonl")
    assert_same_weights(found / "final/model.safetensors", expected / "final/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_step_that_one_process_finds_not_finite_is_skipped_in_all(
    folder: Path, kind: str, size: int
):
    rows = read_rows(folder / f"skipped-{kind}-{size}/metrics.jsonl")
    assert [row.get("skipped_in_a_row", 0) for row in rows] == [0, 1, 0]
    # Weights that some processes had moved would give another third step.
    found, expected = folder / f"skipped-{kind}-{size}", folder / "skipped-one"
    losses = [row["loss"] for row in read_rows(expected / "metrics.jsonl")]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert_same_weights(found / "final/model.safetensors", expected / "final/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_validation_is_that_of_one_process_where_four_of_six_problems_have_an_answer(
    folder: Path, kind: str, size: int
):
    found, expected = folder / f"ragged-{kind}-{size}", folder / "ragged-one"
    assert_same_rows(found / "validation.jsonl", expected / "validation.jsonl")
    rows = read_rows(found / "validation/step_000002.jsonl")
    assert len({row["problem_id"] for row in rows}) == 4


def test_the_runs_have_equal_and_unequal_lengths(folder: Path):
    def lengths(case: str) -> set[int]:
        steps = (folder / f"{case}-one/rollouts").glob("step_*.jsonl")
        return {len(row["token_ids"]) for step in steps for row in read_rows(step)}

    assert lengths("equal") == {1}
    assert len(lengths("ragged")) > 3
