import io
import tracemalloc

import pytest
from PIL import Image

from vaopd.config import DataConfig, ViewConfig
from vaopd.errors import ProblemError
from vaopd.models.families import PromptSize
from vaopd.models.measuring import AT_ONCE, measure
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.problem import Problem

SIZES = [
    ((64, 32),),
    ((64, 32), (48, 48)),
    ((33, 57),),
    ((200, 12),),
    ((16, 16), (16, 16), (100, 90)),
]


def data(**options) -> DataConfig:
    values = {"train": "drawn:train", "min_pixels": 1500, "max_pixels": 5000}
    return DataConfig.model_validate(values | options)


def problems_of(draw_problem) -> list[Problem]:
    texts = ["Find x.", "Compare <think>both</think>.", "", "1 + 1 = ?", "Why? " * 20]
    pairs = enumerate(zip(SIZES, texts, strict=True))
    return [draw_problem(f"p{n}", *sizes, text=text) for n, (sizes, text) in pairs]


def assert_measured_as_encoded(model: VisionLanguageModel, problems: list[Problem]) -> None:
    encoder = PromptEncoder(model, data(), ViewConfig())
    measured, bad = measure(problems, model.family, data())
    assert bad == []
    encoded = [encoder.original(problem) for problem in problems]
    assert [one.prompt.tokens for one in measured] == [len(prompt) for prompt in encoded]
    assert [list(one.fitted) for one in measured] == [
        [image.size for image in prompt.images] for prompt in encoded
    ]
    assert [list(one.stored) for one in measured] == [p.image_sizes() for p in problems]
    # Some are scaled up, some down, some not at all.
    pairs = [pair for one in measured for pair in zip(one.stored, one.fitted, strict=True)]
    assert {(a[0] < b[0]) - (a[0] > b[0]) for a, b in pairs} == {-1, 0, 1}


def test_prompts_are_measured_as_long_as_they_are_encoded(qwen, draw_problem):
    assert_measured_as_encoded(qwen, problems_of(draw_problem))


def test_prompts_of_a_family_without_arithmetic_are_measured_as_encoded(idefics, draw_problem):
    assert_measured_as_encoded(idefics, problems_of(draw_problem))


def test_visual_tokens_are_counted_apart(qwen3, draw_problem):
    problem = draw_problem("p", (64, 32), (48, 48))
    (measured,), _ = measure([problem], qwen3.family, data(min_pixels=1))
    # Merged patches are 16 pixels a side: 4 x 2 and 3 x 3 of them.
    assert measured.prompt.visual_tokens == 8 + 9


def test_a_family_without_arithmetic_encodes_each_size_once(idefics, draw_problem, monkeypatch):
    encoded: list[str] = []
    encode = idefics.family.encode

    def counted(problem, images):
        encoded.append(problem.id)
        return encode(problem, images)

    monkeypatch.setattr(idefics.family, "encode", counted)
    names = [("a", (61, 47)), ("b", (61, 47)), ("c", (47, 61)), ("d", (61, 47))]
    problems = [draw_problem(name, size, text=name * 9) for name, size in names]
    measure(problems, idefics.family, data())
    assert encoded == ["a", "c"]


def test_prompts_that_cannot_be_used_are_all_found(qwen3, draw_problem):
    cut = draw_problem("cut", (64, 32))
    no_image = Problem("cut", cut.prompt, (cut.images[0][:10],), None, "test", "train")
    strip = io.BytesIO()
    Image.new("RGB", (4000, 10)).save(strip, "PNG")
    problems = [
        draw_problem("good", (64, 32)),
        draw_problem("long", (64, 32), text="long " * 99),
        no_image,
        draw_problem("other", (48, 48)),
        Problem("strip", "<image>", (strip.getvalue(),), None, "test", "train"),
        draw_problem("literal", (32, 32), text="What is <|image_pad|>?"),
    ]
    measured, bad = measure(problems, qwen3.family, data(min_pixels=1, max_prompt_tokens=99))
    assert len(measured) == 2
    reasons = {row.id: row.reason for row in bad}
    assert reasons.keys() == {"long", "cut", "strip", "literal"}
    for name, words in [
        ("long", "tokens, over data.max_prompt_tokens=99"),
        ("cut", "image 1 of problem cut cannot be decoded"),
        ("strip", "the image processor refuses an image"),
        ("literal", "has the control token <|image_pad|> in its prompt; remove"),
    ]:
        assert words in reasons[name]


def test_a_prompt_of_megabytes_is_refused_without_being_tokenized(qwen3, draw_problem):
    long = draw_problem("p", (64, 32), text="word " * 1_000_000)
    tracemalloc.start()
    _, (bad,) = measure([long], qwen3.family, data(max_prompt_tokens=100))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert (
        "has a prompt of 5000010 characters, over the 3200 that may fit data.max_pro" in bad.reason
    )
    with pytest.raises(ProblemError, match="over the 3200 that may fit"):
        PromptEncoder(qwen3, data(max_prompt_tokens=100), ViewConfig()).original(long)


def test_a_prompt_of_as_many_characters_as_may_fit_is_tokenized(qwen3, draw_problem):
    text = " " * (3200 - len(draw_problem("p", (64, 32), text="").prompt))
    limited = data(max_prompt_tokens=100)
    _, (bad,) = measure([draw_problem("p", (64, 32), text=text)], qwen3.family, limited)
    assert "tokens, over data.max_prompt_tokens=100" in bad.reason


@pytest.mark.parametrize("spare", [0, -1])
def test_the_limit_itself_is_not_over_the_limit(qwen3, draw_problem, spare: int):
    problem = draw_problem("p", (64, 32))
    length = len(PromptEncoder(qwen3, data(), ViewConfig()).original(problem))
    limited = data(max_prompt_tokens=length + spare)
    assert [row.id for row in measure([problem], qwen3.family, limited)[1]] == ["p"] * -spare


def test_many_problems_are_measured_in_their_order_with_progress(qwen3, draw_problem):
    some = [draw_problem("a", (64, 32)), draw_problem("b", (48, 48), text="Which one is it?")]
    sizes = [one.prompt for one in measure(some, qwen3.family, data())[0]]
    seen: list[int] = []
    measured, _ = measure(some * AT_ONCE, qwen3.family, data(), seen.append)
    assert isinstance(sizes[0], PromptSize) and sizes[0] != sizes[1]
    assert [one.prompt for one in measured] == sizes * AT_ONCE
    assert seen == [AT_ONCE, AT_ONCE]
