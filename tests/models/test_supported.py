"""Which models are refused, and why, before their weights are read; which two fit each other."""

import json
from pathlib import Path

import pytest
import torch
from random_models import gemma3, llava, random_model
from transformers import AutoConfig

from vaopd.errors import ModelError
from vaopd.models import tiny
from vaopd.models.compatibility import check_same_pixels
from vaopd.models.loading import load_model, wrap_model
from vaopd.models.model import VisionLanguageModel


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(
            str(folder),
            device=torch.device("cpu"),
            dtype=torch.float32,
            compute_dtype=torch.float32,
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "softcapping=30.0"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"model_type": "cohere2", "logit_scale": 0.0625}, "logit_scale=0.0625"),
    ],
)
def test_logits_that_are_changed_after_the_head_are_refused_without_weights(
    tmp_path: Path, text: dict, message: str
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert f"(llava) has {message}" in refusal(tmp_path).replace("final_logit_", "")


def test_neutral_settings_of_logits_are_no_reason(tmp_path: Path):
    text = {"model_type": "granite", "logits_scaling": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    # What is wrong then is that there are no weights.
    assert "cannot be loaded" in refusal(tmp_path)


def test_an_encoder_and_decoder_is_refused_without_weights(tmp_path: Path):
    AutoConfig.for_model("florence2").save_pretrained(tmp_path)
    assert "(florence2) is an encoder and a decoder" in refusal(tmp_path)


def test_a_head_with_a_bias_is_refused():
    model = tiny.new_model("student")
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    with pytest.raises(ModelError, match="has a head with a bias"):
        wrap_model(model, tiny.asset_folder("tokenizer"))


def test_a_model_without_a_body_is_refused():
    model = tiny.new_model("student")
    body = model.model
    del model.model
    model.body = body
    model.set_output_embeddings(torch.nn.Linear(2, 2, bias=False))
    with pytest.raises(ModelError, match="has no part called 'model'"):
        wrap_model(model, tiny.asset_folder("tokenizer"))


def test_gemma_3_with_an_incomplete_tokenizer_is_a_sentence(tmp_path: Path):
    random_model("gemma3", tmp_path / "processor").save(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    values = json.loads(file.read_text())
    for key in ("extra_special_tokens", "model_specific_special_tokens", "boi_token"):
        values.pop(key, None)
    file.write_text(json.dumps(values))
    assert "no attribute boi_token" in refusal(tmp_path / "model")


def test_a_processor_without_a_chat_template_is_a_sentence(tmp_path: Path):
    random_model("llava", tmp_path / "processor").save(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(tmp_path / "model")


def test_a_folder_with_a_tokenizer_alone_is_a_sentence(tmp_path: Path):
    model = random_model("llava", tmp_path / "processor")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    assert "model" in refusal(tmp_path / "model")


def test_a_mixture_of_experts_may_teach_a_dense_model_and_learn_from_it(
    qwen: VisionLanguageModel, qwen3: VisionLanguageModel
):
    check_same_pixels(qwen, qwen3)
    check_same_pixels(qwen3, qwen)


def test_models_of_two_families_are_told_by_their_processors(
    qwen3: VisionLanguageModel, idefics: VisionLanguageModel
):
    with pytest.raises(
        ModelError,
        match="image_processor_type is Qwen2VLImageProcessor and Idefics3ImageProcessor",
    ):
        check_same_pixels(qwen3, idefics)


def changed(family, folder: Path, **settings) -> VisionLanguageModel:
    model, processor = family()
    for key, value in settings.items():
        setattr(processor.image_processor, key, value)
    processor.save_pretrained(folder)
    return wrap_model(model, folder, name=folder.name)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        (llava, {"crop_size": {"height": 64, "width": 64}}, "crop_size"),
        (llava, {"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        (llava, {"do_center_crop": False}, "do_center_crop"),
        (gemma3, {"size": {"height": 64, "width": 64}}, "size"),
        (gemma3, {"do_pan_and_scan": True}, "do_pan_and_scan"),
    ],
)
def test_what_changes_pixels_is_compared(tmp_path: Path, family, settings: dict, named: str):
    plain = changed(family, tmp_path / "plain")
    other = changed(family, tmp_path / "other", **settings)
    check_same_pixels(plain, changed(family, tmp_path / "again"))
    with pytest.raises(ModelError, match=f"'plain' and .*'other' .* differently: {named} is"):
        check_same_pixels(plain, other)


def test_what_changes_no_pixel_is_not_compared(tmp_path: Path):
    plain = changed(llava, tmp_path / "plain")
    check_same_pixels(plain, changed(llava, tmp_path / "other", do_convert_rgb=None))
