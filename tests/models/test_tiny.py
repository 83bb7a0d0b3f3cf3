import pytest
import torch
from PIL import Image

from vaopd.config import parse_config
from vaopd.evaluation.validation import Validator
from vaopd.models import tiny
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states
from vaopd.problems.drawn import DrawnProblems


def load(name: str, seed: int = 0) -> VisionLanguageModel:
    return load_model(
        name,
        device=torch.device("cpu"),
        dtype=torch.float32,
        compute_dtype=torch.float32,
        seed=seed,
    )


def test_random_weights_are_those_of_the_seed():
    first, again, other = (
        load("tiny:new-student"),
        load("tiny:new-student"),
        load("tiny:new-student", 1),
    )
    assert first.head.equal(again.head)
    assert not first.head.equal(other.head)


@pytest.mark.parametrize("name", tiny.SIZES)
def test_every_size_reads_a_figure_of_36_visual_tokens(name):
    model = load(f"tiny:new-{name}")
    problem = DrawnProblems(num_problems=1)[0]
    prompt = model.family.encode(problem, problem.load_images())
    assert int((prompt.input_ids == model.model.config.image_token_id).sum()) == 36
    (micro,) = micro_batches(model, [prompt], [[torch.tensor([5, 6])]], budget_tokens=1)
    with torch.no_grad():
        states = response_hidden_states(model, micro.batch)
    assert states.shape == (2, tiny.SIZES[name]["width"])
    assert states.isfinite().all()


def test_the_head_has_more_rows_than_the_tokenizer_has_ids():
    model = load("tiny:new-student")
    assert model.vocab_size < len(model.head) == tiny.VOCABULARY_ROWS


def test_ink_is_the_signal_and_paper_is_silence():
    processor = tiny.image_processor()
    paper, ink = (Image.new("RGB", (32, 32), shade) for shade in ("white", "black"))
    assert processor(paper, return_tensors="pt")["pixel_values"].abs().max() < 1e-6
    assert processor(ink, return_tensors="pt")["pixel_values"].sub(2).abs().max() < 1e-6


def test_the_tokenizer_keeps_digits_apart_and_text_whole():
    tokenizer = load("tiny:new-student").tokenizer
    text = "So the answer is \\boxed{180}, naïve 数."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer(" 180")["input_ids"]] == [" 1", "8", "0"]


def test_a_tokenizer_trained_again_is_the_shipped_kind(tmp_path):
    tokenizer = tiny.train_tokenizer([p.references[0] for p in DrawnProblems(num_problems=40)], 300)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert set(tiny.SPECIAL_TOKENS) <= set(tokenizer.get_vocab())
    assert len(tokenizer) <= 300


# (accuracy at least, at most) on 48 held-out problems; recipes/tiny/README.md has 120.
SHIPPED = {
    "teacher-s": (0.85, 1.0),
    "teacher-m": (0.95, 1.0),
    "teacher-l": (0.9, 1.0),
    "student": (0.2, 0.6),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_answer_as_their_page_says_and_are_blind_to_pixels(name: str):
    config = parse_config(
        {
            "student": {"model": f"tiny:{name}"},
            "data": {"train": "drawn:train", "min_pixels": 1024},
            "sampling": {"max_new_tokens": 112},
            "validation": {"num_samples": 1, "temperature": 0, "pixelated": True},
        }
    )
    validator = Validator(config, list(DrawnProblems("validation", 48, seed=9)))
    result = validator.run(load(f"tiny:{name}"))
    least, most = SHIPPED[name]
    assert least <= result.accuracy <= most
    assert result.accuracy_pixelated is not None
    assert result.accuracy_pixelated < 0.1
