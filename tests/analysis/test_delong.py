"""DeLong's variance and test: an example by hand, every pair one by one, and what chance does."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from benchmark.analysis.click_significance import compare_clicks, estimate
from benchmark.analysis.delong import areas, difference, interval
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import ClickTable, click_metric


def brute_force(label, scores):
    """AUC and DeLong's covariance from the kernel of every (positive, negative) pair."""
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    kernel = np.array([
        [[(row[i] > row[j]) + 0.5 * (row[i] == row[j]) for j in negative] for i in positive] for row in scores
    ])  # fmt: skip
    auc = kernel.mean(axis=(1, 2))
    first, second = kernel.mean(axis=2) - auc[:, None], kernel.mean(axis=1) - auc[:, None]
    m, n = len(positive), len(negative)
    return auc, first @ first.T / (m * (m - 1)) + second @ second.T / (n * (n - 1))


def test_an_example_by_hand():
    """Three positives with scores 3, 2, 1 and two negatives with 2, 0.

    Shares of negatives below each positive: 1, (0 below, 2 equal) 3/4, 1/2; of positives above each negative:
    (3 above, 2 equal) 1/2, and 1. AUC = 3/4; variances 1/16 and 1/8 over m = 3 and n = 2: 1/48 + 1/16 = 1/12.
    """
    found = areas(np.array([1, 1, 1, 0, 0]), np.array([[3.0, 2.0, 1.0, 2.0, 0.0]]))
    assert found.auc[0] == pytest.approx(3 / 4)
    assert found.covariance[0, 0] == pytest.approx(1 / 12)
    reach = 1.959964 * 12**-0.5
    assert interval(0.75, found.covariance[0, 0]) == pytest.approx((0.75 - reach, 0.75 + reach))


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12))
def test_equals_every_pair_one_by_one(seed, m, n):
    random = np.random.default_rng(seed)
    label = random.permutation(np.repeat([1, 0], [m, n]))
    scores = random.integers(0, 6, (3, m + n)).astype(float)
    found, (auc, covariance) = areas(label, scores), brute_force(label, scores)
    assert found.auc == pytest.approx(auc)
    assert found.auc == pytest.approx([roc_auc_score(label, row) for row in scores])
    assert found.covariance == pytest.approx(covariance, abs=1e-12)
    assert areas(label, scores, np.arange(m + n)).covariance == pytest.approx(covariance, abs=1e-12)


def test_the_paired_test_of_independent_cases_is_delongs():
    """Every user has one case: the contrast's variance is that of every pair, and the test normal and two-sided."""
    random = np.random.default_rng(1)
    label = random.integers(0, 2, 80).astype(np.int8)
    scores = random.integers(0, 9, (2, 80)) + 2.0 * label
    auc, covariance = brute_force(label, scores)
    found = compare_clicks(*([table_of(np.arange(80), label, row)] for row in scores), "auc")
    deviation = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert found.value == pytest.approx(auc[0] - auc[1])
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.value) / deviation))
    assert (found.value - found.low, found.high - found.value) == pytest.approx((1.959964 * deviation,) * 2)


def test_a_method_does_not_differ_from_itself():
    random = np.random.default_rng(1)
    label, row = random.integers(0, 2, 50).astype(np.int8), random.normal(size=50)
    table = table_of(np.arange(50) // 3, label, row)
    assert compare_clicks([table], [table], "auc").p_value == 1.0
    assert difference(0.0, 0.0).p_value == 1.0
    assert difference(0.1, 0.0).p_value == 0.0


def generated(random, users, effect=0.0, spread=1.0):
    """Users with 1 to 8 cases; two methods whose logits share a part of the user and of the label."""
    user = np.repeat(np.arange(users), random.integers(1, 9, users))
    own = random.normal(size=users)[user] * spread
    label = (random.random(len(user)) < 1 / (1 + np.exp(-own))).astype(np.int8)
    shared = 0.8 * label + own
    return [table_of(user, label, shared + random.normal(size=len(user)) + effect * k * label) for k in (1, 0)]


def table_of(user, label, logit):
    text = pa.array([f"u{number}" for number in user], pa.large_string())
    return ClickTable(text, text, label, logit, np.ones(len(user), np.int32), np.arange(len(user)))


@pytest.mark.parametrize("metric", ["auc", "group_auc", "log_loss"])
def test_intervals_hold_and_tests_are_level_when_users_have_several_cases(metric):
    """400 worlds: the interval of a method covers its value over many users, and equal methods differ by chance."""
    random = np.random.default_rng(5)
    truth = click_metric(generated(random, 60_000)[1], metric)
    covered, rejected, worlds = 0, 0, 400
    for _ in range(worlds):
        first, second = generated(random, 120)
        found = estimate([second], metric)
        assert found.value == pytest.approx(click_metric(second, metric))
        covered += found.low <= truth <= found.high
        rejected += compare_clicks([first], [second], metric).p_value < 0.05
    assert 0.92 < covered / worlds < 0.98
    assert 0.02 < rejected / worlds < 0.085


def test_taking_a_users_cases_as_independent_would_claim_too_much():
    """Here the user decides the label and the logit alike, so that independent cases would give a narrower interval."""
    found = estimate(generated(np.random.default_rng(2), 300, spread=3.0)[1:], "auc")
    assert found.low < found.independent[0] < found.value < found.independent[1] < found.high


@pytest.mark.parametrize("metric", ["auc", "group_auc", "log_loss"])
def test_seeds_are_averaged(metric):
    """The same seed twice is that seed; two seeds are compared by the mean of their values, with less noise."""
    random = np.random.default_rng(6)
    first, reference = generated(random, 200, effect=0.3)
    second = table_of(first.users(), first.label, first.logit + random.normal(size=len(first)))
    once, twice = (compare_clicks(seeds, [reference], metric) for seeds in ([first], [first, first]))
    assert (once.value, once.low, once.p_value) == pytest.approx((twice.value, twice.low, twice.p_value))
    both = compare_clicks([first, second], [reference], metric)
    values = [click_metric(table, metric) for table in (first, second, reference)]
    assert both.value == pytest.approx((values[0] + values[1]) / 2 - values[2])
    assert estimate([first, second], metric).value == pytest.approx((values[0] + values[1]) / 2)


def test_other_cases_are_not_compared():
    first, second = generated(np.random.default_rng(3), 20)
    other = table_of(second.users(), 1 - second.label, second.logit)
    with pytest.raises(UserError, match="predicted different cases"):
        compare_clicks([first], [other], "auc")
