import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaopd.errors import AlignmentError, ConfigError
from vaopd.objective.advantage import rollout_advantage
from vaopd.objective.weights import (
    high_group,
    rollout_weights,
    token_weights,
    uniform_token_weights,
    without_tokens,
)


def padded(rows: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows as a tensor, NaN where there is no token, and the mask."""
    width = max(len(row) for row in rows)
    filled = [row + [math.nan] * (width - len(row)) for row in rows]
    advantage = torch.tensor(filled, dtype=torch.float64).reshape(len(rows), width)
    return advantage, ~advantage.isnan()


def weights_of_means(means: list[float], **options) -> list[float]:
    """Return the rollout weights of one problem whose rollouts have one token each."""
    advantage, mask = padded([[mean] for mean in means])
    return rollout_weights(advantage, mask, [0] * len(means), **options).tolist()


def both(rows: list[list[float]], problems: list, **options) -> torch.Tensor:
    advantage, mask = padded(rows)
    return token_weights(advantage, mask, rollout_weights(advantage, mask, problems), **options)


def close(actual, expected, tolerance=1e-6):
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance, check_dtype=False
    )


# --- rollout weights -----------------------------------------------------------------------


def test_the_paper_example_needs_the_population_standard_deviation():
    # Mean .02625, population std .0129301, z = (1.44999, .29, -.48333, -1.25666); exp(z) =
    # (4.2631, 1.3364, .61672, .2846) over 6.5008. The sample std would give (.606, .222, ..).
    expected = [0.655774, 0.205577, 0.094869, 0.043779]
    close(weights_of_means([0.045, 0.030, 0.020, 0.010]), expected)


def test_one_outlier_among_siblings_has_a_bounded_weight():
    # z of one above K-1 equals is sqrt(K-1) against -1/sqrt(K-1); weight e^a / (e^a + (K-1) e^b).
    # K=4: e^1.7321 / (e^1.7321 + 3 e^-.57735) = 5.6522 / (5.6522 + 1.6842) = .7704.
    expected = {2: 0.8808, 4: 0.7704, 8: 0.7461, 16: 0.8058}
    for size, weight in expected.items():
        assert weights_of_means([1e3] + [0.0] * (size - 1))[0] == pytest.approx(weight, abs=5e-5)
    # The mirror image: e^-1.7321 / (e^-1.7321 + 3 e^.57735) = .17692 / 5.5206 = .0320.
    assert weights_of_means([0.0, 1.0, 1.0, 1.0])[0] == pytest.approx(0.0320, abs=5e-5)


def test_epsilon_is_added_to_the_standard_deviation():
    # Means (s,0,0,0) have std .4330 s; with epsilon 1e-6 added the first weight is
    # s=1e-6: z gap = 1e-6 / 1.4330e-6 = .69783, e^.69783 / (e^.69783 + 3) = .4011.
    # Inside the root, or as a floor, it would be .4759 or .4755.
    expected = {1e-8: 0.2519, 1e-7: 0.2684, 1e-6: 0.4011, 1e-5: 0.6851, 1e-3: 0.7695}
    for size, weight in expected.items():
        assert weights_of_means([size, 0, 0, 0])[0] == pytest.approx(weight, abs=5e-5)


def test_temperature_divides_the_standardised_score():
    # K=2, means (1,0): z gap 2; at temperature 2 the weight is 1 / (1 + e^-1) = .731059.
    close(weights_of_means([1.0, 0.0], temperature=2.0), [0.731059, 0.268941])
    close(weights_of_means([1.0, 0.0], temperature=1e9), [0.5, 0.5])
    assert weights_of_means([1.0, 0.0], temperature=1e-300) == [1.0, 0.0]


def test_a_deviation_floor_keeps_noise_from_saturating():
    # Means (1e-5,0): std 5e-6. A floor of .1 makes the gap 1e-5 / .100001 = 1e-4: weight .500025.
    noise = [1e-5, 0.0]
    assert weights_of_means(noise)[0] > 0.8
    close(weights_of_means(noise, deviation_floor=0.1), [0.500025, 0.499975])
    # A floor below the deviation changes nothing.
    assert weights_of_means([1.0, 0.0], deviation_floor=0.1) == weights_of_means([1.0, 0.0])


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-200])
def test_equal_siblings_share_equally(size, value, epsilon):
    weights = weights_of_means([value] * size, epsilon=epsilon)
    assert weights == [pytest.approx(1 / size, abs=1e-15)] * size


def test_an_empty_response_leaves_its_weight_to_its_siblings():
    # Without the empty row: means (1, 0) -> z gap 2 -> (.880797, .119203).
    advantage, mask = padded([[1.0], [], [0.0]])
    weights = rollout_weights(advantage, mask, ["a", "a", "a"], epsilon=0.0)
    close(weights, [0.880797, 0.0, 0.119203])


def test_only_differences_between_responses_matter_even_beside_an_empty_one():
    # Signed scores, as in an ablation without the clip: means (-1000, -1001), z gap 2.
    advantage, mask = padded([[], [-1000.0], [-1001.0]])
    close(rollout_weights(advantage, mask, [0, 0, 0], epsilon=0.0), [0, 0.880797, 0.119203])


def test_a_problem_of_only_empty_responses_gets_no_weight():
    advantage, mask = padded([[], [1.0], []])
    assert rollout_weights(advantage, mask, [7, 8, 7]).tolist() == [0.0, 1.0, 0.0]
    tokens = token_weights(advantage, mask, torch.tensor([0.0, 1.0, 0.0]))
    assert tokens.tolist() == [[0.0], [1.0], [0.0]]


def test_a_batch_without_any_token_has_no_weight():
    advantage = torch.zeros(2, 0)
    assert rollout_weights(advantage, advantage.bool(), [0, 0]).tolist() == [0.0, 0.0]
    assert token_weights(advantage, advantage.bool(), torch.zeros(2)).shape == (2, 0)


def test_ids_may_be_numbers_names_or_a_tensor():
    advantage, mask = padded([[1.0], [5.0], [0.0], [2.0]])
    expected = rollout_weights(advantage, mask, torch.tensor([900, -3, 900, -3]))
    for ids in ([900, -3, 900, -3], ["dog", "cat", "dog", "cat"], [("a", 1), 2, ("a", 1), 2]):
        assert torch.equal(rollout_weights(advantage, mask, ids), expected)
    assert not torch.equal(rollout_weights(advantage, mask, [0, 0, 1, 1]), expected)


def test_as_many_ids_as_rollouts_are_needed():
    advantage, mask = padded([[1.0], [5.0]])
    with pytest.raises(AlignmentError, match="3 problem ids for 2 rollouts"):
        rollout_weights(advantage, mask, ["a", "a", "a"])
    with pytest.raises(AlignmentError, match="1 problem ids for 2 rollouts"):
        uniform_token_weights(mask, ["a"])


def test_a_response_token_without_advantage_is_an_error():
    advantage, mask = torch.tensor([[1.0, math.nan]]), torch.tensor([[True, True]])
    with pytest.raises(AlignmentError, match="rollout 0, response token 1"):
        rollout_weights(advantage, mask, [0])
    with pytest.raises(AlignmentError, match="rollout 0, response token 1"):
        token_weights(advantage, mask, torch.ones(1))


# --- token weights -------------------------------------------------------------------------


def test_half_of_the_weight_goes_to_the_top_fifth():
    # Two problems of one rollout. Five tokens: |H| = 1 gets .5, four others .125 each; the 99 is
    # padding. Six tokens: |H| = ceil(1.2) = 2 gets .25 each (9 and the first 1), four .125.
    advantage = torch.tensor([[9.0, 1, 1, 1, 1, 99], [9.0, 1, 1, 1, 1, 1]])
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    weights = token_weights(advantage, mask, rollout_weights(advantage, mask, ["a", "b"]))
    close(weights[0], [0.5, 0.125, 0.125, 0.125, 0.125, 0])
    close(weights[1], [0.25, 0.25, 0.125, 0.125, 0.125, 0.125])


def test_a_mask_may_have_holes():
    # Three tokens, |H| = ceil(.6) = 1: the 3 gets .5, the 1 and the 2 get .25.
    nan = math.nan
    advantage = torch.tensor([[nan, 1, nan, 3, 2]])
    mask = torch.tensor([[False, True, False, True, True]])
    close(token_weights(advantage, mask, torch.ones(1)), [[0, 0.25, 0, 0.5, 0.25]])


def test_every_problem_counts_the_same_whatever_its_length():
    # Problem a: two rows of five tokens, .5 each. Row 0: .5*10 + .5*2 = 6; row 1: .5*20 + .5*2
    # = 11; mean 8.5. Problem b: one token, 3. Mean over problems (8.5 + 3) / 2 = 5.75.
    advantage, mask = padded([[9, 1, 1, 1, 1], [1, 9, 1, 1, 1], [4]])
    kl = torch.tensor([[10.0, 2, 2, 2, 2], [2.0, 20, 2, 2, 2], [3.0, 0, 0, 0, 0]])
    weights = token_weights(advantage, mask, rollout_weights(advantage, mask, ["a", "a", "b"]))
    close((weights * kl).sum(-1), [3.0, 5.5, 3.0])
    close((weights * kl).sum() / 2, 5.75)


RAGGED = [[0, 2, 0.1, 0, 0.4, 0], [0.3, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0.5, 0]]
RAGGED_KL = [[0.1, 0.9, 0.2, 0.05, 0.4, 0.3], [0.5, 0.2, 0.1], [0.2, 0.1, 0.3, 0.4, 0.6]]
RAGGED_KL += [[0.7, 0.3, 0.2, 0.8]]


def test_ragged_responses_from_end_to_end():
    # Means 2.5/6, .1, 0, .625. With K=2 the z gap is 2, so w = 1/(1+e^-2) = .880796 and .119204
    # (epsilon takes the last digit). Row 0: |H| = 2 of 6, the 2 and the .4: .880796/4 = .220199,
    # others .880796/8 = .1101. Row 1: |H| = 1 of 3: .059602, others .0298. Row 2: .059602, 4 x
    # .0149. Row 3: |H| = 1 of 4, the earlier 1: .440398, others .1468.
    advantage, mask = padded(RAGGED)
    rollouts = rollout_weights(advantage, mask, [0, 0, 1, 1])
    close(rollout_advantage(advantage, mask), [0.416667, 0.1, 0.0, 0.625])
    close(rollouts, [0.880796, 0.119204, 0.119204, 0.880796])
    weights = token_weights(advantage, mask, rollouts)
    close(weights[0], [0.110099, 0.220199, 0.110099, 0.110099, 0.220199, 0.110099])
    close(weights[1], [0.059602, 0.029801, 0.029801, 0, 0, 0])
    close(weights[2], [0.059602, 0.0149, 0.0149, 0.0149, 0.0149, 0], 2e-6)
    close(weights[3], [0.440398, 0.146799, 0.146799, 0.146799, 0, 0])
    kl = padded(RAGGED_KL)[0].nan_to_num()
    close((weights * kl).sum() / 2, 0.464232)


def test_standard_distillation_is_the_mean_over_tokens_then_responses():
    # Row means .325, .266667, .32, .5: (.325 + .266667)/2 = .295833, (.32 + .5)/2 = .41;
    # mean over problems .352917. The mean over all 18 tokens would be 6.35/18 = .352778.
    mask = padded(RAGGED)[1]
    weights = uniform_token_weights(mask, [0, 0, 1, 1])
    kl = padded(RAGGED_KL)[0].nan_to_num()
    close((weights * kl).sum() / 2, 0.352917, 5e-7)


def test_without_advantage_the_earlier_tokens_form_the_group():
    # Ten tokens, two rows of weight .5: |H| = 2 gets .25 -> .125 each; 8 others .25 / 8 = .03125.
    weights = both([[0.0] * 10] * 2, ["a", "a"])
    close(weights, [[0.125] * 2 + [0.03125] * 8] * 2)


def test_a_high_mass_equal_to_its_share_of_tokens_is_standard_distillation():
    # lambda = |H|/T = 2/10: every token 1/20.
    weights = both([[0.0] * 10] * 2, ["a", "a"], high_mass=0.2)
    close(weights, torch.full((2, 10), 1 / 20))
    close(weights, uniform_token_weights(padded([[0.0] * 10] * 2)[1], ["a", "a"]))


def test_the_ratio_of_high_to_low_weight_follows_the_ceiling():
    # lambda = .5: the ratio is |L|/|H| = (T - ceil(T/5)) / ceil(T/5). A floor or a rounding
    # would give 5/1 at T=6 instead of 4/2.
    expected = {2: 1, 3: 2, 4: 3, 5: 4, 6: 2, 7: 2.5, 10: 4, 11: 8 / 3}
    for length, ratio in expected.items():
        weights = both([[float(length - i) for i in range(length)]], [0])[0]
        assert float(weights[0] / weights[-1]) == pytest.approx(ratio)


def test_a_response_of_one_token_gets_its_weight_on_that_token():
    close(both([[0.7]], [0]), [[1.0]])
    close(both([[0.7]], [0], high_fraction=0.0), [[1.0]])
    close(both([[0.7]], [0], high_mass=0.0), [[1.0]])


@pytest.mark.parametrize("options", [{"high_fraction": 0.0}, {"high_fraction": 1.0}])
def test_a_single_group_is_uniform(options):
    close(both([[3.0, 2.0, 1.0, 0.0]], [0], **options), [[0.25] * 4])


def test_all_or_nothing_may_go_to_the_high_group():
    close(both([[3.0, 2.0, 1.0]], [0], high_mass=1.0), [[1.0, 0.0, 0.0]])
    close(both([[3.0, 2.0, 1.0]], [0], high_mass=0.0), [[0.0, 0.5, 0.5]])


def test_little_advantage_falls_back_towards_uniform():
    # Four tokens, |H| = 1, share of tokens .25. Sum of advantage .5 of a minimum of 2: s = .25,
    # lambda = .25 * .5 + .75 * .25 = .3125, others (1 - .3125) / 3 = .229167.
    row = [[0.0, 0.5, 0.0, 0.0]]
    weights = both(row, [0], minimum_advantage=2.0)
    close(weights, [[0.229167, 0.3125, 0.229167, 0.229167]])
    close(both([[0.0] * 4], [0], minimum_advantage=2.0), [[0.25] * 4])
    close(both(row, [0], minimum_advantage=0.5), both(row, [0]))
    close(both(row, [0], minimum_advantage=0.1), both(row, [0]))


def test_results_have_the_type_of_the_advantage_and_no_gradient():
    for dtype in (torch.float32, torch.float64):
        advantage = torch.rand(2, 3, dtype=dtype, requires_grad=True)
        mask = torch.ones(2, 3, dtype=torch.bool)
        rollouts = rollout_weights(advantage, mask, [0, 0])
        tokens = token_weights(advantage, mask, rollouts.clone().requires_grad_())
        assert rollouts.dtype == tokens.dtype == dtype
        assert not rollouts.requires_grad
        assert not tokens.requires_grad


def test_a_weight_of_each_rollout_is_needed():
    with pytest.raises(Exception, match="B=2"):
        token_weights(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(1))


# --- ties ----------------------------------------------------------------------------------


def drawn(seed: int, scores: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return high_group(scores, mask, high_fraction=0.2, generator=generator)


def test_without_a_generator_the_earlier_of_equal_tokens_wins():
    mask = torch.ones(1, 100, dtype=torch.bool)
    group = high_group(torch.zeros(1, 100), mask, high_fraction=0.2)
    assert group[0].nonzero().flatten().tolist() == list(range(20))


def test_a_seed_repeats_the_order_of_ties_and_another_changes_it():
    scores = torch.zeros(3, 50)
    assert torch.equal(drawn(0, scores), drawn(0, scores))
    assert not torch.equal(drawn(0, scores), drawn(1, scores))
    assert not torch.equal(drawn(0, scores)[0], drawn(0, scores)[1])


def test_random_ties_have_no_favourite_position():
    # 2000 rows of ten equal tokens, |H| = 2: each position is chosen 400 +- 18 times (binomial,
    # n=2000, p=.2); 5 standard deviations are 90.
    counts = drawn(0, torch.zeros(2000, 10)).sum(0)
    assert int(counts.sum()) == 4000
    assert all(310 < int(count) < 490 for count in counts)


def test_random_ties_never_pass_a_larger_advantage():
    scores = torch.tensor([[0.0] * 8 + [1.0, 2.0]]).expand(50, 10)
    group = drawn(3, scores)
    assert torch.equal(group, (scores > 0))


def test_random_ties_never_choose_padding():
    mask = torch.rand(200, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    generator = torch.Generator().manual_seed(0)
    group = high_group(torch.zeros(200, 12), mask, high_fraction=0.4, generator=generator)
    assert not (group & ~mask).any()
    assert torch.equal(group.sum(-1), (mask.sum(-1) * 0.4).ceil().long())


def test_token_weights_pass_the_generator_on():
    scores, mask = torch.zeros(1, 40), torch.ones(1, 40, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    weights = token_weights(scores, mask, torch.ones(1), generator=generator)
    assert torch.equal(weights > 1 / 40, drawn(0, scores))


def test_the_group_size_is_the_exact_ceiling():
    swept = 0
    for percent in range(1, 101):
        lengths = torch.arange(1, 201)
        mask = torch.arange(200)[None] < lengths[:, None]
        group = high_group(torch.zeros(200, 200), mask, high_fraction=percent / 100)
        exact = [math.ceil(Fraction(percent, 100) * int(length)) for length in lengths]
        assert group.sum(-1).tolist() == exact
        swept += len(exact)
    assert swept == 20_000


# --- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("epsilon", -1e-6),
        ("epsilon", math.nan),
        ("deviation_floor", -0.1),
    ],
)
def test_a_bad_option_of_rollout_weights_is_named(option, value):
    with pytest.raises(ConfigError, match=rf"^{option} is {value}, expected .*; "):
        weights_of_means([1.0, 0.0], **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("high_fraction", 1.5),
        ("high_fraction", -0.1),
        ("high_fraction", math.nan),
        ("high_mass", 1.5),
        ("high_mass", -0.1),
        ("minimum_advantage", -1.0),
        ("minimum_advantage", math.inf),
    ],
)
def test_a_bad_option_of_token_weights_is_named(option, value):
    with pytest.raises(ConfigError, match=rf"^{option} is {value}, expected .*; "):
        both([[1.0, 0.0]], [0], **{option: value})


# --- properties ----------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Return ragged rows of advantage, many of them zero, and a problem for each."""
    score = st.one_of(st.just(0.0), st.floats(0, 20, width=32))
    rows = draw(st.lists(st.lists(score, max_size=9), min_size=1, max_size=8))
    problems = draw(st.lists(st.sampled_from("abc"), min_size=len(rows), max_size=len(rows)))
    return rows, problems


OPTIONS = st.fixed_dictionaries(
    {
        "high_fraction": st.floats(0, 1),
        "high_mass": st.floats(0, 1),
        "minimum_advantage": st.floats(0, 10),
    }
)


@settings(deadline=None)
@given(batches(), OPTIONS, st.none() | st.integers(0, 99))
def test_weights_sum_to_one_for_each_problem(batch, options, seed):
    rows, problems = batch
    advantage, mask = padded(rows)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    rollouts = rollout_weights(advantage, mask, problems)
    tokens = token_weights(advantage, mask, rollouts, generator=generator, **options)
    uniform = uniform_token_weights(mask, problems)
    close(tokens.sum(-1), rollouts)
    assert (tokens >= 0).all()
    assert (tokens[~mask] == 0).all()
    for problem in set(problems):
        mine = torch.tensor([name == problem for name in problems])
        expected = float(any(row for row, own in zip(rows, mine, strict=True) if own))
        close(rollouts[mine].sum(), expected)
        close(tokens[mine].sum(), expected)
        close(uniform[mine].sum(), expected)


@settings(deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(batch, random):
    rows, problems = batch
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = both([rows[i] for i in order], [problems[i] for i in order])
    close(shuffled, both(rows, problems)[order], 1e-9)


@settings(deadline=None)
@given(batches(), st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_place_of_padding_does_not_matter(batch, random, extra):
    rows, problems = batch
    mask = padded(rows)[1]
    expected = both(rows, problems)
    width = mask.shape[1] + extra
    spread = torch.full((len(rows), width), math.nan, dtype=torch.float64)
    for row, scores in zip(spread, rows, strict=True):
        places = sorted(random.sample(range(width), len(scores)))
        row[places] = torch.tensor(scores, dtype=torch.float64)
    holes = ~spread.isnan()
    weights = token_weights(spread, holes, rollout_weights(spread, holes, problems))
    close(weights[holes], expected[mask])
    uniform = uniform_token_weights(holes, problems)
    close(uniform[holes], uniform_token_weights(mask, problems)[mask])


@settings(deadline=None)
@given(batches(), st.integers(0, 8))
def test_rows_of_a_micro_batch_get_the_token_weights_of_the_whole(batch, cut):
    advantage, mask = padded(batch[0])
    rollouts = rollout_weights(advantage, mask, batch[1])
    parts = [
        token_weights(advantage[rows], mask[rows], rollouts[rows])
        for rows in (slice(None, cut), slice(cut, None))
        if len(rollouts[rows])
    ]
    assert torch.equal(torch.cat(parts), token_weights(advantage, mask, rollouts))


@settings(deadline=None)
@given(batches())
def test_equals_the_formula_written_with_lists(batch):
    rows, problems = batch
    expected = []
    for row, problem in zip(rows, problems, strict=True):
        siblings = [r for r, name in zip(rows, problems, strict=True) if name == problem and r]
        means = [math.fsum(r) / len(r) for r in siblings]
        mean = math.fsum(means) / max(1, len(means))
        std = math.sqrt(math.fsum((m - mean) ** 2 for m in means) / max(1, len(means)))
        scores = [math.exp((m - mean) / (std + 1e-6)) for m in means]
        line = [0.0] * max(len(r) for r in rows)
        if row:
            weight = scores[[r is row for r in siblings].index(True)] / math.fsum(scores)
            size = math.ceil(len(row) * 0.2)
            high = set(sorted(range(len(row)), key=lambda i: (-row[i], i))[:size])
            for i in range(len(row)):
                low = len(row) - size
                share = 0.5 / size if i in high else 0.5 / low if low else 0.0
                line[i] = weight * (share if low else 1 / size)
        expected.append(line)
    close(both(rows, problems), torch.tensor(expected).reshape(len(rows), -1))


# --- masking ----------------------------------------------------------------------------------


def test_what_is_dropped_leaves_its_weight_to_the_rest_of_its_response():
    # .2 of .5 goes, so the others grow by .5 / .3; the second response is as it was.
    weights = torch.tensor([[0.2, 0.2, 0.1], [0.25, 0.25, 0.0]])
    dropped = torch.tensor([[False, True, False], [False, False, False]])
    expected = [[1 / 3, 0, 1 / 6], [0.25, 0.25, 0]]
    close(without_tokens(weights, dropped), expected)


def test_a_response_that_would_lose_every_token_keeps_them():
    weights = torch.tensor([[0.5, 0.0], [0.25, 0.25]])
    dropped = torch.tensor([[True, False], [True, True]])
    close(without_tokens(weights, dropped), weights)


@given(seed=st.integers(0, 10**6))
def test_dropping_tokens_never_changes_the_share_of_a_response(seed: int):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(4, 6, generator=generator)
    dropped = torch.rand(4, 6, generator=generator) < 0.5
    found = without_tokens(weights, dropped)
    close(found.sum(-1), weights.sum(-1))
    kept = ~dropped | dropped.all(-1, keepdim=True)
    assert (found[kept] > 0).all()
    assert found[~kept].eq(0).all()
