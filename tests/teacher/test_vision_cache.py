from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from vaopd.config import DataConfig, ViewConfig, parse_config
from vaopd.errors import ConfigError
from vaopd.models.families.generic import GenericFamily
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.local import LocalTeacher, TeacherScores, load_teacher
from vaopd.teacher.vision_cache import VisionCache, cache_vision

CPU = torch.device("cpu")
Pairs = list[tuple[EncodedPrompt, EncodedPrompt]]


def teacher(share_prefix: bool = True) -> LocalTeacher:
    model = load_model(
        "tiny:teacher-s", device=CPU, dtype=torch.float32, compute_dtype=torch.float32
    )
    return LocalTeacher(model, batch_tokens=250, share_prefix=share_prefix)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    data = DataConfig(train="drawn:train", min_pixels=1)
    encoder = PromptEncoder(teacher().model, data, ViewConfig())
    return [encoder.both(problem) for problem in DrawnProblems(num_problems=5)]


def epochs(scorer: LocalTeacher, pairs: Pairs) -> Iterator[TeacherScores]:
    """Score the problems in another order and with other responses each time."""
    for epoch, order in enumerate(([0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [2, 4, 0, 3, 1])):
        generator = torch.Generator().manual_seed(epoch)
        responses = [
            [torch.randint(10, 600, (5 + i,), generator=generator) for _ in range(2)] for i in order
        ]
        originals, degraded = zip(*(pairs[i] for i in order), strict=True)
        yield scorer.score(originals, degraded, responses)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("megabytes", [100, 0.06])
def test_scores_are_the_same_to_the_bit_with_the_cache(pairs, share_prefix, megabytes):
    plain, remembering = teacher(share_prefix), teacher(share_prefix)
    cache_vision(remembering.model, int(megabytes * 10**6))
    compared = 0
    for one, two in zip(epochs(plain, pairs), epochs(remembering, pairs), strict=True):
        for name in ("hidden", "original_logprobs", "degraded_logprobs"):
            for left, right in zip(getattr(one, name), getattr(two, name), strict=True):
                assert left.equal(right)
                compared += 1
    assert compared == 3 * 3 * 10


def test_each_image_and_view_goes_through_the_tower_once(pairs):
    scorer = teacher(share_prefix=False)
    tower, encoded = scorer.model.base.visual, []
    inner = tower.forward
    tower.forward = lambda pixels, grid_thw, **rest: (
        encoded.append(len(grid_thw)) or inner(pixels, grid_thw=grid_thw, **rest)
    )
    cache = cache_vision(scorer.model, 10**8)
    assert len(list(epochs(scorer, pairs))) == 3
    # Two views of five images, though every sibling's row holds its image again.
    assert sum(encoded) == cache.misses == 10
    assert cache.hits == 3 * 2 * 5 * 2 - 10


def test_the_bound_holds_and_what_was_used_last_stays(pairs):
    scorer = teacher()
    whole = cache_vision(scorer.model, 10**8)
    tower = scorer.model.base.visual
    originals = [original.image_inputs for original, _ in pairs]

    def see(number: int) -> None:
        inputs = originals[number]
        tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])

    with torch.no_grad():
        see(0)
        size = whole.num_bytes
        assert size == sum(part.nbytes for part in next(iter(whole.entries.values())))
        plain = SimpleNamespace(forward=whole.encode, spatial_merge_size=2)
        tower.forward = cache = VisionCache(plain, 3 * size)
        for number in (0, 1, 2, 0, 3):  # 3 pushes out 1, since 0 was used again
            see(number)
            assert cache.num_bytes <= 3 * size
        misses = cache.misses
        for number in (0, 2, 3):
            see(number)
        assert cache.misses == misses == 4
        see(1)
        assert cache.misses == 5


def test_a_changed_pixel_is_another_image(pairs):
    scorer = teacher()
    cache = cache_vision(scorer.model, 10**8)
    inputs = pairs[0][0].image_inputs
    pixels = inputs["pixel_values"].clone()
    with torch.no_grad():
        for _ in range(2):
            scorer.model.base.visual(pixels, grid_thw=inputs["image_grid_thw"])
            pixels[0, 0] += 1e-3
    assert (cache.misses, cache.hits) == (2, 0)


def test_the_key_turns_it_on_and_it_is_off_by_default(pairs):
    values = {"student": {"model": "tiny:student"}, "data": {"train": "drawn:train"}}
    config = parse_config(values | {"teacher": {"model": "tiny:teacher-s"}})
    assert not isinstance(load_teacher(config, CPU).model.base.visual.forward, VisionCache)
    on = {"model": "tiny:teacher-s", "cache_vision_mb": 3}
    cache = load_teacher(parse_config(values | {"teacher": on}), CPU).model.base.visual.forward
    assert isinstance(cache, VisionCache)
    assert cache.max_bytes == 3_000_000


def test_a_family_without_a_known_tower_is_named():
    model = teacher().model
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(to_dict=dict), tokenizer=model.tokenizer
    )
    family = GenericFamily(processor)
    other = VisionLanguageModel(model.model, model.tokenizer, family, name="some/other")
    with pytest.raises(ConfigError, match="some/other is not a Qwen-VL"):
        cache_vision(other, 10)
