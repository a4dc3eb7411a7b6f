"""How results move with the amount of data, in a table whose blocks are the same methods on data of several sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from benchmark.analysis.figures import draw
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
from benchmark.analysis.views import NONE

FEWEST_SIZES = 3


def scale(table: ReportTable, training_interactions: Mapping[str, int]) -> Chart | None:
    """A curve a method over data sets, which must have three sizes; None for other tables.

    training_interactions: by the hash of the split, of the data sets whose cards are known. Where one is not, the size
    is the number of users.
    """
    blocks = table.result.blocks
    hashes = [block.first_run.dataset_hash for block in blocks]
    known = all(split in training_interactions for split in hashes)
    sizes = [training_interactions[split] for split in hashes] if known else [block.first_run.users for block in blocks]
    metric = main_metric(table.result.spec.metrics)
    column = table.result.spec.metrics.index(metric)
    curves: dict[str, dict[int, tuple[float, float, float]]] = {}
    for block, size in zip(blocks, sizes, strict=True):
        for row in block.rows:
            seeds = [100 * float(run.value[table.result.csv_metrics.index(metric)]) for run in row.runs]
            curves.setdefault(row.row.label, {})[size] = (100 * float(row.mean[column]), min(seeds), max(seeds))
    curves = {label: points for label, points in curves.items() if len(points) >= FEWEST_SIZES}
    if not curves:
        return None
    style, name = styles(table), f"{table.result.spec.name}-scale"
    what = "Training interactions" if known else "Users"
    ordered = sorted(set(sizes))

    def plot(axes: list[Axes]) -> None:
        for label, points in curves.items():
            places = sorted(points)
            means, lows, highs = (np.array([points[place][part] for place in places]) for part in range(3))
            marks_with_intervals(axes[0], np.array(places, float), means, lows, highs, label, style[label])
        axes[0].set(xscale="log", xlabel=what, ylabel=f"{full_title(metric)} (%)")
        axes[0].set_xticks(ordered, [f"{size:,}" for size in ordered])
        axes[0].minorticks_off()
        legend_below(axes[0])

    lines = [
        (label, *(f"{points[size][0]:.2f}" if size in points else NONE for size in ordered))
        for label, points in curves.items()
    ]
    said = "; ".join(
        f"{label} from {points[min(points)][0]:.2f} to {points[max(points)][0]:.2f} %"
        for label, points in curves.items()
    )
    title = f"{full_title(metric)} (%) by amount of data"
    return Chart(
        draw(name, title, f"From {ordered[0]:,} to {ordered[-1]:,} {what.lower()}: {said}.", plot, width=WIDTH,
             height=3.1 + legend_height(len(curves))),
        numbers(f"{name}-numbers", title, ("Method", *(f"{size:,} {what.lower()}" for size in ordered)), lines),
        "A mark is the mean over seeds and a bar their range. Data sets of other sizes have other users and "
        "catalogues, and a larger catalogue makes every rank harder: compare methods at one size, and slopes "
        "between methods, not a method's numbers at two sizes.",
    )  # fmt: skip
