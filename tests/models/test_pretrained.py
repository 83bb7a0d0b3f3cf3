"""A folder that does not hold a whole model is refused; transformers would make up the rest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_models import qwen3_vl, qwen3_vl_moe, sharpen
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaopd.config import LoraConfig, StudentConfig
from vaopd.errors import ModelError
from vaopd.models import adapters, tiny
from vaopd.models.loading import load_model, wrap_model
from vaopd.models.model import VisionLanguageModel

CPU = torch.device("cpu")
LAYER = "model.language_model.layers.0.mlp.up_proj.weight"
EMBEDDINGS = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"


def load(folder: Path, **options: str) -> VisionLanguageModel:
    return load_model(
        str(folder), device=CPU, dtype=torch.float32, compute_dtype=torch.float32, **options
    )


def save(model: VisionLanguageModel, folder: Path) -> Path:
    model.save(folder)
    return folder


def untied() -> VisionLanguageModel:
    model = qwen3_vl_moe()
    sharpen(model)
    return wrap_model(model, tiny.asset_folder("tokenizer"))


@pytest.fixture(scope="module")
def tied() -> VisionLanguageModel:
    model = qwen3_vl()
    sharpen(model)
    return wrap_model(model, tiny.asset_folder("tokenizer"))


@pytest.fixture
def folder(tied: VisionLanguageModel, tmp_path: Path) -> Path:
    return save(tied, tmp_path / "model")


Change = Callable[[dict[str, Tensor]], object]


def rewrite(folder: Path, change: Change, file: str = "model.safetensors") -> None:
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def test_experts_are_read_as_they_are_published(tmp_path: Path):
    # Qwen3-VL-30B-A3B stores (experts, in, out), transformers computes with (experts, out, in).
    model = untied()
    rewrite(
        save(model, tmp_path),
        lambda weights: weights.update(
            {n: t.mT.contiguous() for n, t in weights.items() if ".experts." in n}
        ),
    )
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 32, 48)
    loaded = load(tmp_path).model.state_dict()
    expected = model.model.state_dict()
    assert [name for name in expected if not expected[name].equal(loaded[name])] == []


def refusal(folder: Path, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(LAYER), f"1 weight is missing: {LAYER};"),
        (
            lambda w: w.update(old=w.pop(LAYER)),
            f"1 weight is missing: {LAYER}, 1 weight is unknown to this architecture: old;",
        ),
        (
            lambda w: w.update({LAYER: torch.zeros(3, 4)}),
            f"1 weight is of another shape: {LAYER} (3 x 4 instead of 48 x 32);",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "1 weight is unknown to this architecture: ext"),
        # Both ends of the tie.
        (lambda w: w.pop(EMBEDDINGS), f"2 weights are missing: {HEAD}, {EMBEDDINGS};"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture, change: Change, message: str
):
    rewrite(folder, change)
    sentence = refusal(folder)
    assert f"model '{folder}' cannot be used: {message}" in sentence
    assert "LOAD REPORT" not in caplog.text


def test_of_many_missing_weights_three_are_named(folder: Path):
    def keep_nothing(weights: dict[str, Tensor]) -> None:
        weights.clear()
        weights["other"] = torch.zeros(1)

    names = [HEAD, *load_file(folder / "model.safetensors")]
    rewrite(folder, keep_nothing)
    first = ", ".join(sorted(names)[:3])
    assert f"{len(names)} weights are missing: {first}, .., 1 weight is unknown" in refusal(folder)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_load_misses_a_weight_too(folder: Path, quantization: str):
    pytest.importorskip("bitsandbytes")
    load(folder, quantization=quantization)
    rewrite(folder, lambda w: w.pop(LAYER))
    assert f"1 weight is missing: {LAYER};" in refusal(folder, quantization=quantization)


@pytest.mark.parametrize("kept", [{EMBEDDINGS}, {HEAD}, {EMBEDDINGS, HEAD}])
def test_either_end_of_a_tied_head_is_enough(
    folder: Path, tied: VisionLanguageModel, kept: set[str]
):

    def keep(weights: dict[str, Tensor]) -> None:
        embeddings = weights.pop(EMBEDDINGS)
        weights.update({name: embeddings.clone() for name in kept})

    rewrite(folder, keep)
    if len(kept) == 1:
        assert kept <= load_file(folder / "model.safetensors").keys()
    loaded = load(folder)
    assert loaded.head.equal(tied.head)
    assert loaded.model.get_input_embeddings().weight.equal(tied.head)


def test_a_head_that_is_not_tied_may_not_be_missing(tmp_path: Path):
    folder = save(untied(), tmp_path / "model")
    load(folder)
    rewrite(folder, lambda w: w.pop(HEAD))
    assert f"1 weight is missing: {HEAD};" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_a_sentence(folder: Path, length: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert "a file of its weights is damaged" in refusal(folder)


def shards(model: VisionLanguageModel, folder: Path) -> list[Path]:
    model.model.save_pretrained(folder, max_shard_size="100KB")
    model.tokenizer.save_pretrained(folder)
    model.processors[0].save_pretrained(folder)
    return sorted(folder.glob("model-*.safetensors"))


def test_a_shard_that_is_missing_is_named(tied: VisionLanguageModel, tmp_path: Path):
    second = shards(tied, tmp_path)[1]
    load(tmp_path)
    second.unlink()
    assert second.name in refusal(tmp_path)


def test_a_shard_without_a_weight_of_the_index_is_noticed(
    tied: VisionLanguageModel, tmp_path: Path
):
    second = shards(tied, tmp_path)[1]
    name = max(load_file(second))  # not the tied one
    rewrite(tmp_path, lambda w: w.pop(name), second.name)
    assert f"1 weight is missing: {name};" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_a_sentence(
    tied: VisionLanguageModel, tmp_path: Path, content: str
):
    shards(tied, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "cannot be loaded" in refusal(tmp_path)


def test_experts_that_a_model_has_not_are_a_sentence(tmp_path: Path):
    folder = save(untied(), tmp_path / "model")
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    rewrite(folder, lambda w: w.update({name: w[name][:3].contiguous()}))
    assert name in refusal(folder)


def adapted(folder: Path, output: Path, **options) -> VisionLanguageModel:
    """Return a model with random adapters, which are also saved."""
    model = load(folder)
    config = StudentConfig(model=str(folder), lora=LoraConfig(rank=2, **options))
    adapters.choose_trainable(model.model, config)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    model.save_trained(output)
    return model


def test_adapters_load_though_their_folder_has_no_whole_model(folder: Path, tmp_path: Path):
    adapted(folder, tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "config.json").exists()
    assert load(tmp_path / "adapters").model.state_dict().keys() == load(folder).weights().keys()


def test_adapters_beside_experts_and_their_merged_model_are_the_same(tmp_path: Path):
    folder = save(untied(), tmp_path / "model")
    model = adapted(folder, tmp_path / "adapters")
    wanted = model.weights()
    for loaded in (load(tmp_path / "adapters"), load(save(model, tmp_path / "merged"))):
        found = loaded.model.state_dict()
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight)


def test_the_base_model_of_adapters_may_miss_nothing(folder: Path, tmp_path: Path):
    adapted(folder, tmp_path / "adapters")
    rewrite(folder, lambda w: w.pop(LAYER))
    sentence = refusal(tmp_path / "adapters")
    assert sentence.startswith(f"the base model of the adapters {tmp_path / 'adapters'}: ")
    assert f"1 weight is missing: {LAYER};" in sentence


def test_an_adapter_that_is_missing_is_named(folder: Path, tmp_path: Path):
    adapted(folder, tmp_path / "adapters")
    rewrite(tmp_path / "adapters", lambda w: w.pop(min(w)), "adapter_model.safetensors")
    assert "1 weight is missing: model.language_model.layers.0." in refusal(tmp_path / "adapters")


@pytest.mark.parametrize("lost", ["one weight", "the file"])
def test_weights_that_learned_beside_adapters_may_not_get_lost(
    folder: Path, tmp_path: Path, lost: str
):
    adapted(folder, tmp_path / "adapters", vision="full")
    file = tmp_path / "adapters" / "trained_weights.safetensors"
    names = sorted(load_file(file))
    if lost == "the file":
        file.unlink()
        expected = f"{len(names)} weights are missing: {', '.join(names[:3])}, ..;"
    else:
        rewrite(tmp_path / "adapters", lambda w: w.pop(names[0]), file.name)
        expected = f"1 weight is missing: {names[0]};"
    assert expected in refusal(tmp_path / "adapters")


def test_a_folder_of_a_model_and_of_adapters_is_refused(folder: Path, tmp_path: Path):
    adapted(folder, tmp_path / "adapters")
    shutil.copytree(tmp_path / "adapters", folder, dirs_exist_ok=True)
    assert "it is not clear which is meant" in refusal(folder)


def test_a_configuration_of_another_size_names_shapes(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    assert "6 weights are of another shape: model.language_model.layers.0.mlp.down_proj" in refusal(
        folder
    )
