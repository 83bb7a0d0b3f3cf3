"""Under fsdp2 one process reads the weights of a model; the others have no file of them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading_work import read_once
from random_models import BUILDERS, NEEDS, PLAIN, RECURRENT, random_model
from world_processes import launched

from vaopd.config import LoraConfig, StudentConfig
from vaopd.models import adapters
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel

pytestmark = pytest.mark.slow

KINDS = [*BUILDERS, *RECURRENT, *(name for name in PLAIN if name not in NEEDS)]
STUDENTS = [("student.dtype=float32",), ("student.dtype=bfloat16", "student.lora.rank=4")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a model of each kind, and the same folders without their weights."""
    folder = tmp_path_factory.mktemp("models")
    for number, kind in enumerate(KINDS):
        (folder / f"{kind}-processor").mkdir()
        random_model(kind, folder / f"{kind}-processor", number).save(folder / "whole" / kind)
    ignored = shutil.ignore_patterns("*.safetensors*")
    shutil.copytree(folder / "whole", folder / "without weights", ignore=ignored)
    shutil.copytree(folder / "whole" / KINDS[0], folder / "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes(b"not a file of weights")
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def found(folder: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Hold what each process found."""
    return launched(request.param, read_once, folder, KINDS, STUDENTS)


def assert_same_values(model: VisionLanguageModel, found: dict[str, Any]) -> None:
    """Compare a model that one process loaded with what several have together."""
    tensors = dict(model.model.named_parameters()) | dict(model.model.named_buffers())
    expected = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
    assert found.keys() == {*expected, "hidden", "ends"}
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
    assert np.isfinite(found["hidden"]).all()
    assert found["ends"].tolist() == model.eos_token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_processes_without_the_files_have_the_weights_of_the_one_that_reads(
    folder: Path, found: list[dict[str, Any]], kind: str
):
    whole = folder / "whole" / kind
    model = load_model(str(whole), device=CPU, dtype=torch.float32, compute_dtype=torch.float32)
    assert_same_values(model, found[0][kind])


def test_adapters_have_the_same_first_values_in_all_processes(
    folder: Path, found: list[dict[str, Any]]
):
    whole, half = str(folder / "whole" / KINDS[0]), torch.bfloat16
    model = load_model(whole, device=CPU, dtype=half, compute_dtype=half)
    options = StudentConfig(model=whole, lora=LoraConfig(rank=4))
    adapters.choose_trainable(model.model, options, 42)
    assert_same_values(model, found[0][" ".join(STUDENTS[1])])


def test_a_damaged_file_of_the_process_that_reads_ends_all(found: list[dict[str, Any]]):
    first, *others = [one["damaged"] for one in found]
    assert first.startswith("ModelError: ") and "damaged" in first
    assert others == [f"PeerError: process 0 failed: {first.removeprefix('ModelError: ')}"] * (
        len(found) - 1
    )


def test_processes_that_build_other_models_are_refused_in_all(found: list[dict[str, Any]]):
    (sentence,) = {one["other"] for one in found}
    assert sentence.startswith(f"ModelError: process {len(found) - 1} builds ")


def test_a_run_goes_on_where_only_the_main_process_has_the_weights(found: list[dict[str, Any]]):
    assert found[0]["resumed"] == [0.0, 0.0]
