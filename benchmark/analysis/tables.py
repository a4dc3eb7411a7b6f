"""A table of results: from its runs to means, improvements, intervals and tests, and to its files.

A table has blocks, one a data set; a block has rows, one a method, and one of them is the reference that the others are
compared with. A row has a run a seed: it is compared by each user's mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.analysis import rendering, result_csv, views
from benchmark.analysis.published import PublishedRow, find_published
from benchmark.analysis.runs import LoadedRun, check_comparable, load_run
from benchmark.analysis.significance import Comparison, compare, holm, mean_intervals, outcomes
from benchmark.errors import UserError
from benchmark.evaluation.metrics import DEFAULT_METRICS, Float64
from benchmark.files import write_text

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable


@dataclass(frozen=True)
class TableSpec:
    """name: of its files. metrics: its columns. published: the CSV of published numbers that rows refer to."""

    name: str
    title: str
    metrics: tuple[str, ...]
    published: Path | None = None


@dataclass(frozen=True)
class TableRow:
    """label: in this table. runs: one a seed. published: columns and values that pick out its published numbers."""

    label: str
    runs: tuple[LoadedRun, ...]
    variant: str = ""
    published: Mapping[str, str] | None = None


@dataclass(frozen=True)
class TableBlock:
    """reference: label of the row that improvements and tests are against."""

    dataset: str
    title: str
    rows: tuple[TableRow, ...]
    reference: str


@dataclass(frozen=True)
class RunResult:
    """A run's means over users and their 95 % intervals, (m,) in the order of TableResult.csv_metrics."""

    run: LoadedRun
    value: Float64
    low: Float64
    high: Float64


@dataclass(frozen=True)
class RowResult:
    """mean, deviation: (m,) over seeds, of the table's metrics; deviation (n - 1 in the divisor) is None for one seed.

    comparison: with the block's reference, None for that row itself; p_holm: (m,) its p-values, corrected over the
    whole table.
    """

    row: TableRow
    runs: tuple[RunResult, ...]
    mean: Float64
    deviation: Float64 | None
    published: PublishedRow | None
    comparison: Comparison | None
    p_holm: Float64 | None = None


@dataclass(frozen=True)
class BlockResult:
    block: TableBlock
    rows: tuple[RowResult, ...]

    @property
    def first_run(self) -> LoadedRun:
        return self.block.rows[0].runs[0]


@dataclass(frozen=True)
class TableResult:
    """csv_metrics: the usual metrics and the table's; tests: how many p-values Holm's correction is over."""

    spec: TableSpec
    csv_metrics: tuple[str, ...]
    blocks: tuple[BlockResult, ...]
    tests: int


def evaluate_table(spec: TableSpec, blocks: Sequence[TableBlock]) -> TableResult:
    """Compute everything that a table's files say."""
    csv_metrics = tuple(dict.fromkeys((*DEFAULT_METRICS, *spec.metrics)))
    results = [_evaluate_block(spec, block, csv_metrics) for block in blocks]
    comparisons = [row.comparison for block in results for row in block.rows if row.comparison is not None]
    p_values = [comparison.p_value for comparison in comparisons]
    corrected = iter(holm(np.concatenate(p_values)).reshape(len(p_values), -1) if p_values else [])
    results = [
        replace(
            block, rows=tuple(replace(row, p_holm=next(corrected)) if row.comparison else row for row in block.rows)
        )
        for block in results
    ]
    return TableResult(spec, csv_metrics, tuple(results), tests=len(p_values) * len(spec.metrics))


def write_table(result: TableResult, folder: Path) -> str:
    """Write <name>.csv, <name>_pairs.csv, .md, .tex and .html into folder, and return the text for a terminal."""
    name = result.spec.name
    shown = [views.methods_view(result), views.pairs_view(result)]
    write_text(folder / f"{name}.csv", result_csv.results(result))
    write_text(folder / f"{name}_pairs.csv", result_csv.pairs(result))
    write_text(folder / f"{name}.md", rendering.markdown(shown))
    write_text(folder / f"{name}.tex", rendering.latex(shown))
    write_text(folder / f"{name}.html", rendering.html(shown))
    return rendering.text(shown)


def make_table(plan: PlannedTable, folder: Path) -> str:
    """Evaluate a planned table from its runs in folder/runs, write its files into folder, return it as text."""
    path = Path(plan.file.published) if plan.file.published else None
    spec = TableSpec(plan.name, plan.file.title, tuple(plan.file.metrics), path)
    blocks = []
    for planned in plan.blocks:
        rows = tuple(
            TableRow(
                label=row.label,
                runs=tuple(load_run(folder / "runs" / run.id) for run in row.runs),
                variant=row.row.variant,
                published=row.row.published,
            )
            for row in planned.rows
        )
        block = planned.block
        blocks.append(TableBlock(block.dataset, block.title or block.dataset, rows, block.reference))
    return write_table(evaluate_table(spec, blocks), folder)


def _evaluate_block(spec: TableSpec, block: TableBlock, csv_metrics: tuple[str, ...]) -> BlockResult:
    where = f"table {spec.name}, block {block.title!r}"
    labels = [row.label for row in block.rows]
    if labels.count(block.reference) != 1:
        raise UserError(f"{where}: reference {block.reference!r} must be the label of one row; they are: {labels}")
    for row in block.rows:
        seeds = [run.seed for run in row.runs]
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"{where}, row {row.label!r}: expected one run a seed, and at least one; got seeds {seeds}")
    check_comparable([run for row in block.rows for run in row.runs])
    by_label = {row.label: outcomes(np.stack([run.ranks for run in row.runs]), spec.metrics) for row in block.rows}
    results = []
    for row in block.rows:
        runs = tuple(RunResult(run, *mean_intervals(outcomes(run.ranks, csv_metrics))) for run in row.runs)
        values = np.stack([[run.value[csv_metrics.index(name)] for name in spec.metrics] for run in runs])
        is_reference = row.label == block.reference
        results.append(
            RowResult(
                row=row,
                runs=runs,
                mean=values.mean(axis=0),
                deviation=values.std(axis=0, ddof=1) if len(runs) > 1 else None,
                published=_published(spec, row, csv_metrics, where),
                comparison=None if is_reference else compare(by_label[row.label], by_label[block.reference]),
            )
        )
    return BlockResult(block, tuple(results))


def _published(spec: TableSpec, row: TableRow, metrics: Sequence[str], where: str) -> PublishedRow | None:
    if row.published is None:
        return None
    if spec.published is None:
        raise UserError(
            f"{where}, row {row.label!r}: `published` needs the table's `published`, the path of a CSV file"
        )
    return find_published(spec.published, row.published, metrics)
