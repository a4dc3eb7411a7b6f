"""Variances of areas under ROC curves: DeLong's, for independent cases and for cases in clusters, and what follows.

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), computed from midranks in O(n log n) as in Sun and Xu, IEEE
Signal Processing Letters 21 (2014). A user's cases are not independent of each other: with clusters the covariance is
Obuchowski's (Biometrics 53, 1997), which is DeLong's where every cluster holds one case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Int8 = NDArray[np.int8]


@dataclass(frozen=True)
class Areas:
    """auc: (k,) of k methods on the same cases; covariance: (k, k) of these estimates."""

    auc: Float64
    covariance: Float64


@dataclass(frozen=True)
class Difference:
    """value: of the first less the second. low, high: bounds of its interval. p_value: two-sided, of no difference."""

    value: float
    low: float
    high: float
    p_value: float


def areas(label: Int8, scores: Float64, clusters: Int64 | None = None) -> Areas:
    """label: (n,) 0 or 1, at least two of each; scores: (k, n); clusters: (n,) numbers from 0, None if independent."""
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        raise ValueError(f"{m} positive and {n} negative cases: a variance needs two of each")
    order = np.argsort(label != 1, kind="stable")  # positives first
    everything = rankdata(scores[:, order], axis=1)
    # The share of the other class that a case is on the right side of, equal scores by half.
    of_positives = (everything[:, :m] - rankdata(positive, axis=1)) / n
    of_negatives = 1 - (everything[:, m:] - rankdata(negative, axis=1)) / m
    auc = of_positives.mean(axis=1)
    if clusters is None:
        return Areas(auc, np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n)
    count = int(clusters.max()) + 1
    by_positives = _sums(of_positives - auc[:, None], clusters[label == 1], count) / m
    by_negatives = _sums(of_negatives - auc[:, None], clusters[label == 0], count) / n
    with_positives, with_negatives = (len(np.unique(clusters[label == value])) for value in (1, 0))
    cross = by_positives @ by_negatives.T
    covariance = (
        with_positives / (with_positives - 1) * by_positives @ by_positives.T
        + with_negatives / (with_negatives - 1) * by_negatives @ by_negatives.T
        + count / (count - 1) * (cross + cross.T)
    )
    return Areas(auc, covariance)


def _sums(values: Float64, clusters: Int64, count: int) -> Float64:
    """(k, n) values -> (k, count) sums over clusters."""
    return np.stack([np.bincount(clusters, row, minlength=count) for row in values])


def interval(value: float, variance: float, confidence: float = 0.95) -> tuple[float, float]:
    """Normal bounds of an estimate."""
    reach = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt(max(variance, 0.0))
    return value - reach, value + reach


def difference(value: float, variance: float, confidence: float = 0.95) -> Difference:
    """A difference with its interval and two-sided p-value by the normal distribution; p is 1 where nothing differs."""
    low, high = interval(value, variance, confidence)
    if variance <= 0:
        return Difference(value, low, high, 1.0 if value == 0 else 0.0)
    return Difference(value, low, high, float(2 * norm.sf(abs(value) / math.sqrt(variance))))
