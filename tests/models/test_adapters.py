import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vaopd.config import StudentConfig
from vaopd.errors import ConfigError, ModelError
from vaopd.models import adapters
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel

CPU = torch.device("cpu")
IDS = torch.arange(20, 60).reshape(2, 20)


def load(name: str, **options: Any) -> VisionLanguageModel:
    return load_model(name, device=CPU, dtype=torch.float32, compute_dtype=torch.float32, **options)


def adapted(model: str = "tiny:student", quantization: str = "none", **lora: Any):
    """Return a model with adapters that say something: at first their product is zero."""
    student = load(model, quantization=quantization)
    values = {"model": model, "quantization": quantization, "lora": {"rank": 4} | lora}
    adapters.choose_trainable(student.model, StudentConfig.model_validate(values))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in student.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return student


@torch.no_grad()
def states(model: Any) -> Tensor:
    return model.model(input_ids=IDS).last_hidden_state


def trained(model: VisionLanguageModel) -> set[str]:
    return set(adapters.trained_weights(model.model))


@pytest.fixture(scope="module")
def student() -> VisionLanguageModel:
    return adapted(vision="adapters")


@pytest.fixture(scope="module")
def folder(student: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    student.save_trained(folder)
    return folder


# --- what learns ------------------------------------------------------------------------------


def test_adapters_stand_beside_all_linear_layers_of_the_language_model_and_nothing_else_learns():
    model = adapted()
    names = trained(model)
    # Seven linear layers in each of four blocks, two matrices each; no head, no vision tower.
    assert len(names) == 7 * 4 * 2
    assert all(".language_model.layers." in name and ".lora_" in name for name in names)
    assert not model.head.requires_grad


@pytest.mark.parametrize(
    ("vision", "learns"),
    [("frozen", set()), ("adapters", {"lora"}), ("full", {"weights"})],
)
def test_the_vision_tower_is_frozen_adapted_or_trained(vision: str, learns: set[str]):
    model = adapted(vision=vision)
    visual = {name for name in trained(model) if ".visual." in name}
    assert {"lora" if ".lora_" in name else "weights" for name in visual} == learns
    if vision == "full":
        assert visual == {n for n, _ in model.model.named_parameters() if ".visual." in n}


def test_training_the_language_model_freezes_the_vision_tower_and_nothing_else():
    model = load("tiny:student")
    adapters.choose_trainable(
        model.model, StudentConfig.model_validate({"model": "x", "train": "language"})
    )
    frozen = {n for n, p in model.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.model.named_parameters() if ".visual." in n}
    assert model.head.requires_grad


def test_only_the_named_layers_are_adapted():
    names = trained(adapted(target_modules=["q_proj", "v_proj"]))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wrong", ["lm_head", "embed_tokens", "qkv", "w_proj"])
def test_the_head_and_unknown_layers_are_refused_with_the_names_to_choose_from(wrong: str):
    with pytest.raises(ConfigError, match=rf"names '{wrong}'.*choose from down_proj, gate_proj"):
        adapted(target_modules=["q_proj", wrong])


def test_an_adapter_of_a_model_at_half_precision_is_float32():
    half = load_model("tiny:student", device=CPU, dtype=torch.bfloat16,
                      compute_dtype=torch.bfloat16)  # fmt: skip
    settings = StudentConfig.model_validate(
        {"model": "tiny:student", "lora": {"rank": 2, "vision": "full"}}
    )
    adapters.choose_trainable(half.model, settings)
    assert {t.dtype for t in adapters.trained_weights(half.model).values()} == {torch.float32}
    assert half.head.dtype == torch.bfloat16
    # Forwards still run at the compute precision.
    with half.autocast():
        assert torch.is_autocast_enabled("cpu")


# --- merged, saved, loaded --------------------------------------------------------------------


def test_the_merged_folder_is_a_plain_model_with_the_same_hidden_states(
    student: VisionLanguageModel, tmp_path: Path
):
    student.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    plain, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    expected = states(student.model)
    torch.testing.assert_close(states(plain), expected, atol=3e-5, rtol=1e-5)
    assert (states(load("tiny:student").model) - expected).abs().max() > 0.5
    # Tied weights are stored once.
    names = load_file(tmp_path / "model.safetensors").keys()
    assert not any(".lora_" in name or "base_layer" in name for name in names)
    assert "lm_head.weight" not in names
    half = student.weights(torch.bfloat16)
    head, embeddings = half["lm_head.weight"], half["model.language_model.embed_tokens.weight"]
    assert head.data_ptr() == embeddings.data_ptr()


def test_an_adapter_folder_is_small_and_loads_as_its_base_with_the_adapters_merged(
    student: VisionLanguageModel, folder: Path
):
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not {"config.json", "model.safetensors"} & names
    again = load(str(folder))
    assert not again.has_adapters
    assert {p.requires_grad for p in again.model.parameters()} == {True}
    torch.testing.assert_close(states(again.model), states(student.model), atol=3e-5, rtol=1e-5)


# peft asks transformers by a name that transformers gave up.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_itself_reads_the_adapter_folder(student: VisionLanguageModel, folder: Path):
    base = load("tiny:student")
    theirs = peft.PeftModel.from_pretrained(base.model, str(folder))
    assert torch.equal(states(theirs.base_model.model), states(student.model))


def test_a_trained_vision_tower_travels_with_the_adapters(tmp_path: Path):
    model = adapted(vision="full")
    name = "model.visual.blocks.0.attn.qkv.weight"
    model.model.get_parameter(name).data += 0.01
    model.save_trained(tmp_path)
    again = load(str(tmp_path))
    assert torch.equal(again.model.get_parameter(name), model.model.get_parameter(name))
    assert not torch.equal(
        again.model.get_parameter(name), load("tiny:student").model.get_parameter(name)
    )


def test_new_adapters_can_stand_on_a_folder_of_old_ones(folder: Path, tmp_path: Path):
    second = adapted(str(folder), target_modules=["q_proj"])
    second.save_trained(tmp_path / "second")
    again = load(str(tmp_path / "second"))
    torch.testing.assert_close(states(again.model), states(second.model), atol=3e-5, rtol=1e-5)


# Training mode: in evaluation bitsandbytes packs weights for bfloat16 kernels of some processors.
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_adapters_on_quantized_weights_merge_into_what_they_were_trained_beside(
    quantization: str, tmp_path: Path
):
    model = adapted("tiny:teacher-m", quantization)
    kinds = {type(p).__name__ for n, p in model.model.named_parameters() if "base_layer" in n}
    assert kinds == {"Params4bit" if quantization == "4bit" else "Int8Params"}
    visual = {p.dtype for n, p in model.model.named_parameters() if ".visual." in n}
    assert visual == {torch.float32}
    model.model.train()
    model.save(tmp_path / "merged")
    model.save_trained(tmp_path / "adapter")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged.config, "quantization_config")
    tolerance = {"atol": 5e-5, "rtol": 1e-4}
    torch.testing.assert_close(states(merged), states(model.model), **tolerance)
    assert torch.equal(states(load(str(tmp_path / "adapter")).model), states(merged))


# --- what cannot be done ----------------------------------------------------------------------


def test_without_peft_adapters_are_refused_in_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs peft; install vaopd\[lora\]"):
        adapted()
    with pytest.raises(ModelError, match=r"need peft; install vaopd\[lora\]"):
        load(str(folder))


def changed(folder: Path, target: Path, change: Callable[[Path], object]) -> str:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return str(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), "cannot be put into"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12"), "cannot be put into"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be"),
        (lambda f: (f / "adapter_base.json").write_text("{"), "cannot be read"),
        (
            lambda f: (f / "adapter_base.json").write_text('{"model": "tiny:new-student"}'),
            "whose random weights are lost",
        ),
        (
            lambda f: (f / "adapter_base.json").write_text('{"model": "no/where"}'),
            "base model of the adapters .*'no/where' cannot be loaded",
        ),
        (
            lambda f: (f / "adapter_base.json").write_text('{"model": "tiny:teacher-l"}'),
            "cannot be put into|do not fit",
        ),
    ],
)
def test_damaged_and_homeless_adapters_are_refused(
    folder: Path, tmp_path: Path, change: Callable, message: str
):
    with pytest.raises(ModelError, match=message):
        load(changed(folder, tmp_path / "changed", change))


def test_a_folder_that_only_peft_wrote_names_its_base_itself(folder: Path, tmp_path: Path):
    foreign = changed(folder, tmp_path / "foreign", lambda f: (f / "adapter_base.json").unlink())
    values = json.loads((Path(foreign) / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "tiny:student"
    assert torch.equal(states(load(foreign).model), states(load(str(folder)).model))
