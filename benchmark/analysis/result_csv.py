"""The CSV files of a table: every number as a fraction, one a row, and every comparison with its interval and test."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.analysis.tables import TableResult

RESULT_COLUMNS = (
    "table", "dataset", "method", "variant", "seed", "metric", "value", "ci_low", "ci_high", "users", "negatives",
    "global_batch", "sequence_length", "parameters", "epochs", "hours", "device", "dataset_hash", "run_id",
    "git_revision", "published", "difference",
)  # fmt: skip
PAIR_COLUMNS = (
    "table", "dataset", "method", "reference", "metric", "difference", "relative_difference", "ci_low", "ci_high",
    "relative_ci_low", "relative_ci_high", "value", "reference_value", "users", "seeds", "reference_seeds",
    "dataset_hash", "p_value", "p_holm",
)  # fmt: skip


def results(result: TableResult) -> str:
    """The result CSV: a row a run and metric. difference: value - published, where there is a published number."""
    lines: list[Sequence[object]] = []
    for block in result.blocks:
        for row in block.rows:
            published = row.published.metrics if row.published else {}
            for one in row.runs:
                run = one.run
                for index, metric in enumerate(result.csv_metrics):
                    value, known = float(one.value[index]), published.get(metric)
                    lines.append(
                        (
                            result.spec.name, block.block.dataset, run.method, row.row.variant, run.seed, metric, value,
                            float(one.low[index]), float(one.high[index]), run.users, run.negatives, run.global_batch,
                            run.sequence_length, run.parameters, run.epochs, run.hours, run.device, run.dataset_hash,
                            run.run_id, run.git_revision, known, None if known is None else value - known,
                        )
                    )  # fmt: skip
    return csv_text(RESULT_COLUMNS, lines)


def pairs(result: TableResult) -> str:
    """The comparisons: a row a method (by its label), reference and metric, in fractions; p-values come last.

    Metric "improvement" is the mean of the relative differences over the table's metrics.
    """
    lines: list[Sequence[object]] = []
    for block in result.blocks:
        reference = next(row for row in block.rows if row.comparison is None)
        for row in block.rows:
            pair = row.comparison
            if pair is None or row.p_holm is None:
                continue
            who = (result.spec.name, block.block.dataset, row.row.label, block.block.reference)
            counts = (pair.users, len(row.runs), len(reference.runs), block.first_run.dataset_hash)
            for index, metric in enumerate(pair.metrics):
                columns = (
                    pair.difference, pair.relative, pair.low, pair.high, pair.relative_low, pair.relative_high,
                    pair.value, pair.reference,
                )  # fmt: skip
                numbers = [float(column[index]) for column in columns]
                lines.append((*who, metric, *numbers, *counts, float(pair.p_value[index]), float(row.p_holm[index])))
            average = (pair.improvement, None, None, pair.improvement_low, pair.improvement_high)
            lines.append((*who, "improvement", None, *average, None, None, *counts, None, None))
    return csv_text(PAIR_COLUMNS, lines)


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Lines as CSV; NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        writer.writerow(map(_plain, line))
    return text.getvalue()


def _plain(cell: object) -> object:
    """Twelve significant digits: in the last ones of a double, processors differ, and files should not."""
    if not isinstance(cell, float):
        return cell
    return "" if math.isnan(cell) else float(f"{cell:.12g}")
