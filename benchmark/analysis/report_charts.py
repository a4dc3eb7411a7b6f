"""A report's charts of effect sizes, training, ranks and cost, each with the table of numbers that says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmark.analysis.figures import FAINT, INK, Drawing, draw, series
from benchmark.analysis.report_inputs import ReportTable
from benchmark.analysis.report_runs import RunDetails
from benchmark.analysis.tables import BlockResult, RowResult
from benchmark.analysis.views import MINUS, Cell, Line, Section, View, metric_title, pair_lines, signed
from benchmark.evaluation.metrics import Float64, Metric

DEPTHS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)
WIDTH = 4.8  # inches: on a phone the texts then have their own size
MOST_EFFECTS = 60  # rows of a forest plot that has every metric


@dataclass(frozen=True)
class Chart:
    """numbers: the table that says the same as the drawing. reading: how to read it, and what not to read into it."""

    drawing: Drawing
    numbers: View
    reading: str


def styles(table: ReportTable) -> dict[str, dict[str, Any]]:
    """Each method's colour, marker and dash, by its label: the same in every chart of a table."""
    labels = dict.fromkeys(row.row.label for block in table.result.blocks for row in block.rows)
    return {label: series(number) for number, label in enumerate(labels)}


def main_metric(metrics: Sequence[str]) -> str:
    """The metric of charts that show one: NDCG@10, or else the first NDCG, or else the first."""
    parsed = [metric for metric in metrics if Metric.parse(metric).kind == "ndcg"]
    return "ndcg@10" if "ndcg@10" in metrics else (parsed or list(metrics))[0]


def full_title(metric: str) -> str:
    """Recall@10, NDCG@10 or MRR."""
    parsed = Metric.parse(metric)
    return {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR"}[parsed.kind] + (
        f"@{parsed.cutoff}" if parsed.cutoff else ""
    )


def numbers(
    name: str, title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], *notes: str, text: int = 1
) -> View:
    """A table of texts without emphasis. text: how many of its first columns hold text."""
    rows = tuple(Line(tuple(map(Cell, line))) for line in lines)
    return View(name, title, tuple(columns), (Section("", rows),), notes, text_columns=text)


def legend_below(axes: Axes, columns: int = 2) -> None:
    """A legend of the axes' series under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles, labels, loc="outside lower left", ncols=min(columns, len(labels)), handlelength=3)


def marks_with_intervals(
    axis: Axes, places: Float64, value: Float64, low: Float64, high: Float64, label: str, style: dict[str, Any]
) -> None:
    """Marks, joined by the style's line, each with the interval from low to high as a vertical line."""
    axis.plot(places, value, label=label, **style)
    axis.vlines(places, low, high, color=style["color"], linewidth=1.1)


def legend_height(entries: int) -> float:
    return 0.21 * ((entries + 1) // 2) + 0.1


def effects(table: ReportTable, block: BlockResult, name: str) -> Chart | None:
    """A forest plot of relative differences from the reference; None where there is nothing to compare."""
    rows = [row for row in block.rows if row.comparison is not None]
    if not rows:
        return None
    metrics = table.result.spec.metrics
    everything = len(rows) * (len(metrics) + 1) <= MOST_EFFECTS
    entries: list[tuple[str, float, float, float, str, bool]] = []
    for row in rows:
        pair = row.comparison
        assert pair is not None
        label = row.row.label
        entries.append((label, pair.improvement, pair.improvement_low, pair.improvement_high, label, True))
        if everything:
            bounds = zip(metrics, pair.relative, pair.relative_low, pair.relative_high, strict=True)
            entries += [(metric_title(m), float(v), float(lo), float(hi), label, False) for m, v, lo, hi in bounds]
    style = styles(table)
    gap = 0.55
    places = np.cumsum([1 + (gap if mean and i else 0) for i, (*_, mean) in enumerate(entries)])

    def plot(axes: list[Axes]) -> None:
        axis = axes[0]
        axis.axvline(0, color=INK, linewidth=1)
        for place, (_, value, low, high, label, mean) in zip(places, entries, strict=True):
            own = {"color": style[label]["color"], "marker": "D" if mean else "o", "markersize": 6.5 if mean else 4}
            axis.plot([100 * low, 100 * high], [place, place], color=own["color"], linewidth=2.2 if mean else 1.2)
            axis.plot([100 * value], [place], linestyle="none", **own)
        axis.set_yticks(places, [entry[0] for entry in entries])
        for text, entry in zip(axis.get_yticklabels(), entries, strict=True):
            text.set_fontweight("bold" if entry[-1] else "normal")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.set_ylim(places[-1] + 0.7, places[0] - 0.7)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:+g}".replace("-", MINUS) if x else "0")
        axis.set_xlabel(f"Difference relative to {block.block.reference} (%)")

    best = max(rows, key=lambda row: row.comparison.improvement if row.comparison else 0)
    title = f"Effect sizes: difference from {block.block.reference} (%), with 95 % intervals"
    said = "; ".join(_effect_text(row) for row in rows)
    drawing = draw(
        name, title, f"Mean relative difference over {len(metrics)} metrics. {said}. Largest: {best.row.label}.",
        plot, width=WIDTH, height=0.9 + 0.185 * float(places[-1]),
    )  # fmt: skip
    decimals = 3 if any(row.published and row.published.decimals > 2 for row in block.rows) else 2
    view = View(
        f"{name}-numbers",
        f"Differences from {block.block.reference}",
        ("Method", "Metric", "Difference (points)", "Relative difference", "95 % interval (points)",
         "95 % interval (relative)", "p (Holm)"),
        (Section("", tuple(line for row in block.rows for line in pair_lines(row, decimals))),),
        (),
        text_columns=2,
    )  # fmt: skip
    reading = "Diamonds: the mean of the relative differences over the table's metrics (Impv.). "
    reading += "Dots: each metric. " if everything else "Each metric is in the numbers below. "
    reading += (
        "Lines: 95 % intervals of a paired bootstrap over users, each for itself; one that crosses 0 is compatible "
        "with no difference."
    )
    return Chart(drawing, view, reading)


def _effect_text(row: RowResult) -> str:
    pair = row.comparison
    assert pair is not None
    low, high = signed(100 * pair.improvement_low, 1), signed(100 * pair.improvement_high, 1)
    return f"{row.row.label} {signed(100 * pair.improvement, 1)} % ({low} to {high})"


def training(table: ReportTable, block: BlockResult, name: str) -> list[Chart]:
    """Training loss, and the validation metric that weights were chosen by, of the methods that record them."""
    charts = []
    if curves := _recorded(table, block, "loss"):
        lines: list[tuple[str, ...]] = [_training_line(label, runs, "loss", 1) for label, runs in curves.items()]
        columns: tuple[str, ...] = ("Method", "Seeds", "Epochs", "Epoch kept", "Loss, first epoch", "Loss, last epoch")
        charts.append(
            Chart(
                _curves(table, curves, "loss", f"{name}-loss", "Training loss by epoch", "Training loss (nats)", 1),
                numbers(f"{name}-loss-numbers", "Training loss", columns, lines),
                "Mean over an epoch's steps, a line a seed. Losses compare only between methods that are trained with "
                "the same objective and number of negatives.",
            )
        )
    metric = _validation_metric(curves)
    if metric is not None:
        shown = _recorded(table, block, metric)
        lines = [
            (*_training_line(label, runs, metric, 100), _over_seeds([100 * _at_kept(run, metric) for run in runs]))
            for label, runs in shown.items()
        ]
        title = full_title(metric)
        columns = ("Method", "Seeds", "Epochs", "Epoch kept", f"{title}, first epoch (%)", f"{title}, last epoch (%)",
                   f"{title}, kept epoch (%)")  # fmt: skip
        heading = f"{title} on the validation items by epoch (%)"
        charts.append(
            Chart(
                _curves(table, shown, metric, f"{name}-validation", heading, f"Validation {title} (%)", 100),
                numbers(f"{name}-validation-numbers", f"{title} on the validation items", columns, lines),
                "A line a seed; the mark is the epoch whose weights were kept and ranked on the test items. A line "
                "that ends early stopped improving, or reached the most epochs that its method may train for.",
            )
        )
    return charts


def _recorded(table: ReportTable, block: BlockResult, column: str) -> dict[str, list[RunDetails]]:
    """Runs of each method, by label, whose training.csv has the column."""
    known = {row.row.label: [table.details[run.run.run_id] for run in row.runs] for row in block.rows}
    return {label: runs for label, runs in known.items() if all(column in run.curve for run in runs)}


def _validation_metric(curves: Mapping[str, Sequence[RunDetails]]) -> str | None:
    """The metric that weights are selected by, where every run with a curve of metrics has it."""
    runs = [run for group in curves.values() for run in group if any("@" in column for column in run.curve)]
    if not runs:
        return None
    wanted = str((runs[0].settings.get("training") or {}).get("selection_metric", "ndcg@200"))
    common = [column for column in runs[0].curve if "@" in column and all(column in run.curve for run in runs)]
    return wanted if wanted in common else common[-1] if common else None


def _kept(run: RunDetails) -> int:
    """The epoch, from 1, whose weights were ranked: the best, or the last where none was selected."""
    best = int(run.record.get("best_epoch") or 0)
    return best if best in run.curve["epoch"] else int(run.curve["epoch"][-1])


def _at_kept(run: RunDetails, column: str) -> float:
    return float(run.curve[column][run.curve["epoch"] == _kept(run)][0])


def _curves(
    table: ReportTable,
    curves: Mapping[str, Sequence[RunDetails]],
    column: str,
    name: str,
    title: str,
    axis: str,
    scale: int,
) -> Drawing:
    style = styles(table)

    def plot(axes: list[Axes]) -> None:
        for label, runs in curves.items():
            own = {**style[label], "markersize": 0, "linewidth": 1.4}
            for number, run in enumerate(runs):
                epochs, values = run.curve["epoch"], scale * run.curve[column]
                axes[0].plot(epochs, values, label=label if number == 0 else None, **own)
                mark = {**own, "markersize": 6, "linestyle": "none"}
                axes[0].plot([_kept(run)], [scale * _at_kept(run, column)], **mark)
        axes[0].set(xlabel="Epoch", ylabel=axis)
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(axes[0])

    said = []
    for label, runs in curves.items():
        first, last = (_over_seeds([scale * run.curve[column][place] for run in runs]) for place in (0, -1))
        said.append(f"{label} from {first} to {last} in {_span([len(run.curve['epoch']) for run in runs])} epochs")
    return draw(name, title, f"{'; '.join(said)}.", plot, width=WIDTH, height=3.1 + legend_height(len(curves)))


def _training_line(label: str, runs: Sequence[RunDetails], column: str, scale: int) -> tuple[str, ...]:
    kept = _span([_kept(run) for run in runs])
    if all((run.settings.get("training") or {}).get("selection") == "last" for run in runs):
        kept += " (last)"
    ends = [_over_seeds([scale * run.curve[column][place] for run in runs]) for place in (0, -1)]
    return (label, str(len(runs)), _span([len(run.curve["epoch"]) for run in runs]), kept, *ends)


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}\N{EN DASH}{max(values)}"


def _over_seeds(values: Sequence[float]) -> str:
    """Their mean, and their standard deviation where there are several."""
    text = f"{np.mean(values):.2f}"
    return f"{text} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else text


def ranks(table: ReportTable, block: BlockResult, name: str) -> Chart:
    """The share of users whose held-out item is among the first K, for every K."""
    style = styles(table)
    pooled = {row.row.label: np.sort(np.concatenate([run.run.ranks for run in row.runs])) for row in block.rows}
    deepest = max(float(values[-1]) for values in pooled.values())
    grid = np.unique(np.round(np.geomspace(1, deepest, 240)))

    def within(values: Float64, depth: Any) -> Any:
        return 100 * np.searchsorted(values, depth, side="right") / len(values)

    def plot(axes: list[Axes]) -> None:
        for label, values in pooled.items():
            axes[0].plot(grid, within(values, grid), label=label, **{**style[label], "markevery": 0.12})
        for cutoff in sorted({Metric.parse(metric).cutoff or 0 for metric in table.result.spec.metrics} - {0}):
            axes[0].axvline(cutoff, color=FAINT, linewidth=1.2, zorder=0)
        axes[0].set(
            xscale="log", xlabel="K, rank in the full catalogue", ylabel="Users with rank up to K (%)", ylim=(0, 100)
        )
        axes[0].xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes[0].minorticks_off()
        legend_below(axes[0])

    depths = [depth for depth in DEPTHS if depth < deepest]
    lines = [
        (label, *(f"{within(values, depth):.1f}" for depth in depths),
         *(f"{value:,.0f}" for value in np.quantile(values, (0.25, 0.5, 0.75))))
        for label, values in pooled.items()
    ]  # fmt: skip
    columns = ("Method", *(f"K = {depth:,} (%)" for depth in depths), "First quartile", "Median rank", "Third quartile")
    medians = "; ".join(f"{label} {np.median(values):,.0f}" for label, values in pooled.items())
    return Chart(
        draw(
            name, "Ranks of the held-out items: users with rank up to K (%)", f"Median rank: {medians}.", plot,
            width=WIDTH, height=3.1 + legend_height(len(pooled)),
        ),
        numbers(f"{name}-numbers", "Distribution of ranks", columns, lines),
        "Where a line crosses K it reads Recall@K; a line that is higher everywhere is better at every K. "
        "Seeds are pooled. Vertical lines: the table's cutoffs.",
    )  # fmt: skip
