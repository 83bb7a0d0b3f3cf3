import dataclasses
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AddedToken, AutoTokenizer

from vaopd import views
from vaopd.config import DataConfig, ViewConfig
from vaopd.devices import pick_device, pick_dtype
from vaopd.errors import AlignmentError, ConfigError, ModelError, ProblemError
from vaopd.models import tiny
from vaopd.models.compatibility import check_same_tokenizer
from vaopd.models.loading import load_model, wrap_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import check_same_text

CPU = torch.device("cpu")


def load(name: str, dtype: torch.dtype = torch.float32, **options) -> VisionLanguageModel:
    compute = options.pop("compute_dtype", dtype)
    return load_model(name, device=CPU, dtype=dtype, compute_dtype=compute, **options)


def retokenized(model: VisionLanguageModel, folder: Path, token: str, **options):
    """Return the model with a tokenizer to which a token was added."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer"))
    tokenizer.add_tokens([AddedToken(token, **options)])
    tokenizer.save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return wrap_model(model.model, folder, name=folder.name)


def data(**options) -> DataConfig:
    return DataConfig.model_validate(
        {"train": "drawn:train", "min_pixels": 1, "max_pixels": 10_000} | options
    )


def test_no_placeholder_padding_or_turn_marker_may_be_drawn_and_every_end_may(qwen3):
    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    assert set(qwen3.forbidden_ids) == set(qwen3.tokenizer.convert_tokens_to_ids(tokens))
    assert qwen3.tokenizer.convert_ids_to_tokens(qwen3.eos_token_ids) == ["<|im_end|>"]


def test_an_added_token_that_is_text_may_be_drawn(qwen3, tmp_path):
    model = retokenized(qwen3, tmp_path / "think", "<think>", special=False)
    assert model.tokenizer.convert_tokens_to_ids("<think>") not in model.forbidden_ids


def test_an_image_token_that_is_not_marked_special_may_not_be_drawn(qwen3, tmp_path):
    model = retokenized(qwen3, tmp_path / "loose", "<loose_image>", special=False)
    loose = model.tokenizer.convert_tokens_to_ids("<loose_image>")
    placeholder = model.model.config.image_token_id
    model.model.config.image_token_id = loose
    try:
        assert loose in model.forbidden_ids
    finally:
        model.model.config.image_token_id = placeholder


def test_every_end_of_the_generation_config_ends_a_response(qwen3):
    before = qwen3.model.generation_config.eos_token_id
    own = qwen3.tokenizer.eos_token_id
    for ids, expected in ((None, {own}), (7, {7, own}), ([9, 7], {7, 9, own})):
        qwen3.model.generation_config.eos_token_id = ids
        assert set(qwen3.eos_token_ids) == expected
    qwen3.model.generation_config.eos_token_id = before


def test_models_that_share_a_tokenizer_fit_whatever_the_rows_of_their_heads(qwen3):
    other = load("tiny:new-student")
    # 656 and 672 rows for 640 ids.
    assert len(other.head) != len(qwen3.head)
    check_same_tokenizer(other, qwen3)


def test_a_tokenizer_mismatch_names_the_first_token_and_its_ids(qwen3, tmp_path):
    other = retokenized(qwen3, tmp_path / "other", "zebra")
    with pytest.raises(
        ModelError, match=rf"'qwen3_vl'.*'other'.*'zebra' is id None and id {qwen3.vocab_size};"
    ):
        check_same_tokenizer(qwen3, other)


def test_two_tokens_that_changed_places_are_a_mismatch_of_ids_not_of_sizes(qwen3, tmp_path):
    one = retokenized(qwen3, tmp_path / "one", "aa1")
    two = retokenized(qwen3, tmp_path / "two", "bb2")
    first = qwen3.vocab_size
    assert one.vocab_size == two.vocab_size == first + 1
    with pytest.raises(ModelError, match=f"'aa1' is id {first} and id None"):
        check_same_tokenizer(one, two)


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-model", "someone/no-such-model"])
def test_a_model_that_is_not_there_says_what_to_give(name):
    with pytest.raises(ModelError, match=rf"model '{name}' cannot be loaded.*give a hub name"):
        load(name)


def test_a_folder_without_weights_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["tiny:giant", "tiny:new-giant", "tiny:"])
def test_an_unknown_tiny_model_lists_the_known_ones(name):
    with pytest.raises(ModelError, match=r"use one of .*student"):
        load(name)


def test_a_saved_model_loads_as_it_was(qwen, tmp_path, draw_problem):
    qwen.save(tmp_path)
    loaded = load(str(tmp_path))
    problem = draw_problem("p", (48, 32))
    before = qwen.family.encode(problem, problem.load_images())
    after = loaded.family.encode(problem, problem.load_images())
    assert before.input_ids.equal(after.input_ids)
    with torch.no_grad():
        states = [
            model.base(**model.family.prefill_inputs([prompt])).last_hidden_state
            for model, prompt in ((qwen, before), (loaded, after))
        ]
    assert states[0].equal(states[1])


def test_saving_in_bfloat16_leaves_the_model_in_float32(qwen3, tmp_path):
    before = qwen3.model.config.dtype
    qwen3.save(tmp_path, torch.bfloat16)
    assert (qwen3.model.dtype, qwen3.model.config.dtype) == (torch.float32, before)
    loaded = load(str(tmp_path), torch.bfloat16)
    assert loaded.head.equal(qwen3.head.bfloat16())


def test_a_saved_model_of_another_family_loads_with_its_processor(idefics, tmp_path, draw_problem):
    idefics.save(tmp_path)
    loaded = load(str(tmp_path))
    problem = draw_problem("p", (48, 32))
    before = idefics.family.encode(problem, problem.load_images())
    after = loaded.family.encode(problem, problem.load_images())
    assert before.input_ids.equal(after.input_ids)
    assert loaded.head.equal(idefics.head)


def test_forwards_run_at_the_compute_precision(draw_problem):
    model = load("tiny:new-student", compute_dtype=torch.bfloat16)
    problem = draw_problem("p", (32, 32))
    inputs = model.family.prefill_inputs([model.family.encode(problem, problem.load_images())])
    with torch.no_grad(), model.autocast():
        layer = model.base.language_model.layers[0].mlp.down_proj
        kept = []
        layer.register_forward_hook(lambda _, args, output: kept.append(output.dtype))
        model.base(**inputs)
    assert (model.head.dtype, kept) == (torch.float32, [torch.bfloat16])


def test_a_prompt_over_the_limit_is_an_error_that_counts_its_tokens(qwen3, draw_problem):
    problem = draw_problem("long", (64, 64))
    length = len(PromptEncoder(qwen3, data(), ViewConfig()).original(problem))
    PromptEncoder(qwen3, data(max_prompt_tokens=length), ViewConfig()).original(problem)
    encoder = PromptEncoder(qwen3, data(max_prompt_tokens=length - 1), ViewConfig())
    with pytest.raises(ProblemError, match=f"problem long has a prompt of {length} tokens"):
        encoder.original(problem)


def test_the_pixel_budget_sets_the_number_of_visual_tokens(qwen3, draw_problem):
    problem = draw_problem("p", (64, 64))
    small = PromptEncoder(qwen3, data(max_pixels=32 * 32), ViewConfig()).original(problem)
    large = PromptEncoder(qwen3, data(min_pixels=96 * 96), ViewConfig()).original(problem)
    # Merged patches are 16 pixels a side: 2 x 2 and 6 x 6 of them.
    assert [int(p.image_inputs["image_grid_thw"].prod()) // 4 for p in (small, large)] == [4, 36]


@pytest.mark.parametrize("stage", ["budget", "native"])
def test_both_views_differ_in_pixels_only(qwen, draw_problem, stage):
    problem = draw_problem("p", (64, 32), (48, 48))
    encoder = PromptEncoder(
        qwen, data(min_pixels=64 * 64), ViewConfig.model_validate({"stage": stage})
    )
    original, degraded = encoder.both(problem)
    assert original.input_ids.equal(degraded.input_ids)
    assert original.image_inputs["image_grid_thw"].equal(degraded.image_inputs["image_grid_thw"])
    pixels = [prompt.image_inputs["pixel_values"] for prompt in (original, degraded)]
    assert (pixels[0] - pixels[1]).abs().max() > 0.1


def test_a_view_at_ratio_1_is_the_original(qwen3, draw_problem):
    problem = draw_problem("p", (64, 32))
    original, degraded = PromptEncoder(qwen3, data(), ViewConfig(ratio=1.0)).both(problem)
    assert original.image_inputs["pixel_values"].equal(degraded.image_inputs["pixel_values"])


def test_a_view_that_changes_the_size_of_the_image_names_the_problem(
    qwen3, draw_problem, monkeypatch
):
    monkeypatch.setattr("vaopd.views.degrade", lambda image, name, ratio: image.resize((32, 32)))
    problem = draw_problem("shrunk", (64, 64))
    with pytest.raises(AlignmentError, match="problem shrunk: the degraded view has"):
        PromptEncoder(qwen3, data(), ViewConfig()).both(problem)


def test_the_small_probe_has_the_same_text_and_fewer_visual_tokens(qwen, draw_problem):
    problem = draw_problem("p", (320, 160), (160, 160))
    small_probe = ViewConfig(probe="small", ratio=0.2)
    original, small = PromptEncoder(qwen, data(max_pixels=10**6), small_probe).both(problem)
    token = qwen.family.image_token_id
    texts = [prompt.input_ids[prompt.input_ids != token] for prompt in (original, small)]
    assert texts[0].equal(texts[1])
    # 320 x 160 becomes 64 x 32 pixels, 4 x 2 tokens of 16 pixels; 160 x 160 becomes 2 x 2.
    assert small.image_inputs["image_grid_thw"].tolist() == [[1, 4, 8], [1, 4, 4]]
    assert int((small.input_ids == token).sum()) == 8 + 4
    assert small.next_position < original.next_position


def test_the_small_probe_shows_the_cells_of_the_paper_s_view(qwen3, draw_problem):
    problem = draw_problem("p", (320, 320))
    encoder = PromptEncoder(qwen3, data(max_pixels=10**6), ViewConfig(ratio=0.1))
    (full,) = encoder.degraded_images(problem)
    cells = views.reduced(encoder.original_images(problem)[0], 0.1)
    assert cells.size == (32, 32)
    assert cells.resize((320, 320), Image.Resampling.NEAREST).tobytes() == full.tobytes()


def test_a_small_view_with_other_text_names_the_problem(qwen3, draw_problem):
    encoder = PromptEncoder(qwen3, data(), ViewConfig())
    one = encoder.original(draw_problem("p", (64, 64)))
    for other in (
        draw_problem("p", (64, 64), text="Find y, please."),
        draw_problem("p", (64, 64), (64, 64)),
    ):
        with pytest.raises(AlignmentError, match="problem p: the small view has"):
            check_same_text(one, encoder.original(other), qwen3.family.image_token_id)


def test_the_small_probe_of_an_unknown_family_is_refused(idefics, draw_problem):
    encoder = PromptEncoder(idefics, data(), ViewConfig(probe="small"))
    with pytest.raises(ConfigError, match=r"view\.probe is 'small', which needs a Qwen-VL model"):
        encoder.both(draw_problem("p", (64, 64)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16"])
def test_images_of_every_mode_become_prompts(qwen3, draw_problem, mode):
    encoded = io.BytesIO()
    Image.new(mode, (64, 32), 1).save(encoded, "PNG")
    problem = dataclasses.replace(draw_problem("p", (64, 32)), images=(encoded.getvalue(),))
    original, _ = PromptEncoder(qwen3, data(), ViewConfig()).both(problem)
    assert original.image_inputs["image_grid_thw"].tolist() == [[1, 4, 8]]


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu():
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("float32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_a_config_error(name):
    with pytest.raises(ConfigError, match=f"training.device is '{name}'.*use auto or cpu"):
        pick_device(name)
