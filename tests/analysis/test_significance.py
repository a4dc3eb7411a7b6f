"""Intervals and tests against scipy and a plain bootstrap, and their calibration on simulated ranks."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmark.analysis import significance
from benchmark.analysis.significance import (
    bootstrap_means,
    compare,
    holm,
    mean_intervals,
    outcomes,
    paired_t_test,
    single_run_interval,
    welch,
)
from benchmark.errors import UserError
from benchmark.evaluation.metrics import DEFAULT_METRICS, metric_values

METRICS = ("recall@10", "recall@50", "recall@200", "ndcg@10", "ndcg@50", "ndcg@200")


def simulated(generator, users, shape=(), spread=0.7, shift=0.0):
    """Ranks (*shape, users) of runs that differ by noise alone, shift apart; users differ in how hard they are."""
    difficulty = generator.normal(4, 2, users)
    noise = generator.normal(0, spread, (*shape, users))
    return np.floor(np.exp(np.maximum(difficulty + noise + shift, 0))).clip(1, 3000)


def plain_draws(ranks, reference, resamples, generator):
    """The bootstrap as it is defined, user by user: (resamples, 2m) means under both methods."""
    values = np.hstack([metric_values(ranks, METRICS), metric_values(reference, METRICS)])
    return np.stack([values[generator.integers(0, len(values), len(values))].mean(0) for _ in range(resamples)])


@pytest.fixture(scope="module")
def pair():
    ranks = simulated(np.random.default_rng(1), 3000, (2,))
    ranks[0] = np.maximum(1, ranks[0] * 0.9 // 0.5 / 2)  # better, and with ranks that end in .5
    return ranks


def test_t_test_equals_scipys(pair):
    found = compare(outcomes(pair[0], DEFAULT_METRICS), outcomes(pair[1], DEFAULT_METRICS), resamples=10)
    values, reference = (metric_values(ranks, DEFAULT_METRICS) for ranks in pair)
    expected = stats.ttest_rel(values, reference)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(found.value, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.reference, reference.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.difference, (values - reference).mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.relative, values.mean(0) / reference.mean(0) - 1, rtol=1e-9)
    assert found.improvement == pytest.approx(np.mean(values.mean(0) / reference.mean(0) - 1))
    assert found.users == 3000


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folding_to_outcomes_loses_nothing(data):
    seeds, users = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 20))
    names = data.draw(st.lists(st.sampled_from((*DEFAULT_METRICS, "recall@1", "ndcg@3")), min_size=1, unique=True))
    half = st.integers(2, 500).map(lambda n: n / 2)
    ranks = np.array(
        data.draw(st.lists(st.lists(half, min_size=users, max_size=users), min_size=seeds, max_size=seeds))
    )
    folded = outcomes(ranks, names)
    np.testing.assert_allclose(folded.values[folded.code], metric_values(ranks, names).mean(0), atol=1e-12)


def test_bootstrap_interval_equals_scipys(pair):
    few = pair[:, :500]
    found = compare(outcomes(few[0], METRICS), outcomes(few[1], METRICS), resamples=40_000)
    differences = metric_values(few[0], METRICS) - metric_values(few[1], METRICS)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", axis=0, batch=500, rng=5
    )
    error = expected.standard_error
    # A bound's Monte Carlo error is 2.7 standard errors / sqrt(resamples); five times that of both.
    tolerance = 5 * 2.7 * np.sqrt(1 / 40_000 + 1 / 20_000) * error
    assert (np.abs(found.low - expected.confidence_interval.low) < tolerance).all()
    assert (np.abs(found.high - expected.confidence_interval.high) < tolerance).all()


@pytest.mark.parametrize("cell_limit", [100_000, 500])
def test_bootstrap_equals_the_plain_one(pair, cell_limit):
    pair, resamples = pair[:, :2000], 8000
    expected = plain_draws(*pair, resamples, np.random.default_rng(11))
    method, reference = (outcomes(ranks, METRICS) for ranks in pair)
    found = compare(method, reference, resamples=40_000, cell_limit=cell_limit)
    count = len(METRICS)
    differences = expected[:, :count] - expected[:, count:]
    relative = expected[:, :count] / expected[:, count:] - 1
    for draws, low, high in (
        (differences, found.low, found.high),
        (relative, found.relative_low, found.relative_high),
        (relative.mean(1, keepdims=True), [found.improvement_low], [found.improvement_high]),
    ):
        tolerance = 5 * 2.7 * np.sqrt(1 / 40_000 + 1 / resamples) * draws.std(0)
        bounds = np.quantile(draws, [0.025, 0.975], axis=0)
        assert (np.abs(low - bounds[0]) < tolerance).all()
        assert (np.abs(high - bounds[1]) < tolerance).all()


@pytest.mark.parametrize("seeds", [1, 3])
def test_cells_keep_the_first_two_moments(seeds):
    users, resamples = 20_000, 50_000
    ranks = simulated(np.random.default_rng(2), users, (2, seeds))
    method, reference = (outcomes(one, METRICS) for one in ranks)
    codes, counts = np.unique(method.code * len(reference.values) + reference.code, return_counts=True)
    left, right = codes // len(reference.values), codes % len(reference.values)
    assert len(codes) > significance.CELL_LIMIT
    values = np.hstack([method.values[left], reference.values[right]])
    group = method.group[left] * 1000 + reference.group[right]
    assert len(np.unique(group)) <= significance.CELL_LIMIT
    draws = bootstrap_means(values, counts, group, np.random.default_rng(0), resamples)
    users_values = np.hstack([metric_values(one, METRICS).mean(0) for one in ranks])
    deviation = users_values.std(0) / np.sqrt(users)
    assert (np.abs(draws.mean(0) - users_values.mean(0)) < 5 * deviation / np.sqrt(resamples)).all()
    expected, found = np.corrcoef(users_values.T), np.cov(draws.T) / np.outer(deviation, deviation)
    assert np.abs(found - expected).max() < 5 * np.sqrt(2 / resamples)


def test_single_means_have_scipys_interval(pair):
    mean, low, high = mean_intervals(outcomes(pair[0], METRICS), resamples=40_000)
    values = metric_values(pair[0], METRICS)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    expected = stats.bootstrap((values,), np.mean, n_resamples=3000, method="percentile", axis=0, batch=100, rng=5)
    tolerance = 5 * 2.7 * np.sqrt(1 / 40_000 + 1 / 3000) * expected.standard_error
    assert (np.abs(low - expected.confidence_interval.low) < tolerance).all()
    assert (np.abs(high - expected.confidence_interval.high) < tolerance).all()


def test_a_null_difference_is_rejected_one_time_in_twenty():
    """Two runs that differ by their seeds' noise alone, by the test that `compare` makes."""
    generator, users, simulations = np.random.default_rng(4), 500, 6000
    rejected = np.zeros(len(METRICS))
    for _ in range(simulations // 200):
        difficulty = generator.normal(4, 2, (200, 1, users))
        noise = generator.normal(0, 0.7, (200, 2, users))
        ranks = np.floor(np.exp(np.maximum(difficulty + noise, 0))).clip(1, 3000)
        values = metric_values(ranks, METRICS)
        for differences in values[:, 0] - values[:, 1]:
            rejected += paired_t_test(differences, np.ones(users, np.int64))[1] < 0.05
    assert (np.abs(rejected / simulations - 0.05) < 0.01).all(), rejected / simulations


@pytest.mark.parametrize(
    ("names", "cell_limit", "simulations"),
    [(("recall@10", "recall@50"), 100_000, 4000), (("ndcg@10",), 0, 2500)],
)
def test_intervals_cover_the_true_difference(names, cell_limit, simulations):
    generator, shift = np.random.default_rng(6), np.array([[-0.15], [0]])
    differences, means = [], []
    for _ in range(40):
        values = metric_values(simulated(generator, 100_000, (2,), shift=shift), names)
        differences.append((values[0] - values[1]).mean(0))
        means.append(values.mean(1))
    truth = np.mean(differences, axis=0)
    relative = np.divide(*np.mean(means, axis=0)) - 1
    covered, covered_relative = np.zeros(len(names)), np.zeros(len(names))
    for number in range(simulations):
        method, reference = (outcomes(ranks, names) for ranks in simulated(generator, 500, (2,), shift=shift))
        found = compare(method, reference, resamples=1000, seed=number, cell_limit=cell_limit)
        covered += (found.low <= truth) & (truth <= found.high)
        covered_relative += (found.relative_low <= relative) & (relative <= found.relative_high)
    # Of 1,000 resamples, a percentile interval holds 94.8 %; of 10,000, 94.98 %.
    for share in (covered / simulations, covered_relative / simulations):
        assert (np.abs(share - 0.95) < 0.01).all(), share


def test_holm_equals_the_step_down_procedure():
    generator = np.random.default_rng(8)
    for size, level in itertools.product((1, 2, 7, 40), (0.01, 0.05, 0.2)):
        p_values = generator.uniform(0, 0.2, size) ** 2
        rejected = np.zeros(size, bool)
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (size - step):
                break
            rejected[index] = True
        assert ((holm(p_values) <= level) == rejected).all()
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_equal_methods_differ_by_nothing():
    ranks = simulated(np.random.default_rng(0), 100)
    found = compare(outcomes(ranks, METRICS), outcomes(ranks, METRICS))
    assert found.p_value.tolist() == [1] * 6
    # The two means are sums in an order of BLAS's choosing: equal up to rounding.
    np.testing.assert_allclose([*found.low, *found.high, found.improvement], 0, atol=1e-12)


def test_a_reference_without_hits_has_no_relative_difference():
    found = compare(outcomes(np.full(50, 3.0), METRICS), outcomes(np.full(50, 900.0), METRICS))
    assert np.isnan(found.relative).all()
    assert np.isnan(found.relative_low).all()
    assert found.difference[0] == 1


def test_several_seeds_are_compared_by_each_users_mean():
    ranks = simulated(np.random.default_rng(3), 400, (2, 3))
    found = compare(outcomes(ranks[0], METRICS), outcomes(ranks[1], METRICS), resamples=10)
    expected = stats.ttest_rel(*(metric_values(one, METRICS).mean(0) for one in ranks))
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-9)


def test_the_same_seed_gives_the_same_interval(pair):
    folded = [outcomes(ranks, METRICS) for ranks in pair]
    first, again, other = (compare(*folded, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert first.low.tolist() == again.low.tolist()
    assert first.low.tolist() != other.low.tolist()


def test_different_numbers_of_users_are_refused():
    with pytest.raises(UserError, match="ranked 3 users and its reference 2"):
        compare(outcomes(np.ones(3), METRICS), outcomes(np.ones(2), METRICS))


def test_many_users_cost_little():
    """One pair at 700,000 users and 12 metrics; 20 pairs have 60 s."""
    names = (*DEFAULT_METRICS, "recall@100", "ndcg@20", "ndcg@100")
    ranks = simulated(np.random.default_rng(9), 700_000, (2,))
    began = time.process_time()
    compare(*(outcomes(one, names) for one in ranks))
    assert time.process_time() - began < 6


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (10, 4)])
def test_welch_equals_scipys(sizes):
    first, second = (np.random.default_rng(size).normal(0.2, 0.01 * size, size) for size in sizes)
    expected = stats.ttest_ind(first, second, equal_var=False)
    bounds = expected.confidence_interval(0.95)
    assert welch(first, second) == pytest.approx((bounds.low, bounds.high, expected.pvalue), rel=1e-9)
    assert welch(np.full(3, 0.1), np.full(2, 0.1)) == pytest.approx((0, 0, 1))


def test_intervals_over_seeds_are_calibrated():
    generator, simulations = np.random.default_rng(2), 5000
    values = generator.normal(0, 1, (simulations, 10))
    covered = [low <= 0 <= high for low, high in (single_run_interval(row[:3], row[3]) for row in values)]
    assert abs(np.mean(covered) - 0.95) < 0.01
    rejected = [welch(row[:5], row[5:])[2] < 0.05 for row in values]
    assert abs(np.mean(rejected) - 0.05) < 0.01
