import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from vaopd.errors import ModelError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts import cache
from vaopd.rollouts.drawing import draw_tokens
from vaopd.rollouts.sampler import Rollout, SamplingSettings, sampling_noise
from vaopd.rollouts.transformers import TransformersSampler, cache_argument

DRAWN = SamplingSettings(
    num_rollouts=3, temperature=0.8, top_p=0.95, max_new_tokens=12, seed=3, stream="step 1"
)
GREEDY = dataclasses.replace(DRAWN, temperature=0.0, top_p=1.0)


@pytest.fixture(scope="module")
def prompts(model) -> list[EncodedPrompt]:
    problems = DrawnProblems(num_problems=4, kinds=("bars", "triangle", "circle"))
    images = [problem.load_images()[0] for problem in problems]
    sizes = [(96, 96), (64, 32), (48, 48), (32, 64)]
    return [
        model.family.encode(problem, [image.resize(size)])
        for problem, image, size in zip(problems, images, sizes, strict=True)
    ]


def tokens(groups: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.response_ids for rollout in group] for group in groups]


def packed_logits(
    model: VisionLanguageModel, prompts: list[EncodedPrompt], groups: list[list[Rollout]]
) -> dict[int, torch.Tensor]:
    """Return the logits that predict each rollout's tokens, from the packed forward."""
    responses = [[torch.tensor(ids) for ids in group] for group in tokens(groups)]
    lengths = [len(response) for group in responses for response in group]
    found = {}
    with torch.no_grad():
        for micro in micro_batches(model, prompts, responses, budget_tokens=10_000):
            logits = response_hidden_states(model, micro.batch) @ model.head.T
            found |= dict(split_by_rollout(logits, micro, lengths))
    return found


def test_rollouts_come_in_the_order_of_prompts_and_siblings(model, prompts):
    groups = TransformersSampler(model).sample(prompts, DRAWN)
    assert [[(r.problem_id, r.sibling) for r in group] for group in groups] == [
        [(prompt.problem_id, k) for k in range(3)] for prompt in prompts
    ]


def test_drawn_tokens_are_those_of_the_packed_forward(model, prompts):
    sampler = TransformersSampler(model)
    groups = sampler.sample(prompts, DRAWN)
    flat = [rollout for group in groups for rollout in group]
    logits = packed_logits(model, prompts, groups)
    for number, rollout in enumerate(flat):
        scores = logits[number].masked_fill(sampler.suppressed, -torch.inf)
        noise = torch.from_numpy(sampling_noise(DRAWN, rollout.problem_id, rollout.sibling))
        expected = draw_tokens(scores, noise[: len(scores)], 0.8, 0.95)
        assert expected.tolist() == list(rollout.response_ids)
    assert len({rollout.response_ids for rollout in flat}) > 6


def test_greedy_tokens_are_the_most_likely_of_the_packed_forward(model, prompts):
    sampler = TransformersSampler(model)
    groups = sampler.sample(prompts, GREEDY)
    for number, logits in packed_logits(model, prompts, groups).items():
        best = logits.masked_fill(sampler.suppressed, -torch.inf).argmax(-1)
        assert best.tolist() == list(groups[number // 3][number % 3].response_ids)
    assert len(set(tokens(groups)[0])) == 1


def test_greedy_tokens_are_those_of_the_models_own_generation(model, prompts):
    sampler = TransformersSampler(model)
    for prompt, group in zip(prompts, sampler.sample(prompts, GREEDY), strict=True):
        generated = model.model.generate(
            input_ids=prompt.input_ids[None],
            attention_mask=torch.ones_like(prompt.input_ids[None]),
            mm_token_type_ids=(prompt.input_ids == model.model.config.image_token_id).int()[None],
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=model.tokenizer.pad_token_id,
            eos_token_id=model.eos_token_ids,
            suppress_tokens=sampler.suppressed.nonzero()[:, 0].tolist(),
            **prompt.image_inputs,
        )
        assert generated[0, len(prompt) :].tolist() == list(group[0].response_ids)


def test_the_name_of_the_cache_argument_is_that_of_the_forward():
    def newer(input_ids, cache=None, **kwargs): ...
    def older(input_ids, past_key_values=None, **kwargs): ...

    assert (cache_argument(newer), cache_argument(older)) == ("cache", "past_key_values")


def test_a_forward_without_a_known_cache_argument_is_refused():
    def forward(input_ids, memory=None, **kwargs): ...

    with pytest.raises(ModelError, match="'cache' or 'past_key_values'"):
        cache_argument(forward)


def test_a_forward_that_ignores_the_cache_is_an_error_and_not_other_text(model, prompts):
    # The forward accepts any keyword, so a renamed argument would be lost without an error.
    sampler = TransformersSampler(model)
    sampler.cache_argument = "an_argument_that_nothing_reads"
    with pytest.raises(ModelError, match="holds 0 tokens after a forward"):
        sampler.sample(prompts, DRAWN)


def test_the_first_end_is_kept_and_nothing_after_it(model, prompts):
    rollouts = [r for group in TransformersSampler(model).sample(prompts, DRAWN) for r in group]
    ends = set(model.eos_token_ids)
    reasons = Counter(rollout.finish_reason for rollout in rollouts)
    assert reasons["stop"] > 2
    assert reasons["length"] > 0
    for rollout in rollouts:
        assert not ends & set(rollout.response_ids[:-1])
        if rollout.finish_reason == "stop":
            assert rollout.response_ids[-1] in ends
        else:
            assert len(rollout.response_ids) == 12
            assert rollout.response_ids[-1] not in ends


@pytest.mark.parametrize("every", [2, 5, 16])
def test_looking_for_ends_seldom_gives_the_same_responses(model, prompts, every):
    often, seldom = TransformersSampler(model), TransformersSampler(model)
    assert often.check_every == 1
    seldom.check_every = every
    wanted, found = (sampler.sample(prompts, DRAWN) for sampler in (often, seldom))
    assert tokens(found) == tokens(wanted)
    reasons, same = (
        [rollout.finish_reason for group in groups for rollout in group]
        for groups in (wanted, found)
    )
    assert same == reasons
    assert {*reasons} == {"stop", "length"}


def test_an_end_in_the_last_position_is_a_stop(model, prompts):
    longer = TransformersSampler(model).sample(prompts, DRAWN)
    stopped = next(r for g in longer for r in g if 1 < len(r.response_ids) < 12)
    shorter = dataclasses.replace(DRAWN, max_new_tokens=len(stopped.response_ids))
    again = TransformersSampler(model).sample(prompts, shorter)
    same = next(
        r
        for group in again
        for r in group
        if (r.problem_id, r.sibling) == (stopped.problem_id, stopped.sibling)
    )
    assert (same.response_ids, same.finish_reason) == (stopped.response_ids, "stop")


def test_a_shorter_limit_cuts_the_same_responses(model, prompts):
    sampler = TransformersSampler(model)
    long = tokens(sampler.sample(prompts, DRAWN))
    short = tokens(sampler.sample(prompts, dataclasses.replace(DRAWN, max_new_tokens=3)))
    assert short == [[ids[:3] for ids in group] for group in long]


def test_one_token_may_be_the_limit(model, prompts):
    sampler = TransformersSampler(model)
    groups = sampler.sample(prompts, dataclasses.replace(DRAWN, max_new_tokens=1))
    assert {len(ids) for group in tokens(groups) for ids in group} == {1}


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_draws_do_not_depend_on_the_size_of_the_batch(model, prompts, batch_tokens):
    expected = tokens(TransformersSampler(model).sample(prompts, DRAWN))
    assert tokens(TransformersSampler(model, batch_tokens=batch_tokens).sample(prompts, DRAWN)) == (
        expected
    )


def test_draws_do_not_depend_on_other_problems_or_on_their_order(model, prompts):
    sampler = TransformersSampler(model)
    expected = tokens(sampler.sample(prompts, DRAWN))
    assert tokens(sampler.sample(prompts[::-1], DRAWN)) == expected[::-1]
    assert tokens(sampler.sample(prompts[2:3], DRAWN)) == expected[2:3]


def test_more_siblings_leave_the_first_ones_as_they_are(model, prompts):
    sampler = TransformersSampler(model)
    few = tokens(sampler.sample(prompts[:1], dataclasses.replace(DRAWN, num_rollouts=2)))
    assert few[0] == tokens(sampler.sample(prompts[:1], DRAWN))[0][:2]


@pytest.mark.parametrize("change", [{"seed": 4}, {"stream": "step 2"}])
def test_another_seed_or_step_draws_other_tokens(model, prompts, change):
    sampler = TransformersSampler(model)
    before = tokens(sampler.sample(prompts, DRAWN))
    assert before == tokens(sampler.sample(prompts, DRAWN))
    assert before != tokens(sampler.sample(prompts, dataclasses.replace(DRAWN, **change)))


def test_the_prompt_is_prefilled_once_and_finished_rows_leave(model, prompts):
    shapes, images = [], []
    hooks = [
        model.base.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        ),
        model.base.visual.register_forward_pre_hook(
            lambda _, args, kwargs: images.append(len(kwargs["grid_thw"])), with_kwargs=True
        ),
    ]
    progress = []
    groups = TransformersSampler(model).sample(prompts, DRAWN, progress.append)
    for hook in hooks:
        hook.remove()
    assert images == [4]
    assert progress == [12]
    assert shapes[0] == (4, max(len(prompt) for prompt in prompts))
    # A response of n tokens needs n - 1 decoding steps after the prefill.
    lengths = [len(rollout.response_ids) for group in groups for rollout in group]
    expected = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert shapes[1:] == [(rows, 1) for rows in expected]
    assert any(later < earlier for earlier, later in pairwise(expected))


def test_long_responses_move_the_cache_seldom_and_change_nothing(model, prompts, monkeypatch):
    settings = dataclasses.replace(DRAWN, max_new_tokens=90)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", 600)
    expected = tokens(TransformersSampler(model).sample(prompts, settings))
    lengths = {len(ids) for group in expected for ids in group}
    assert max(lengths) == 90
    sizes = []

    class Watched(cache.RoomyLayer):
        def update(self, *given, **options):
            before = self.room
            result = super().update(*given, **options)
            if self.room is not None and self.room is not before:
                sizes.extend(part.shape[-2] for part in self.room)
            return result

    monkeypatch.setattr(cache, "RoomyLayer", Watched)
    assert tokens(TransformersSampler(model).sample(prompts, settings)) == expected
    longest = max(len(prompt) for prompt in prompts)
    assert max(sizes) == longest + 90  # never beyond the longest row there can be
    # Keys and values of each layer move when room runs out, twice, and when rows have left.
    layers = model.model.config.text_config.num_hidden_layers
    assert len(sizes) <= 2 * layers * (2 + len(lengths))
    monkeypatch.setattr(cache, "RoomyLayer", lambda limit: DynamicLayer())
    assert tokens(TransformersSampler(model).sample(prompts, settings)) == expected


def test_placeholders_and_padding_rows_are_never_drawn_even_when_most_likely(model, prompts):
    config = model.model.config
    bad = [config.image_token_id, config.video_token_id, model.vocab_size, len(model.head) - 1]
    before = model.head.detach().clone()
    inputs = model.family.prefill_inputs(prompts[:1])
    with torch.no_grad():
        hidden = model.base(**inputs).last_hidden_state[0, -1]
        model.head[bad] = hidden * 5
        assert int((model.head @ hidden).argmax()) in bad
        drawn = dataclasses.replace(DRAWN, temperature=5.0, top_p=1.0, num_rollouts=40)
        sampler = TransformersSampler(model)
        groups = sampler.sample(prompts, drawn) + sampler.sample(prompts, GREEDY)
        model.head.copy_(before)
    ids = {i for group in tokens(groups) for response in group for i in response}
    assert len(ids) > 300
    assert not ids & ({*bad, *model.forbidden_ids} | set(range(model.vocab_size, 672)))


def test_sampling_leaves_the_mode_of_the_model_as_it_was(model, prompts):
    for training in (True, False):
        model.model.train(training)
        rollouts = TransformersSampler(model).sample(prompts[:1], DRAWN)
        assert model.model.training is training
        assert all(weight.grad is None for weight in model.model.parameters())
        assert len(rollouts) == 1


def test_a_bfloat16_student_samples(model, prompts):
    cpu = torch.device("cpu")
    half = load_model(
        "tiny:new-student", device=cpu, dtype=torch.float32, compute_dtype=torch.bfloat16
    )
    half.model.load_state_dict(model.model.state_dict())
    groups = TransformersSampler(half).sample(prompts, DRAWN)
    assert len({ids for group in tokens(groups) for ids in group}) > 6


def test_noise_is_a_function_of_seed_stream_problem_sibling_and_position():
    base = sampling_noise(DRAWN, "a", 0)
    longer = sampling_noise(dataclasses.replace(DRAWN, max_new_tokens=20), "a", 0)
    assert np.array_equal(base, longer[:12])
    assert np.array_equal(base, sampling_noise(GREEDY, "a", 0))
    others = [
        sampling_noise(DRAWN, "a", 1),
        sampling_noise(DRAWN, "b", 0),
        sampling_noise(dataclasses.replace(DRAWN, seed=4), "a", 0),
        sampling_noise(dataclasses.replace(DRAWN, stream="step 2"), "a", 0),
    ]
    assert len({noise.tobytes() for noise in [base, *others]}) == 5


def test_noise_is_uniform():
    many = dataclasses.replace(DRAWN, max_new_tokens=100)
    noise = np.sort(np.concatenate([sampling_noise(many, f"p{n}", 0) for n in range(100)]))
    # The largest gap to the uniform distribution; 1.95 / sqrt(10000) is exceeded once in 1000.
    assert np.abs(noise - (np.arange(10_000) + 0.5) / 10_000).max() < 0.0195


def nucleus(logits: list[float], temperature: float, top_p: float) -> list[tuple[int, float]]:
    """Return ids and probabilities of the nucleus, most likely first, in plain Python."""
    weights = np.exp((np.array(logits) - max(logits)) / temperature)
    probabilities = weights / weights.sum()
    kept: list[tuple[int, float]] = []
    for i in sorted(range(len(logits)), key=lambda i: -logits[i]):
        if sum(p for _, p in kept) >= top_p:
            break
        kept.append((i, float(probabilities[i])))
    total = sum(p for _, p in kept)
    return [(i, p / total) for i, p in kept]


def draw(logits: list[float], uniforms: list[float], temperature=1.0, top_p=1.0) -> list[int]:
    rows = torch.tensor([logits]).expand(len(uniforms), -1)
    noise = torch.tensor(uniforms, dtype=torch.float64)
    return draw_tokens(rows, noise, float(temperature), float(top_p)).tolist()


HALF_QUARTER_EIGHTHS = [-3 * np.log(2), -np.log(2), -3 * np.log(2), -2 * np.log(2)]
"""Probabilities 1/8, 1/2, 1/8, 1/4."""


def test_a_uniform_number_inverts_the_cumulative_distribution():
    # Most likely first: id 1 up to 1/2, id 3 up to 3/4, then ids 0 and 2.
    uniforms = [0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.999]
    assert draw(HALF_QUARTER_EIGHTHS, uniforms) == [1, 1, 3, 3, 0, 0, 2, 2]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    # 0.7 needs ids 1 and 3, together 3/4: id 1 gets the first two thirds.
    assert draw(HALF_QUARTER_EIGHTHS, [0.0, 0.66, 0.67, 0.999], top_p=0.7) == [1, 1, 3, 3]
    assert draw(HALF_QUARTER_EIGHTHS, [0.0, 0.999], top_p=0.4) == [1, 1]


def test_temperature_scales_the_logits_before_the_nucleus_is_cut():
    # At temperature 1/2 the odds are squared, 16 : 4 : 1 : 1, so id 1 has 8/11.
    assert draw(HALF_QUARTER_EIGHTHS, [0.72, 0.73], temperature=0.5) == [1, 3]
    assert draw(HALF_QUARTER_EIGHTHS, [0.999], temperature=0.5, top_p=0.7) == [1]


def test_temperature_0_takes_the_most_likely_id():
    assert draw([0.0, 1.0, 0.999], [0.0, 0.5, 0.999], temperature=0) == [1, 1, 1]


def test_what_is_impossible_is_not_drawn_by_the_largest_uniform_number():
    largest = float(np.nextafter(1.0, 0.0))
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((500, 64), -torch.inf)
    logits[:, 20:51] = torch.randn(500, 31, generator=generator) * 3
    noise = torch.full((500,), largest, dtype=torch.float64)
    drawn = draw_tokens(logits, noise, 1.0, 1.0)
    assert ((drawn >= 20) & (drawn <= 50)).all()


def test_equal_logits_are_drawn_in_the_order_of_ids():
    logits = [0.0] * 64
    uniforms = [(i + 0.5) / 64 for i in range(64)]
    assert draw(logits, uniforms) == list(range(64))


@pytest.mark.parametrize("top_p", [0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_leaving_out_unlikely_ids_draws_what_a_full_sort_draws(top_p, spread):
    generator = torch.Generator().manual_seed(0)
    # Multiples of 1/8, as bfloat16 gives: many ids are equally likely.
    logits = (torch.randn(300, 2000, generator=generator) * spread * 8).round() / 8
    logits[:, ::7] = -torch.inf
    uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
    probabilities, ids = (
        (logits.double() / 0.7).softmax(-1).sort(dim=-1, descending=True, stable=True)
    )
    cumulative = probabilities.cumsum(-1)
    inside = ((cumulative - probabilities) < top_p) & (probabilities > 0)
    chosen = (cumulative <= uniforms[:, None] * (probabilities * inside).sum(-1, True)).sum(-1)
    expected = ids.gather(-1, chosen.minimum(inside.sum(-1) - 1)[:, None])[:, 0]
    assert draw_tokens(logits, uniforms, 0.7, top_p).equal(expected)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(
        st.floats(-6, 6, width=32), min_size=1, max_size=8, unique_by=lambda x: round(x, 2)
    ),
    temperature=st.floats(0.3, 3),
    top_p=st.floats(0.05, 1),
)
def test_frequencies_over_even_noise_are_the_probabilities_of_the_nucleus(
    logits, temperature, top_p
):
    uniforms = [(i + 0.5) / 1000 for i in range(1000)]
    counts = Counter(draw(logits, uniforms, temperature, top_p))
    expected = nucleus(logits, temperature, top_p)
    # A mass that equals top_p up to rounding may or may not take in one more id.
    if all(abs(nucleus_mass - top_p) > 1e-6 for nucleus_mass in masses(logits, temperature)):
        assert set(counts) <= {i for i, _ in expected}
        for i, probability in expected:
            assert abs(counts[i] / 1000 - probability) <= 1.001e-3


def masses(logits: list[float], temperature: float) -> list[float]:
    return list(np.cumsum([p for _, p in nucleus(logits, temperature, 2.0)])[:-1])
