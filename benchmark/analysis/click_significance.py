"""Intervals and paired tests of click metrics between methods that predicted the same cases.

AUC: DeLong's variance, cases in clusters by user (`benchmark.analysis.delong`). Group AUC and log loss are ratios of
sums over users, sum a_u / sum b_u, whose variance comes from the users' residuals (a_u - ratio b_u) / mean b: users are
what was sampled, not cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.analysis.delong import Difference, area_interval, areas, compare_areas, difference, interval
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import CLICK_METRICS, ClickTable, losses, user_aucs
from benchmark.evaluation.metrics import Float64, Int64


@dataclass(frozen=True)
class Estimate:
    """A metric and the bounds of its 95 % interval; independent_low, independent_high: DeLong's bounds that take cases
    as independent, None for other metrics than AUC."""

    value: float
    low: float
    high: float
    independent_low: float | None = None
    independent_high: float | None = None


def estimate(table: ClickTable, metric: str) -> Estimate:
    """A metric of one method, with its interval over users."""
    users = table.users()
    if metric == "auc":
        clustered, independent = (areas(table.label, table.logit[None], by) for by in (users, None))
        return Estimate(float(clustered.auc[0]), *area_interval(clustered), *area_interval(independent))
    ratio, residual = _ratio(*_sums(table, users, metric))
    low, high = interval(ratio, _variance(residual))
    return Estimate(ratio, low, high)


def compare_clicks(method: ClickTable, reference: ClickTable, metric: str) -> Difference:
    """The difference of a metric between two methods, which must have predicted the same cases."""
    if not same_cases(method, reference):
        raise UserError(
            f"the two methods predicted different cases ({len(method)} and {len(reference)} of them): only predictions "
            "of the same cases can be compared"
        )
    users = method.users()
    if metric == "auc":
        return compare_areas(areas(method.label, np.stack([method.logit, reference.logit]), users), 0, 1)
    ratios, residuals = zip(*(_ratio(*_sums(table, users, metric)) for table in (method, reference)), strict=True)
    return difference(ratios[0] - ratios[1], _variance(residuals[0] - residuals[1]))


def same_cases(first: ClickTable, second: ClickTable) -> bool:
    """Whether both tables hold the same users, targets and labels in the same order."""
    return (
        len(first) == len(second)
        and bool(first.user_id.equals(second.user_id))
        and bool(first.target_item.equals(second.target_item))
        and np.array_equal(first.label, second.label)
    )


def check_metrics(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in CLICK_METRICS]:
        raise UserError(f"metric {unknown[0]!r} is not known for clicks: write one of {', '.join(CLICK_METRICS)}")


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
