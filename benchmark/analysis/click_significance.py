"""Intervals and paired tests of click metrics between methods that predicted the same cases, over one or more seeds.

A method's value is the mean over its seeds. AUC: DeLong's variance, cases in clusters by user (`benchmark.analysis.
delong`). Group AUC and log loss are ratios of sums over users, sum a_u / sum b_u, whose variance comes from the users'
residuals (a_u - ratio b_u) / mean b: users are what was sampled, not cases. How a method varies with its seed is not in
these intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.analysis.delong import Difference, areas, difference, interval
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import CLICK_METRICS, ClickTable, losses, user_aucs
from benchmark.evaluation.metrics import Float64, Int64


@dataclass(frozen=True)
class Estimate:
    """A metric and the bounds of its 95 % interval; independent: DeLong's bounds that take all cases as independent,
    None for other metrics than AUC."""

    value: float
    low: float
    high: float
    independent: tuple[float, float] | None = None


def estimate(seeds: Sequence[ClickTable], metric: str) -> Estimate:
    """A metric of one method, with its interval over users."""
    users = _users(seeds)
    if metric == "auc":
        weights = np.full(len(seeds), 1 / len(seeds))
        value, variance = _area_contrast(seeds, users, weights)
        _, independent = _area_contrast(seeds, None, weights)
        return Estimate(value, *_within(interval(value, variance)), independent=_within(interval(value, independent)))
    ratio, residual = _mean_ratio(seeds, users, metric)
    return Estimate(ratio, *interval(ratio, _variance(residual)))


def compare_clicks(method: Sequence[ClickTable], reference: Sequence[ClickTable], metric: str) -> Difference:
    """The difference of a metric between two methods, which must have predicted the same cases."""
    everything = [*method, *reference]
    users = _users(everything)
    if metric == "auc":
        weights = np.repeat([1 / len(method), -1 / len(reference)], [len(method), len(reference)])
        return difference(*_area_contrast(everything, users, weights))
    (own, residual), (other, other_residual) = (_mean_ratio(seeds, users, metric) for seeds in (method, reference))
    return difference(own - other, _variance(residual - other_residual))


def check_metrics(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in CLICK_METRICS]:
        raise UserError(f"metric {unknown[0]!r} is not known for clicks: write one of {', '.join(CLICK_METRICS)}")


def _users(tables: Sequence[ClickTable]) -> Int64:
    """(n,) the user of each case, which must be the same in all tables."""
    first = tables[0]
    for table in tables[1:]:
        same = (
            len(table) == len(first)
            and bool(table.user_id.equals(first.user_id))
            and bool(table.target_item.equals(first.target_item))
            and np.array_equal(table.label, first.label)
        )
        if not same:
            raise UserError(
                f"the methods predicted different cases ({len(first)} and {len(table)} of them): only predictions of "
                "the same cases can be compared"
            )
    return first.users()


def _area_contrast(tables: Sequence[ClickTable], users: Int64 | None, weights: Float64) -> tuple[float, float]:
    """A weighted sum of AUCs and its variance."""
    found = areas(tables[0].label, np.stack([table.logit for table in tables]), users)
    return float(weights @ found.auc), float(weights @ found.covariance @ weights)


def _within(bounds: tuple[float, float]) -> tuple[float, float]:
    return max(bounds[0], 0.0), min(bounds[1], 1.0)


def _mean_ratio(seeds: Sequence[ClickTable], users: Int64, metric: str) -> tuple[float, Float64]:
    """The mean over seeds of a ratio, and of the users' residuals."""
    ratios, residuals = zip(*(_ratio(*_sums(table, users, metric)) for table in seeds), strict=True)
    return float(np.mean(ratios)), np.mean(residuals, axis=0)


def _sums(table: ClickTable, users: Int64, metric: str) -> tuple[Float64, Float64]:
    """(u,) numerator and denominator of each user; which users enter does not depend on the method."""
    if metric == "group_auc":
        values, cases = user_aucs(users, table.label, table.logit)
        both = ~np.isnan(values)
        return values[both] * cases[both], cases[both].astype(np.float64)
    lost = np.bincount(users, losses(table.label, table.logit)).astype(np.float64)
    return lost, np.bincount(users).astype(np.float64)


def _ratio(numerator: Float64, denominator: Float64) -> tuple[float, Float64]:
    ratio = float(numerator.sum() / denominator.sum())
    return ratio, (numerator - ratio * denominator) / denominator.mean()


def _variance(residual: Float64) -> float:
    """Of the mean of independent residuals."""
    return float((residual**2).sum() / (len(residual) * max(len(residual) - 1, 1)))
