"""What training took, what it gave for it, and how far results are from published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    numbers,
    styles,
)
from benchmark.analysis.report_inputs import ReportTable
from benchmark.analysis.tables import BlockResult
from benchmark.analysis.views import NONE, View, magnitude, metric_title, signed


def cost(table: ReportTable, block: BlockResult, name: str) -> tuple[View, Chart | None]:
    """What training took; and quality against time, where all of it was on one kind of device."""
    lines, points = [], {}
    longest = max((one.run.hours or 0.0 for row in block.rows for one in row.runs), default=0.0)
    unit, scale = ("hours", 1) if longest > 2 else ("minutes", 60)
    metric = main_metric(table.result.spec.metrics)
    for row in block.rows:
        runs = [run.run for run in row.runs]
        records = [table.details[run.run_id].record for run in runs]
        hours = [run.hours for run in runs if run.hours]
        if hours and runs[0].epochs:
            points[row.row.label] = (
                hours,
                [100 * run.value[table.result.csv_metrics.index(metric)] for run in row.runs],
            )
        epochs = [3600 * run.hours / run.epochs for run in runs if run.hours and run.epochs]
        lines.append(
            (
                row.row.label, " / ".join(dict.fromkeys(run.device or "unknown" for run in runs)),
                magnitude(runs[0].parameters), _mean([run.epochs for run in runs], "{:.0f}"),
                _mean([scale * hour for hour in hours] if runs[0].epochs else [], "{:.2f}"), _mean(epochs, "{:.1f}"),
                _mean([record.get("items_per_second") for record in records], "{:,.0f}"),
                _mean([record.get("tokens") for record in records], "{:,.0f}"),
                _mean([record.get("peak_memory_bytes", 0) / 2**30 or None for record in records], "{:.2f}"),
            )
        )  # fmt: skip
    columns = ("Method", "Device", "Parameters", "Epochs", unit.capitalize(), "Seconds an epoch", "Items a second",
               "Tokens", "Peak memory (GiB)")  # fmt: skip
    notes = (
        f"Means over seeds. {unit.capitalize()}: of training with its validation, as a clock on the wall counts them; "
        "other work on the same machine lengthens them. Items a second: items embedded in training. Peak memory: "
        "allocated on a GPU, or of the process on a CPU.",
    )
    used = [index for index in range(len(columns)) if index < 2 or any(line[index] != NONE for line in lines)]
    view = numbers(
        f"{name}-numbers", f"{block.block.title}: speed and cost of training", [columns[i] for i in used],
        [[line[i] for i in used] for line in lines], *notes, text=2,
    )  # fmt: skip
    devices = {run.run.device for row in block.rows for run in row.runs}
    if len(devices) != 1 or len(points) < 2:
        return view, None
    style = styles(table)

    def plot(axes: list[Axes]) -> None:
        for label, (hours, values) in points.items():
            own = {**style[label], "linestyle": "none"}
            axes[0].plot([scale * hour for hour in hours], values, label=label, markersize=7, **own)
        axes[0].set(xlabel=f"{unit.capitalize()} of training, a run", ylabel=f"{full_title(metric)} (%)")
        axes[0].margins(0.12)
        known = [hour for hours, _ in points.values() for hour in hours]
        if max(known) > 10 * min(known):
            axes[0].set_xscale("log")
            axes[0].xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes[0].minorticks_off()
        else:
            axes[0].set_xlim(left=0)
        legend_below(axes[0])

    said = "; ".join(
        f"{label} {scale * np.mean(hours):.1f} {unit}, {np.mean(values):.2f} %"
        for label, (hours, values) in points.items()
    )
    drawing = draw(
        name, f"Quality against time: {full_title(metric)} (%) by {unit} of training", f"{said}.", plot,
        width=WIDTH, height=3.1 + legend_height(len(points)),
    )  # fmt: skip
    reading = f"A mark a run, on {devices.pop()}. Up and left is better. Methods that train nothing are left out."
    return view, Chart(drawing, view, reading)


def _mean(values: Sequence[Any], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(float(np.mean(known))) if known else NONE


def against_published(table: ReportTable, block: BlockResult, name: str) -> View | None:
    """Relative differences from published numbers; None where there are none beside the block's rows."""
    metrics = table.result.spec.metrics
    lines = []
    for row in block.rows:
        if row.published is None:
            continue
        known = [metric for metric in metrics if metric in row.published.metrics]
        relative = {m: 100 * (row.mean[metrics.index(m)] / row.published.metrics[m] - 1) for m in known}
        cells = [f"{signed(relative[metric], 2)} %" if metric in known else NONE for metric in metrics]
        spread = f"{signed(min(relative.values()), 1)} to {signed(max(relative.values()), 1)} %" if known else NONE
        lines.append([row.row.label, row.published.reported, *cells, spread])
    if not lines:
        return None
    columns = ["Method", "Published is", *map(metric_title, metrics), "Range"]
    if not any(line[1] for line in lines):
        columns, lines = columns[:1] + columns[2:], [line[:1] + line[2:] for line in lines]
    source = table.result.spec.published.name if table.result.spec.published else "the table's published numbers"
    note = (
        f"What was measured here, relative to {source}. There is no interval: published numbers come without users' "
        "ranks. What seeds do to the numbers measured here is ± in the table above, where there are several."
    )
    return numbers(
        f"{name}-published",
        f"{block.block.title}: difference from published numbers",
        columns,
        lines,
        note,
        text=1 + (columns[1] == "Published is"),
    )
