"""Power against simulation, a published example and the normal approximation."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmark.analysis.power import (
    detectable_effect,
    deviation_of_difference,
    power_of_paired_test,
    spread_over_users,
)


def test_power_equals_the_textbooks_example():
    # Two-sided, level 0.05, d = 0.5: 34 pairs are needed for power 0.8, and have 0.8078 (G*Power; Faul et al., 2007).
    assert power_of_paired_test(0.5, 1, 34) == pytest.approx(0.8078, abs=5e-5)
    assert power_of_paired_test(0.5, 1, 33) < 0.8


def test_power_is_how_often_scipys_test_rejects():
    generator, users, effect, level = np.random.default_rng(3), 40, 0.35, 0.05
    differences = generator.normal(effect, 0.9, (20_000, users))
    rejected = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < level / 4)
    found = power_of_paired_test(-effect, 0.9, users, level=level, tests=4)
    assert abs(found - rejected) < 4 * math.sqrt(found * (1 - found) / 20_000)
    assert power_of_paired_test(0, 0.9, users) == pytest.approx(level)


@pytest.mark.parametrize("users", [943, 6040, 694_897, 8_886_078])
@pytest.mark.parametrize(("power", "tests"), [(0.8, 1), (0.95, 30)])
def test_the_detectable_effect_has_the_power(users, power, tests):
    deviation = 0.3
    effect = detectable_effect(deviation, users, power=power, tests=tests)
    assert power_of_paired_test(effect, deviation, users, tests=tests) == pytest.approx(power, abs=1e-6)
    normal = (stats.norm.isf(0.05 / tests / 2) + stats.norm.ppf(power)) * deviation / math.sqrt(users)
    assert effect == pytest.approx(normal, rel=0.005)


def test_the_power_of_a_difference_in_recall_follows_from_the_two_recalls():
    generator, users = np.random.default_rng(5), 2000
    hits = stats.norm.ppf([[0.20], [0.17]])  # two correlated hits a user, of a common normal difficulty
    latent = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], (1500, users))
    hit = latent < hits.T
    both = hit.reshape(-1, 2)
    first, second = both.mean(0)
    correlation = np.corrcoef(both.T)[0, 1]
    deviation = deviation_of_difference(spread_over_users(first), spread_over_users(second), correlation)
    differences = hit[..., 0].astype(float) - hit[..., 1]
    assert deviation == pytest.approx(differences.std(), rel=1e-6)
    rejected = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert power_of_paired_test(first - second, deviation, users) == pytest.approx(rejected, abs=0.03)


def test_ndcg_never_varies_more_than_recall_of_the_same_mean():
    ranks = np.random.default_rng(1).integers(1, 40, 1000)
    values = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
    assert values.std() <= spread_over_users(values.mean())


@pytest.mark.parametrize(
    "call",
    [
        lambda: power_of_paired_test(0.1, 0.0, 10),
        lambda: power_of_paired_test(0.1, 0.1, 1),
        lambda: power_of_paired_test(0.1, 0.1, 10, level=1.0),
        lambda: detectable_effect(0.1, 10, power=0.01),
        lambda: spread_over_users(5.2),
        lambda: deviation_of_difference(0.1, 0.1, 1.5),
    ],
)
def test_figures_that_make_no_sense_are_refused(call):
    with pytest.raises(ValueError, match=r"not|must"):
        call()
