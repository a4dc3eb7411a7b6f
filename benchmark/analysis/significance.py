"""Differences between methods: effect size, bootstrap interval over users, paired t-test, Holm's correction.

Two rankings of the same users are compared by the users' values, each user's mean over the seeds of a method. At
hundreds of thousands of users nearly every difference is significant, so the interval and the relative difference come
first. Wilcoxon's and the sign test are left out: on such data they reject a true null too often (Ihemelandu and
Ekstrand, SIGIR 2023).

**The bootstrap.** Resampling n users with replacement is the same as drawing how often each distinct outcome occurs,
which is multinomial: one outcome is what a user's ranks are worth in all compared metrics under both methods, so that
its cost depends on the number of outcomes and not of users, and all metrics come out of the same resamples. Up to
`cell_limit` outcomes, that is the plain bootstrap, exactly. With more, outcomes of nearly the same gain are drawn
together as a cell, and what they vary within it is added as a normal term:

    resampled sum = sum over cells (times drawn * cell mean) + N(0, n * covariance within cells)

The first two moments of that, jointly over metrics and methods, are exactly those of the plain bootstrap. Only the
higher cumulants of the part within the cells are dropped; it is a sum of n > cell_limit independent terms, each bounded
by the cell's narrow range of gains, so that their effect on a percentile is far below the Monte Carlo error of 10,000
resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, Int64, Metric, metric_values

RESAMPLES = 10_000
CONFIDENCE = 0.95
CELL_LIMIT = 256
GAIN_STEP = 0.08  # width of a cell in 1 / log2(rank + 1): about 10 cells a method, and 150 a pair
_CHUNK = 1000  # resamples drawn at once: bounds the counts in memory to _CHUNK * CELL_LIMIT


@dataclass(frozen=True)
class Outcomes:
    """What users' ranks under one method are worth, each distinct outcome once.

    metrics: m names. code: (n,) each user's outcome. values: (c, m) metrics of each outcome, means over seeds.
    group: (c,) outcomes of nearly the same gain share a number.
    """

    metrics: tuple[str, ...]
    code: Int64
    values: Float64
    group: Int64


@dataclass(frozen=True)
class Comparison:
    """A method against a reference on m metrics; every array is (m,), in fractions, relative ones against reference.

    improvement: the mean of the relative differences over the metrics. p_value: of the paired t-test, uncorrected.
    Bounds and relative figures are NaN where the reference is 0 (in some resample).
    """

    metrics: tuple[str, ...]
    users: int
    value: Float64
    reference: Float64
    difference: Float64
    low: Float64
    high: Float64
    relative: Float64
    relative_low: Float64
    relative_high: Float64
    improvement: float
    improvement_low: float
    improvement_high: float
    p_value: Float64


def outcomes(ranks: Float64, metrics: Sequence[str]) -> Outcomes:
    """Fold ranks (n,), or (seeds, n), to their distinct outcomes in some metrics."""
    by_seed = _equivalent_ranks(np.atleast_2d(np.asarray(ranks, np.float64)), metrics)
    distinct, code = np.unique(by_seed[0], return_inverse=True)
    tuples = distinct[None]
    for seed in by_seed[1:]:
        distinct, own = np.unique(seed, return_inverse=True)
        pairs, code = np.unique(code * len(distinct) + own, return_inverse=True)
        tuples = np.vstack([tuples[:, pairs // len(distinct)], distinct[pairs % len(distinct)]])
    gain = (1 / np.log2(tuples + 1)).mean(axis=0)
    group = np.floor(gain / GAIN_STEP).astype(np.int64)
    if len(tuples) == 1:  # cells that no cutoff splits: recall is then exact
        cutoffs = np.unique([m.cutoff for m in map(Metric.parse, metrics) if m.cutoff is not None])
        group = group * (len(cutoffs) + 1) + np.searchsorted(cutoffs, tuples[0])
    values = metric_values(tuples, metrics).mean(axis=0)
    return Outcomes(tuple(metrics), code, values, np.unique(group, return_inverse=True)[1])


def _equivalent_ranks(ranks: Float64, metrics: Sequence[str]) -> Float64:
    """Ranks that no metric tells apart, as one of them: beyond the deepest NDCG, the next cutoff or infinity."""
    parsed = [Metric.parse(name) for name in metrics]
    if any(metric.kind == "mrr" for metric in parsed):
        return ranks
    deepest = max((metric.cutoff or 0 for metric in parsed if metric.kind == "ndcg"), default=0)
    cutoffs = np.array([*sorted({float(metric.cutoff or 0) for metric in parsed}), np.inf])
    return np.where(ranks <= deepest, ranks, cutoffs[np.searchsorted(cutoffs, ranks)])


def compare(
    method: Outcomes,
    reference: Outcomes,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    cell_limit: int = CELL_LIMIT,
) -> Comparison:
    """Compare two methods' outcomes for the same users in the same order and metrics."""
    if method.metrics != reference.metrics:
        raise ValueError(f"different metrics: {method.metrics} and {reference.metrics}")
    if len(method.code) != len(reference.code):
        raise UserError(
            f"a method ranked {len(method.code)} users and its reference {len(reference.code)}: "
            "only rankings of the same users can be compared"
        )
    width, count = len(reference.values), len(method.metrics)
    pairs, counts = _counted(method.code * width + reference.code, len(method.values) * width)
    values = np.hstack([method.values[pairs // width], reference.values[pairs % width]])
    group = method.group[pairs // width] * (reference.group.max() + 1) + reference.group[pairs % width]
    means = counts @ values / counts.sum()
    value, base = means[:count], means[count:]
    difference, p_value = paired_t_test(values[:, :count] - values[:, count:], counts)
    draws = bootstrap_means(values, counts, group, np.random.default_rng(seed), resamples, cell_limit)
    drawn, drawn_base = draws[:, :count], draws[:, count:]
    low, high = percentile_interval(drawn - drawn_base, confidence)
    relative_low, relative_high = percentile_interval(relative_difference(drawn, drawn_base), confidence)
    improvement_low, improvement_high = percentile_interval(average_improvement(drawn, drawn_base), confidence)
    return Comparison(
        metrics=method.metrics, users=int(counts.sum()), value=value, reference=base, difference=difference,
        low=low, high=high, relative=relative_difference(value, base), relative_low=relative_low,
        relative_high=relative_high, improvement=float(average_improvement(value, base)),
        improvement_low=float(improvement_low), improvement_high=float(improvement_high), p_value=p_value,
    )  # fmt: skip


def relative_difference(value: Float64, reference: Float64) -> Float64:
    """value / reference - 1, elementwise; NaN where the reference is 0."""
    return value / np.where(reference > 0, reference, np.nan) - 1


def average_improvement(value: Float64, reference: Float64) -> Float64:
    """The paper's Impv. (avg): the mean of the relative differences over metrics, (..., m) -> (...), as a fraction."""
    mean: Float64 = relative_difference(value, reference).mean(axis=-1)
    return mean


def mean_intervals(
    method: Outcomes,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    cell_limit: int = CELL_LIMIT,
) -> tuple[Float64, Float64, Float64]:
    """Means over users and the bounds of their percentile intervals: three arrays (m,)."""
    counts = np.bincount(method.code, minlength=len(method.values))
    means = counts @ method.values / counts.sum()
    draws = bootstrap_means(method.values, counts, method.group, np.random.default_rng(seed), resamples, cell_limit)
    return means, *percentile_interval(draws, confidence)


def bootstrap_means(
    values: Float64,
    counts: Int64,
    group: Int64,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    cell_limit: int = CELL_LIMIT,
) -> Float64:
    """(resamples, k) means of resampled users, who have outcome i of values (c, k) counts[i] times.

    group: (c,) outcomes that may be drawn together, if there are more than cell_limit.
    """
    users = int(counts.sum())
    within: Float64 | None = None
    if len(counts) > cell_limit:
        order = np.argsort(group, kind="stable")
        values, counts, group = values[order], counts[order], group[order]
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(starts, append=len(group))
        cell_counts = np.add.reduceat(counts, starts)
        cells = np.add.reduceat(values * counts[:, None], starts) / cell_counts[:, None]
        residual = values - np.repeat(cells, sizes, axis=0)
        within = (residual * counts[:, None]).T @ residual / users
        values, counts = cells, cell_counts
    draws = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _CHUNK):
        drawn = _times_drawn(counts, min(_CHUNK, resamples - start), generator)
        draws[start : start + len(drawn)] = drawn @ values
    draws /= users
    if within is not None:
        variances, axes = np.linalg.eigh(within)
        scale = np.sqrt(np.maximum(variances, 0) / users)  # rounding makes tiny negative ones
        draws += (generator.standard_normal(draws.shape) * scale) @ axes.T
    return draws


def _times_drawn(counts: Int64, resamples: int, generator: np.random.Generator) -> Int64:
    """(resamples, c) how often each cell is drawn when as many users as there are are drawn with replacement."""
    users, cells = int(counts.sum()), len(counts)
    if users > 8 * cells:
        drawn: Int64 = generator.multinomial(users, counts / users, size=resamples)
        return drawn
    cell = np.repeat(np.arange(cells), counts)  # few users a cell: drawing them one by one is several times faster
    picked = cell[generator.integers(0, users, (resamples, users))] + cells * np.arange(resamples)[:, None]
    return np.bincount(picked.ravel(), minlength=resamples * cells).reshape(resamples, cells)


def percentile_interval(draws: Float64, confidence: float = CONFIDENCE) -> tuple[Float64, Float64]:
    """Bounds (...) of the percentile interval of draws (resamples, ...); NaN where a draw is."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def paired_t_test(differences: Float64, counts: Int64) -> tuple[Float64, Float64]:
    """Mean (m,) and two-sided p-value (m,) of paired differences (c, m), of which counts[i] users have the i-th.

    As scipy.stats.ttest_rel, but where no user differs p is 1 (there NaN).
    """
    users = int(counts.sum())
    mean = counts @ differences / users
    if users < 2:
        return mean, np.ones_like(mean)
    variance = counts @ (differences - mean) ** 2 / (users - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(variance / users)
    return mean, np.where((mean == 0) & (variance == 0), 1.0, 2 * stats.t.sf(np.abs(t), users - 1))


def welch(first: Float64, second: Float64, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Welch's t-test over seeds: bounds of the interval of mean(first) - mean(second), and the two-sided p-value.
    first: (s,), second: (r,); see `welch_contrast`."""
    return welch_contrast([first, second], [1.0, -1.0], confidence)


def welch_contrast(
    samples: Sequence[Float64], weights: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Welch's t-test over seeds of a weighted sum of means, with Satterthwaite's degrees of freedom: the bounds of the
    sum's interval, and the two-sided p-value against zero.

    samples: of each method (s,), a value a seed, at least two. Where no seed differs from another, the interval is the
    sum itself and p is 0 or 1 (scipy has NaN there). With two or three seeds the 5 % test of a difference is cautious:
    it rejects a true null 4 % of the time or less.
    """
    estimate = sum(weight * float(one.mean()) for weight, one in zip(weights, samples, strict=True))
    parts = [weight**2 * one.var(ddof=1) / len(one) for weight, one in zip(weights, samples, strict=True)]
    error = math.sqrt(sum(parts))
    if error <= 1e-14:  # equal but for rounding
        return estimate, estimate, float(abs(estimate) <= 1e-14)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, samples, strict=True))
    half = float(stats.t.isf((1 - confidence) / 2, freedom)) * error
    return estimate - half, estimate + half, float(2 * stats.t.sf(abs(estimate) / error, freedom))


def single_run_interval(values: Float64, run: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bounds of mean(values) - run, where values (s,) are of two seeds or more and run is a single one.

    A prediction interval: if run is one more seed of the same method, 0 lies between the bounds with this confidence.
    """
    spread = float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(values))
    half = float(stats.t.isf((1 - confidence) / 2, len(values) - 1)) * spread
    difference = float(values.mean()) - run
    return difference - half, difference + half


def holm(p_values: Float64) -> Float64:
    """Holm's step-down adjustment of p-values (k,): compare the result with the level of the whole family."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def _counted(codes: Int64, bound: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct codes below bound, and how often each occurs."""
    if bound > 4 * len(codes) + 1000:
        distinct, counts = np.unique(codes, return_counts=True)
        return distinct.astype(np.int64), counts.astype(np.int64)
    counts = np.bincount(codes, minlength=bound)  # several times faster than sorting
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]
