"""A run with adapters from recipe to export, stopped and resumed."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vaopd.config import RunConfig
from vaopd.models.loading import load_model
from vaopd.records import CHECKSUMS, read_rows
from vaopd.training.run import train

OVERRIDES = (
    "student.model=tiny:student",
    "student.lora.rank=4",
    "student.lora.dropout=0.1",
    "student.lora.vision=full",
    "training.max_steps=3",
    "training.save_every=2",
    "training.keep_checkpoints=null",
    "training.learning_rate=1e-2",
    "training.micro_batch_tokens=auto",
)


@pytest.fixture(scope="module")
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(*OVERRIDES)


@pytest.fixture(scope="module")
def folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet = Console(file=io.StringIO())
    return train(config, tmp_path_factory.mktemp("lora") / "run", console=quiet).output


def loaded(path: Path):
    cpu = torch.device("cpu")
    return load_model(str(path), device=cpu, dtype=torch.float32, compute_dtype=torch.float32)


def test_checkpoints_hold_adapters_and_their_moments_only(folder: Path):
    step = folder / "checkpoints" / "step_000002"
    assert (step / "adapter_model.safetensors").is_file()
    assert (step / "trained_weights.safetensors").is_file()  # the vision tower
    assert not (step / "model.safetensors").exists()


def test_the_final_folder_is_merged_and_keeps_the_adapter_beside(folder: Path):
    final, adapter = loaded(folder / "final"), loaded(folder / "final" / "adapter")
    last = loaded(folder / "checkpoints" / "step_000003")
    base = loaded(Path("tiny:student"))
    for name, value in final.model.named_parameters():
        assert torch.equal(value, adapter.model.get_parameter(name)), name
        assert torch.equal(value, last.model.get_parameter(name)), name
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(final.model.get_parameter(name), base.model.get_parameter(name))
    assert (folder / "final" / "config.json").is_file()
    assert not (folder / "final" / "adapter_config.json").exists()


def test_metrics_tell_the_size_of_the_forwards(folder: Path):
    assert [row["micro_batch_tokens"] for row in read_rows(folder / "metrics.jsonl")] == [16384] * 3


def test_a_resumed_run_ends_in_the_bits_of_the_uninterrupted_one(
    folder: Path, config: RunConfig, tmp_path: Path
):
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "final")
    shutil.rmtree(again / "checkpoints" / "step_000003")
    train(config, again, resume=True, console=Console(file=io.StringIO()))
    for name in (
        "final/model.safetensors",
        "checkpoints/step_000003/adapter_model.safetensors",
        "checkpoints/step_000003/trained_weights.safetensors",
        "checkpoints/step_000003/trainer_state/optimizer.safetensors",
    ):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    losses = [[row["loss"] for row in read_rows(f / "metrics.jsonl")] for f in (folder, again)]
    assert losses[0] == losses[1]


def test_a_resumed_run_goes_on_with_the_size_of_forwards_that_was_found(
    folder: Path, config: RunConfig, tmp_path: Path
):
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "step_000003")
    state = again / "checkpoints" / "step_000002" / "trainer_state" / "state.json"
    state.write_text(state.read_text().replace("16384", "128"))
    state.with_name(CHECKSUMS).unlink()
    train(config, again, resume=True, console=Console(file=io.StringIO()))
    rows = read_rows(again / "metrics.jsonl")
    assert [row["micro_batch_tokens"] for row in rows] == [16384, 16384, 128]


@pytest.mark.parametrize("source", ["", "checkpoints/step_000003", "final/adapter"])
def test_export_writes_one_plain_model_from_run_checkpoint_or_adapters(
    run: Callable, folder: Path, tmp_path: Path, source: str
):
    output = tmp_path / "exported"
    code, out, err = run("export", folder / source, "--output", output)
    assert (code, err) == (0, "")
    assert str(output) in out
    exported = (output / "model.safetensors").read_bytes()
    assert exported == (folder / "final" / "model.safetensors").read_bytes()


def test_an_export_at_half_precision_takes_half(run: Callable, folder: Path, tmp_path: Path):
    assert run("export", folder, "--output", tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    sizes = [
        (f / "model.safetensors").stat().st_size for f in (tmp_path / "half", folder / "final")
    ]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.05)


@pytest.mark.parametrize(
    ("source", "output", "code", "message"),
    [
        ("nowhere", "new", 2, "is not a folder"),
        ("checkpoints", "new", 1, "holds no model, adapters or complete checkpoint"),
        ("", "checkpoints", 2, "exists; choose another folder"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(
    run: Callable, folder: Path, tmp_path: Path, source: str, output: str, code: int, message: str
):
    target = folder / output if output == "checkpoints" else tmp_path / output
    found, _, err = run("export", folder / source, "--output", target)
    assert found == code
    assert message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_adapters_is_evaluated_like_a_model(
    run: Callable, folder: Path, tmp_path: Path
):
    code, _, err = run(
        "evaluate", folder / "checkpoints" / "step_000003", "--benchmark", "drawn",
        "--output", tmp_path / "out", "--samples", 1, "--limit", 2, "--max-new-tokens", 3,
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "out" / "results.json").is_file()
