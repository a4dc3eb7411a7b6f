"""What a comparison can find before it is run: the power of the paired t-test over users, and the least effect it sees.

All effects, means and deviations are of fractions, as in CSV files. What decides the power is how much the *difference*
between two methods varies over users, which depends on how alike they are to users:

    deviation = deviation_of_difference(spread_over_users(0.16), spread_over_users(0.15), correlation=0.5)
    detectable_effect(deviation, users=943)          # the least true difference that is found four times in five

Users are the sample. What another seed would give is not in it: at hundreds of thousands of users the least effect is
smaller than what seeds do, and seeds are what to add.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8


def power_of_paired_test(effect: float, deviation: float, users: int, *, level: float = LEVEL, tests: int = 1) -> float:
    """Probability that a two-sided paired t-test over users finds a true mean difference.

    effect: the true mean over users of the difference, of either sign. deviation: its standard deviation over users.
    tests: how many tests share the level; each is made at level / tests (Bonferroni), so that the answer is a lower
    bound for Holm's correction. Exact for normal differences (noncentral t); means of users' values are close to that.
    Raises ValueError where users < 2, deviation is not positive, or level and tests are out of range.
    """
    if users < 2:
        raise ValueError(f"a paired test needs 2 users or more, not {users}")
    if not deviation > 0:
        raise ValueError(f"the deviation of the differences must be positive, not {deviation}")
    if not (0 < level < 1 and tests >= 1):
        raise ValueError(f"level {level} must lie between 0 and 1, and tests {tests} be at least 1")
    freedom = users - 1
    critical = float(stats.t.isf(level / tests / 2, freedom))
    shift = abs(effect) / deviation * math.sqrt(users)
    right, wrong = stats.nct.sf(critical, freedom, shift), stats.nct.cdf(-critical, freedom, shift)
    return float(right + np.nan_to_num(wrong))  # the wrong side's tail is NaN where it is below 1e-16


def detectable_effect(
    deviation: float, users: int, *, power: float = POWER, level: float = LEVEL, tests: int = 1
) -> float:
    """The least true mean difference that the test finds with the given power; otherwise as power_of_paired_test.

    Raises ValueError where power does not lie between the level of one test and 1.
    """
    if not level / tests < power < 1:
        raise ValueError(f"power {power} must lie between the level of one test, {level / tests}, and 1")

    def missing(shift: float) -> float:
        effect = shift * deviation / math.sqrt(users)
        return power_of_paired_test(effect, deviation, users, level=level, tests=tests) - power

    far = 1.0
    while missing(far) < 0:
        far *= 2
    return float(optimize.brentq(missing, 0.0, far, xtol=1e-9)) * deviation / math.sqrt(users)


def spread_over_users(mean: float) -> float:
    """Standard deviation over users of a metric with this mean: exact for recall, the most it can be for NDCG and MRR.

    A value between 0 and 1 varies most when it is always 0 or 1, as recall of one held-out item is.
    """
    if not 0 <= mean <= 1:
        raise ValueError(f"a metric's mean is a fraction between 0 and 1, not {mean}")
    return math.sqrt(mean * (1 - mean))


def deviation_of_difference(first: float, second: float, correlation: float) -> float:
    """Standard deviation of the difference of two methods' values of a user, from each one's own and their correlation.

    correlation: over users, between -1 and 1; 0 is the cautious choice. Between the methods of results/reference it is
    0.1 to 0.7 on ml-100k (median 0.4 to 0.6) and 0.6 to 0.9 on ml-1m (0.7 to 0.8), whatever the metric.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"a correlation lies between -1 and 1, not at {correlation}")
    return math.sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0))
