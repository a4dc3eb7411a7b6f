"""Figure 3: a metric against the number of users trained on, and the data that a method needs to reach another's best.

The rows of a table on one data set that differ in training.user_share alone are the points of a curve, one a method.
All points are ranked on the same users, so that their errors go together: intervals come from joint draws of the
points' means, normal with the covariance over users (the bootstrap's limit, which a thousand users are close to).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from benchmark.analysis.figures import Drawing, draw, series
from benchmark.analysis.runs import check_comparable, load_run
from benchmark.analysis.significance import percentile_interval
from benchmark.analysis.views import metric_title
from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, metric_values

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable

DRAWS = 10_000
_SEED = 1


@dataclass(frozen=True)
class Curve:
    """method: its name, which its rows' labels have before their first comma. users: (k,) trained on, ascending;
    values: (k, n) the metric of each of n ranked users, mean over seeds."""

    method: str
    users: Float64
    values: Float64


@dataclass(frozen=True)
class Needed:
    """Users that a method needs to reach the best of another; infinite where the largest share does not reach it, and
    the smallest share where that does already."""

    method: str
    reference: str
    metric: str
    users: float
    low: float
    high: float
    reached: float


def joint_draws(curves: Sequence[Curve], draws: int = DRAWS) -> Float64:
    """(draws, points of all curves) means of the metric, drawn together."""
    values = np.concatenate([curve.values for curve in curves])
    generator = np.random.default_rng(_SEED)
    covariance = np.atleast_2d(np.cov(values)) / values.shape[1]
    return generator.multivariate_normal(values.mean(axis=1), covariance, size=draws, method="svd")


def users_to_reach(users: Float64, means: Float64, target: Float64) -> Float64:
    """users: (k,) ascending; means: (d, k) of a curve; target: (d,) -> (d,) the fewest users at which the curve, linear
    in the logarithm of the users between its points, is at the target."""
    found = np.full(len(means), np.inf)
    places = np.log(users)
    for k in range(len(users) - 1, 0, -1):
        low, high = means[:, k - 1], means[:, k]
        crosses = (low < target) & (high >= target)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(crosses, (target - low) / (high - low), 0.0)
        found = np.where(crosses, np.exp(places[k - 1] + share * (places[k] - places[k - 1])), found)
    return np.where(means[:, 0] >= target, users[0], found)


def needed(curves: Sequence[Curve], reference: str, metric: str) -> list[Needed]:
    """For each method but the reference, the users it needs to reach the reference's best point."""
    draws, result, start = joint_draws(curves), [], 0
    part = {}
    for curve in curves:
        part[curve.method] = draws[:, start : start + len(curve.users)]
        start += len(curve.users)
    by_method = {curve.method: curve for curve in curves}
    best = part[reference].max(axis=1)
    point_best = by_method[reference].values.mean(axis=1).max()
    for curve in curves:
        if curve.method == reference:
            continue
        drawn = users_to_reach(curve.users, part[curve.method], best)
        point = users_to_reach(curve.users, curve.values.mean(axis=1)[None], np.array([point_best]))
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        reached = float(np.isfinite(drawn).mean())
        result.append(Needed(curve.method, reference, metric, float(point[0]), float(low), float(high), reached))
    return result


def data_scale(plan: PlannedTable, folder: Path) -> tuple[Drawing, str]:
    """The figure of a planned table's first block from its runs in folder/runs, and a CSV of the data needed."""
    block = plan.blocks[0]
    loaded = [(row, [load_run(folder / "runs" / run.id) for run in row.runs]) for row in block.rows]
    check_comparable([run for _, runs in loaded for run in runs])
    metrics = plan.file.metrics
    by_metric: dict[str, list[Curve]] = {}
    methods = list(dict.fromkeys(row.row.method for row in block.rows))
    names = {row.row.method: row.label.partition(",")[0] for row in reversed(block.rows)}
    if len(set(names.values())) < len(names):  # labels that do not tell the methods apart before their first comma
        names = {method: method for method in methods}
    for metric in metrics:
        for method in methods:
            points = sorted(
                ((row.runs[0].training.user_share, runs) for row, runs in loaded if row.row.method == method),
                key=lambda point: point[0],
            )
            if len({share for share, _ in points}) < 2:
                raise UserError(
                    f"table {plan.name}: {method} has one share of the users, and a curve needs two or more"
                )
            values = np.stack([
                np.mean([metric_values(run.ranks, [metric])[:, 0] for run in runs], axis=0) for _, runs in points
            ])  # fmt: skip
            users = np.array([share * runs[0].users for share, runs in points])
            by_metric.setdefault(metric, []).append(Curve(names[method], users, values))
    reference = next(names[row.row.method] for row in block.rows if row.label == block.block.reference)
    found = [one for metric, curves in by_metric.items() for one in needed(curves, reference, metric)]
    return _figure(plan, by_metric, found), _csv(found)


def _figure(plan: PlannedTable, by_metric: Mapping[str, Sequence[Curve]], found: Sequence[Needed]) -> Drawing:
    def plot(axes: list[Axes]) -> None:
        for panel, (metric, curves) in zip(axes, by_metric.items(), strict=True):
            draws, start = joint_draws(curves), 0
            for number, curve in enumerate(curves):
                low, high = percentile_interval(draws[:, start : start + len(curve.users)])
                start += len(curve.users)
                means, style = curve.values.mean(axis=1), series(number)
                panel.plot(curve.users, 100 * means, label=curve.method, **style)
                panel.fill_between(curve.users, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
            panel.set(xscale="log", xlabel="Users trained on", ylabel=f"{metric_title(metric)} (%)")
            places = sorted({float(users) for curve in curves for users in curve.users})
            panel.set_xticks(places, [_users(users) for users in places])
            panel.minorticks_off()
            panel.legend()

    said = "; ".join(
        f"{metric_title(one.metric)}: {one.method} needs {_users(one.users)} users to reach the best of "
        f"{one.reference} (95 % interval {_users(one.low)} to {_users(one.high)})"
        for one in found
    )
    title = f"{plan.file.title}: {plan.blocks[0].block.title}"
    return draw(plan.name, title, f"{said}. Bands: 95 % intervals over users.", plot, width=7.2, columns=len(by_metric))


def _users(count: float) -> str:
    return f"{count:,.0f}" if np.isfinite(count) else "more than all"


def _csv(found: Sequence[Needed]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "reference", "metric", "users_needed", "ci_low", "ci_high", "share_of_draws_reached"])
    writer.writerows(
        [one.method, one.reference, one.metric, one.users, one.low, one.high, one.reached] for one in found
    )
    return text.getvalue()
