"""What a table shows, before it is Markdown, LaTeX, HTML or plain text: cells with text, emphasis and marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmark.evaluation.metrics import Float64, Metric

if TYPE_CHECKING:
    from benchmark.analysis.tables import BlockResult, RowResult, TableResult

LEVEL = 0.05
BETTER, WORSE = "†", "‡"
NONE = "\N{EN DASH}"  # no number
MINUS = "\N{MINUS SIGN}"
AS_PUBLISHED = "as published"

Emphasis = Literal["", "best", "second"]


@dataclass(frozen=True)
class Cell:
    """text: what it says; emphasis: its place in its column and section; mark: a sign that a note explains."""

    text: str
    emphasis: Emphasis = ""
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """quoted: its numbers are somebody else's."""

    cells: tuple[Cell, ...]
    quoted: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class View:
    """A table to render. The first text_columns columns hold text, the others numbers.

    emphasised: some of its cells have an emphasis, which each format explains in its own words.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    text_columns: int = 1
    emphasised: bool = False


def methods_view(result: TableResult) -> View:
    """The paper's table: a line a method, and below it the published numbers, where there are any."""
    metrics = result.spec.metrics
    columns = (
        "Method", *map(metric_title, metrics), "Impv. (avg)", "Negatives", "Batch", "Length", "Parameters", "Seeds",
    )  # fmt: skip
    sections = tuple(Section(_block_title(block), tuple(_method_lines(block, metrics))) for block in result.blocks)
    return View(result.spec.name, result.spec.title, columns, sections, _method_notes(result), emphasised=True)


def pairs_view(result: TableResult) -> View:
    """Each method against its block's reference: effect sizes first, the p-value last."""
    columns = (
        "Method", "Metric", "Difference (points)", "Relative difference", "95 % interval (points)",
        "95 % interval (relative)", "p (Holm)",
    )  # fmt: skip
    sections = []
    for block in result.blocks:
        lines = [line for row in block.rows for line in pair_lines(row, block_decimals(block))]
        if lines:
            sections.append(Section(f"{block.block.title}: against {block.block.reference}", tuple(lines)))
    notes = (
        "Differences of percentages, in points, and relative to the reference's value. Intervals: paired "
        "bootstrap over users, 10,000 resamples, 95 % percentile interval, each for itself.",
        f"p: paired t-test over users, Holm's correction over the {_count(result.tests, 'test')} of this table. "
        "Users are compared by their mean over a method's seeds.",
        _single_seed_note(result),
    )
    title = f"{result.spec.title}: differences"
    return View(f"{result.spec.name}-pairs", title, columns, tuple(sections), notes, text_columns=2)


def metric_title(name: str) -> str:
    """R@10, N@10 or MRR, as the paper heads its columns."""
    metric = Metric.parse(name)
    return "MRR" if metric.cutoff is None else f"{metric.kind[0].upper()}@{metric.cutoff}"


def block_decimals(block: BlockResult) -> int:
    """2, or 3 where the published numbers beside ours have 3."""
    return max([2, *(min(3, row.published.decimals) for row in block.rows if row.published)])


def signed(value: float, decimals: int) -> str:
    """With its sign, and a minus as long as the plus; nothing before a zero, a dash for no number."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:+.{decimals}f}"
    return text.replace("-", MINUS) if text.strip("+-0.") else text[1:]


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _block_title(block: BlockResult) -> str:
    run = block.first_run
    return f"{block.block.title} ({run.users:,} users, protocol {run.protocol}, split {run.dataset_hash[:12]})"


def _method_lines(block: BlockResult, metrics: Sequence[str]) -> list[Line]:
    decimals = block_decimals(block)
    places = [_places([f"{100 * row.mean[i]:.{decimals}f}" for row in block.rows]) for i in range(len(metrics))]
    lines = []
    for number, row in enumerate(block.rows):
        cells = [Cell(row.row.label)]
        for index in range(len(metrics)):
            text = f"{100 * row.mean[index]:.{decimals}f}"
            if row.deviation is not None:
                text += f" ± {100 * row.deviation[index]:.{decimals}f}"
            cells.append(Cell(text, places[index][number], _mark(row, index)))
        pair, run = row.comparison, row.row.runs[0]
        cells.append(Cell(f"{signed(100 * pair.improvement, 2)} %" if pair else "reference"))
        counts = (run.negatives, run.global_batch, run.sequence_length)
        cells.extend(Cell(NONE if count is None else f"{count:,}") for count in counts)
        seeds = len(row.runs)
        cells += [Cell(magnitude(run.parameters)), Cell("single seed" if seeds == 1 else str(seeds))]
        lines.append(Line(tuple(cells)))
        if row.published:
            known = row.published
            digits = [known.digits.get(name) or NONE for name in metrics]
            improvement = NONE if known.improvement is None else f"{signed(known.improvement, 2)} %"
            others = [improvement, known.negatives or NONE, known.batch or NONE, NONE, NONE, NONE]
            lines.append(Line(tuple(Cell(text) for text in (AS_PUBLISHED, *digits, *others)), quoted=True))
    return lines


def _method_notes(result: TableResult) -> tuple[str, ...]:
    decimals = sorted({block_decimals(block) for block in result.blocks})
    references = dict.fromkeys(block.block.reference for block in result.blocks)
    notes = [
        f"Metrics are percentages with {' or '.join(map(str, decimals))} decimals: means over users of R (recall) and "
        "N (NDCG) of the one held-out item, ranked in the full catalogue.",
        f"Impv. (avg): mean over the {_count(len(result.spec.metrics), 'metric')} of the relative difference from the "
        f"block's reference ({', '.join(references)}).",
    ]
    if result.tests:
        notes.append(
            f"{BETTER} better, {WORSE} worse than the reference with p < {LEVEL} (paired t-test over users, Holm's "
            f"correction over the {_count(result.tests, 'test')} of this table)."
        )
    if any(row.deviation is not None for block in result.blocks for row in block.rows):
        notes.append("±: standard deviation over seeds.")
    notes.append(_single_seed_note(result))
    if result.spec.published and any(row.published for block in result.blocks for row in block.rows):
        notes.append(f"{AS_PUBLISHED}: {result.spec.published.name}; not in the running for best and second best.")
    return tuple(notes)


def _single_seed_note(result: TableResult) -> str:
    """Empty where every row has several seeds."""
    if all(row.deviation is not None for block in result.blocks for row in block.rows):
        return ""
    return "Single seed: intervals and tests are over users and do not cover how a method varies with seeds."


def pair_lines(row: RowResult, decimals: int) -> list[Line]:
    """A line a metric of a row against its reference, and one of their mean; none for the reference itself."""
    pair = row.comparison
    if pair is None or row.p_holm is None:
        return []
    lines = []
    for index, metric in enumerate(pair.metrics):
        texts = (
            row.row.label,
            metric_title(metric),
            signed(100 * pair.difference[index], decimals),
            _percent(pair.relative[index]),
            _interval(100 * pair.low[index], 100 * pair.high[index], decimals),
            _interval(100 * pair.relative_low[index], 100 * pair.relative_high[index], 2, " %"),
            p_text(float(row.p_holm[index])),
        )
        lines.append(Line(tuple(Cell(text) for text in texts)))
    bounds = _interval(100 * pair.improvement_low, 100 * pair.improvement_high, 2, " %")
    average = (row.row.label, "Impv. (avg)", NONE, _percent(pair.improvement), NONE, bounds, NONE)
    return [*lines, Line(tuple(Cell(text) for text in average))]


def _mark(row: RowResult, index: int) -> str:
    if row.comparison is None or row.p_holm is None or not row.p_holm[index] < LEVEL:
        return ""
    return BETTER if row.comparison.difference[index] > 0 else WORSE


def _places(texts: Sequence[str]) -> list[Emphasis]:
    """Best and second best by the numbers as they are shown, so that equal numbers look equal."""
    values: Float64 = np.array([float(text) for text in texts])
    ranked = sorted(set(values.tolist()), reverse=True)
    if len(ranked) == 1:
        return [""] * len(texts)
    return ["best" if value == ranked[0] else "second" if value == ranked[1] else "" for value in values]


def _percent(fraction: float) -> str:
    text = signed(100 * fraction, 2)
    return text if text == NONE else f"{text} %"


def _interval(low: float, high: float, decimals: int, unit: str = "") -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f"{signed(low, decimals)} to {signed(high, decimals)}{unit}"


def magnitude(count: int | None) -> str:
    """1.10B, 134.5M, 231K or 0."""
    if count is None:
        return NONE
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"
