"""Which users a method serves: by how often their held-out item was trained on, by their history, and one by one.

Groups are fifths of the users, cut at the quantiles of what they are grouped by; items that no training sequence holds
are a group of their own. Intervals are bootstrap intervals over the users of a group, each for itself: a look at where
a difference comes from, no test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmark.analysis.figures import COLOURS, FAINT, INK, PAPER, draw
from benchmark.analysis.report_charts import (
    WIDTH,
    Chart,
    full_title,
    legend_below,
    legend_height,
    main_metric,
    marks_with_intervals,
    numbers,
    styles,
)
from benchmark.analysis.report_inputs import ReportTable
from benchmark.analysis.significance import compare, mean_intervals, outcomes
from benchmark.analysis.tables import BlockResult
from benchmark.analysis.views import signed
from benchmark.evaluation.metrics import Float64, Int32, Metric, metric_values

GROUPS = 5
FEWEST = 20  # users of a group

Kind = Literal["frequency", "history"]
_TITLES: dict[Kind, tuple[str, str, str]] = {  # title, axis, column
    "frequency": ("how often the held-out item was trained on", "Training events of the held-out item",
                  "Training events of the item"),
    "history": ("length of the user's history", "Events in the user's history", "Events in the history"),
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """users: (n,) whether each user is in it."""

    label: str
    users: NDArray[np.bool_]


def groups_of(values: Int32) -> list[Group]:
    """Users by a whole number each, (n,): 0 apart where enough users have it, and the rest in fifths."""
    alone = int((values == 0).sum()) >= FEWEST
    rest = values[values > 0] if alone else values
    groups = [Group("0", values == 0)] if alone else []
    if not len(rest):
        return groups
    edges = np.unique(np.quantile(rest, np.linspace(0, 1, GROUPS + 1)[1:], method="inverted_cdf").astype(int))
    low = int(rest.min())
    for high in edges.tolist():
        users = (values >= low) & (values <= high) & ((values > 0) | (not alone))
        groups.append(Group(f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}", users))
        low = high + 1
    return groups


def breakdown(table: ReportTable, block: BlockResult, name: str, kind: Kind) -> Chart | None:
    """A metric by group, and the difference from the reference by group; None where all users are alike."""
    details = table.details[block.first_run.run_id]
    groups = groups_of(details.target_frequency if kind == "frequency" else details.history_length)
    if len(groups) < 2:
        return None
    metric = main_metric(table.result.spec.metrics)
    shown, (about, axis_title, column) = full_title(metric), _TITLES[kind]
    ranks = {row.row.label: np.stack([run.run.ranks for run in row.runs]) for row in block.rows}
    reference = block.block.reference
    folded = {
        label: [outcomes(of_seeds[:, group.users], [metric]) for group in groups] for label, of_seeds in ranks.items()
    }
    means = {label: _columns([mean_intervals(one) for one in cells]) for label, cells in folded.items()}
    gains = {}
    for label, cells in folded.items():
        if label != reference:
            pairs = [compare(one, other) for one, other in zip(cells, folded[reference], strict=True)]
            gains[label] = _columns([(pair.difference, pair.low, pair.high) for pair in pairs])
    style = styles(table)

    def plot(axes: list[Axes]) -> None:
        for axis, values in zip(axes, (means, gains), strict=False):
            for label, (value, low, high) in values.items():
                number = list(ranks).index(label)
                shift = 0.6 * (number / max(len(ranks) - 1, 1) - 0.5)
                place = np.asarray(np.arange(len(groups)) + shift, np.float64)
                own = {**style[label], "linestyle": "none"}
                marks_with_intervals(axis, place, value, low, high, label, own)
            axis.set_xticks(range(len(groups)), [group.label for group in groups])
            axis.grid(axis="x", visible=False)
            for edge in np.arange(len(groups) - 1) + 0.5:
                axis.axvline(edge, color=FAINT, linewidth=0.8, zorder=0)
        axes[0].set_ylabel(f"{shown} (%)")
        axes[0].set_ylim(bottom=0)
        if gains:
            axes[1].axhline(0, color=INK, linewidth=1)
            axes[1].set_ylabel("Difference (points)")
        axes[-1].set_xlabel(axis_title)
        legend_below(axes[0])

    lines = []
    for label, (value, low, high) in means.items():
        for index, group in enumerate(groups):
            line = [label, group.label, f"{group.users.sum():,}", f"{value[index]:.2f}"]
            line.append(f"{low[index]:.2f} to {high[index]:.2f}")
            if label in gains:
                gain, below, above = (signed(float(part[index]), 2) for part in gains[label])
                line += [gain, f"{below} to {above}"]
            else:
                line += ["reference", "reference"]
            lines.append(line)
    columns = (
        "Method",
        column,
        "Users",
        f"{shown} (%)",
        "95 % interval",
        f"Difference from {reference} (points)",
        "95 % interval",
    )
    ends = "; ".join(f"{label} from {value[0]:.1f} to {value[-1]:.1f}" for label, (value, _, _) in means.items())
    description = f"From users with {groups[0].label} to users with {groups[-1].label}: {ends}."
    below = f"Below, the difference from {reference}. " if gains else ""
    reading = (
        f"{'Fifths of the users' if len(groups) >= GROUPS else 'Users'} by {about}. {below}Intervals: 95 %, "
        "bootstrap over the users of a group, each for itself and not corrected for how many there are: they show "
        "where a difference comes from, and test nothing."
    )
    drawing = draw(
        name, f"{shown} by {about} (%)", description, plot, rows=2 if gains else 1, sharex=True,
        width=WIDTH, height=(4.9 if gains else 3.1) + legend_height(len(ranks)),
    )  # fmt: skip
    return Chart(drawing, numbers(f"{name}-numbers", f"{shown} by {about}", columns, lines, text=2), reading)


def _columns(cells: list[tuple[Float64, Float64, Float64]]) -> tuple[Float64, ...]:
    """Value, low and high of one metric, each (groups,), in percent."""
    return tuple(100 * np.array([float(cell[part][0]) for cell in cells]) for part in range(3))


def winners(table: ReportTable, block: BlockResult, name: str) -> list[Chart]:
    """How many users each method serves better and worse than the reference, and by how much."""
    metric = _deepest_ndcg(table.result.spec.metrics)
    shown, reference = full_title(metric), block.block.reference
    values = {
        row.row.label: 100 * metric_values(np.stack([run.run.ranks for run in row.runs]), [metric])[..., 0].mean(axis=0)
        for row in block.rows
    }
    gains = {label: own - values[reference] for label, own in values.items() if label != reference}
    if not gains:
        return []
    shares = {
        label: (float((g > 0).mean()), float((g == 0).mean()), float((g < 0).mean())) for label, g in gains.items()
    }
    sums = {label: {1: float(g.clip(min=0).mean()), -1: float(g.clip(max=0).mean())} for label, g in gains.items()}

    def plot_shares(axes: list[Axes]) -> None:
        left = np.zeros(len(shares))
        parts = zip(("better", "the same", "worse"), (COLOURS[0], FAINT, COLOURS[1]), (PAPER, INK, PAPER), strict=True)
        for part, (label, colour, ink) in enumerate(parts):
            widths = np.array([100 * share[part] for share in shares.values()])
            axes[0].barh(range(len(shares)), widths, left=left, color=colour, label=label, height=0.62)
            for place, (start, width) in enumerate(zip(left, widths, strict=True)):
                if width >= 8:
                    text = axes[0].text(start + width / 2, place, f"{width:.0f}", color=ink, fontsize=9)
                    text.set(horizontalalignment="center", verticalalignment="center")
            left += widths
        axes[0].set_yticks(range(len(shares)), list(shares))
        axes[0].set(xlabel="Users (%)", xlim=(0, 100), ylim=(len(shares) - 0.5, -0.5))
        axes[0].grid(visible=False)
        axes[0].tick_params(axis="y", length=0)
        legend_below(axes[0], columns=3)

    def plot_gains(axes: list[Axes]) -> None:
        for sign, colour, label in (
            (1, COLOURS[0], "gain of those served better"),
            (-1, COLOURS[1], "loss of those served worse"),
        ):
            widths = [sums[name][sign] for name in sums]
            axes[0].barh(range(len(sums)), widths, color=colour, label=label, height=0.62)
        means = [float(gain.mean()) for gain in gains.values()]
        own: dict[str, Any] = {"linestyle": "none", "marker": "D", "color": INK, "markeredgecolor": PAPER}
        axes[0].plot(means, range(len(means)), label="mean difference", **own)
        axes[0].axvline(0, color=INK, linewidth=1)
        axes[0].set_yticks(range(len(sums)), list(sums))
        axes[0].set(xlabel=f"Points of mean {shown}", ylim=(len(sums) - 0.5, -0.5))
        axes[0].grid(axis="y", visible=False)
        axes[0].tick_params(axis="y", length=0)
        legend_below(axes[0])

    said = "; ".join(
        f"{label} better for {100 * up:.0f} %, worse for {100 * down:.0f} %" for label, (up, _, down) in shares.items()
    )
    parts = "; ".join(f"{name}: winners {signed(g[1], 2)}, losers {signed(g[-1], 2)}" for name, g in sums.items())
    lines = [
        (label, *(f"{100 * share:.1f}" for share in shares[label]), *(signed(float(part), 2) for part in
         (sums[label][1], sums[label][-1], gain.mean(), *np.quantile(gain, (0.05, 0.25, 0.5, 0.75, 0.95)))))
        for label, gain in gains.items()
    ]  # fmt: skip
    columns = ("Method", "Better (% of users)", "The same (%)", "Worse (%)", "Winners' part (points)", "Losers' part",
               "Mean (points)", "5th percentile", "25th",
               "Median", "75th", "95th percentile")  # fmt: skip
    view = numbers(f"{name}-numbers", f"Gain a user in {shown}, against {reference}", columns, lines)
    several = (
        " A user's value is the mean over a method's seeds." if any(len(row.runs) > 1 for row in block.rows) else ""
    )
    return [
        Chart(
            draw(
                f"{name}-shares", f"Who wins: users served better and worse than by {reference} (%)", f"{said}.",
                plot_shares, width=WIDTH, height=1.1 + 0.34 * len(shares),
            ),
            view,
            f"By each user's {shown}, that is 1 / log2(rank + 1) down to rank {Metric.parse(metric).cutoff or 'any'}; "
            f"users whose item both methods miss are the same.{several}",
        ),
        Chart(
            draw(
                f"{name}-gains", f"By how much: gains and losses in {shown}, against {reference} (points)",
                f"{parts}.",
                plot_gains, width=WIDTH, height=1.35 + 0.34 * len(sums),
            ),
            numbers(f"{name}-gains-numbers", f"Gain a user in {shown}, against {reference}", columns, lines),
            "What the winners' gains and the losers' losses add to the mean over all users; the mark is their sum, the "
            "difference that the table shows. A small mark between long bars: the methods serve different users.",
        ),
    ]  # fmt: skip


def _deepest_ndcg(metrics: tuple[str, ...]) -> str:
    """The NDCG that sees most ranks, or the first metric where there is none."""
    depths = {Metric.parse(metric).cutoff or 0: metric for metric in metrics if Metric.parse(metric).kind == "ndcg"}
    return depths[max(depths)] if depths else metrics[0]
