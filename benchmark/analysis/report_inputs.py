"""What a report is made of: finished tables, read back from their CSV files and checked against their runs' ranks.

A table's files say everything but the names of its blocks and where its published numbers stand, which its file under
config/tables says where there is one. So a report can be made of results that the configuration no longer plans.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.analysis.published import PublishedRow, find_published
from benchmark.analysis.report_runs import RunDetails, read_details
from benchmark.analysis.result_csv import PAIR_COLUMNS, RESULT_COLUMNS
from benchmark.analysis.runs import check_comparable, load_run
from benchmark.analysis.significance import Comparison
from benchmark.analysis.tables import BlockResult, RowResult, RunResult, TableBlock, TableResult, TableRow, TableSpec
from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, Metric, metric_mean

if TYPE_CHECKING:
    from benchmark.experiments import Block, Configuration

Cells = dict[str, str]
_AGAIN = "make the table again"
SAME = 1e-9  # values that two ways of summing the same numbers may differ by


@dataclass(frozen=True)
class ReportTable:
    """details: of its runs, by run id."""

    result: TableResult
    details: Mapping[str, RunDetails]


@dataclass(frozen=True)
class _Pair:
    """A comparison as the pairs file has it: of the row labelled label with the row labelled reference."""

    dataset: str
    label: str
    reference: str
    comparison: Comparison
    p_holm: Float64
    dataset_hash: str


def saved_tables(folder: Path) -> list[str]:
    """Names of the tables whose CSV files lie in folder: table7 before table10."""
    names = []
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            first = next(reader, None)
        if first and set(RESULT_COLUMNS) <= set(first) and first["table"] == path.stem:
            names.append(path.stem)
    return sorted(names, key=lambda name: [(len(part), part) for part in _parts(name)])


def read_table(folder: Path, name: str, configuration: Configuration, preset: str) -> ReportTable:
    """A table of folder, as evaluate_table made it, with its runs; UserError where its files do not agree."""
    rows = _read(folder / f"{name}.csv", RESULT_COLUMNS)
    pairs = _read_pairs(folder / f"{name}_pairs.csv")
    known = (configuration.folder / "tables" / f"{name}.yaml").is_file()
    file = configuration.table(name) if known else None
    csv_metrics = tuple(dict.fromkeys(row["metric"] for row in rows))
    metrics = pairs[0].comparison.metrics if pairs else tuple(file.metrics) if file else csv_metrics
    path = Path(file.published) if file and file.published else None
    spec = TableSpec(name, file.title if file else name, metrics, path)
    blocks = _blocks([_row(lines, folder, spec, csv_metrics) for lines in _rows(rows)], pairs, folder / f"{name}.csv")
    planned = file.presets.get(preset, []) if file else []
    result = TableResult(
        spec,
        csv_metrics,
        tuple(_named(block, number, planned, spec) for number, block in enumerate(blocks)),
        tests=len(pairs) * len(metrics),
    )
    for block in blocks:
        check_comparable([run.run for row in block for run in row.runs])
    ids = [run.run.run_id for block in blocks for row in block for run in row.runs]
    return ReportTable(result, {run_id: read_details(folder / "runs" / run_id) for run_id in ids})


def is_of_ranks(folder: Path, name: str) -> bool:
    """Whether a table's metrics are computed from ranks; tables of predicted clicks are not."""
    try:
        Metric.parse(_read(folder / f"{name}.csv", RESULT_COLUMNS)[0]["metric"])
    except UserError:
        return False
    return True


def _parts(name: str) -> list[str]:
    """Letters and numbers apart, so that numbers sort by their size."""
    return ["".join(part) for _, part in groupby(name, str.isdigit)]


def _read(path: Path, columns: Sequence[str]) -> list[Cells]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), restval="")
        rows = [{key: value for key, value in row.items() if key is not None} for row in reader]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is missing or not text; {_AGAIN}") from error
    if missing := [column for column in columns if not rows or column not in rows[0]]:
        raise UserError(f"{path} has no row or no column {missing[0]}; {_AGAIN}")
    return rows


def _rows(rows: Sequence[Cells]) -> list[list[Cells]]:
    """The lines of each row of the table: one method and variant, each seed once."""
    groups: list[list[Cells]] = []
    for cells in rows:
        last = groups[-1][-1] if groups else None
        same = last and all(last[key] == cells[key] for key in ("dataset", "dataset_hash", "method", "variant"))
        seeds = {line["seed"]: line["run_id"] for line in groups[-1]} if groups else {}
        if same and seeds.get(cells["seed"], cells["run_id"]) == cells["run_id"]:
            groups[-1].append(cells)
        else:
            groups.append([cells])
    return groups


def _row(lines: list[Cells], folder: Path, spec: TableSpec, csv_metrics: Sequence[str]) -> RowResult:
    """A row that is not yet compared, labelled as its first run is."""
    results, published = [], {}
    where = folder / f"{spec.name}.csv"
    for run_id, group in groupby(lines, lambda line: line["run_id"]):
        run = load_run(folder / "runs" / run_id)
        by_metric = {line["metric"]: line for line in group}
        for metric in csv_metrics:
            value, computed = _number(by_metric, metric, "value", where), metric_mean(run.ranks, metric)
            if not math.isclose(value, computed, rel_tol=0, abs_tol=SAME):
                raise UserError(
                    f"{where}: {metric} of {run_id} is {value!r}, and its ranks give {computed!r}; {_AGAIN}"
                )
            if by_metric[metric]["published"]:
                published[metric] = _number(by_metric, metric, "published", where)
        columns = [[_number(by_metric, m, key, where) for m in csv_metrics] for key in ("value", "ci_low", "ci_high")]
        results.append(RunResult(run, *map(np.array, columns)))
    first = results[0].run
    values = np.stack([[run.value[csv_metrics.index(metric)] for metric in spec.metrics] for run in results])
    digits = {metric: f"{100 * value:.6g}" for metric, value in published.items()}
    return RowResult(
        row=TableRow(first.label, tuple(run.run for run in results), lines[0]["variant"]),
        runs=tuple(results),
        mean=values.mean(axis=0),
        deviation=values.std(axis=0, ddof=1) if len(results) > 1 else None,
        published=PublishedRow(published, digits) if published else None,
        comparison=None,
    )


def _number(lines: Mapping[str, Cells], metric: str, column: str, where: Path) -> float:
    try:
        return float(lines[metric][column])
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: {metric} has no number in column {column}; {_AGAIN}") from error


def _read_pairs(path: Path) -> list[_Pair]:
    """The comparisons of a table, in its order; none where it has one row a block."""
    if path.is_file() and len(path.read_text(encoding="utf-8", errors="replace").splitlines()) == 1:
        return []
    pairs = []
    names = ("dataset", "method", "reference", "dataset_hash")
    lines_of = groupby(_read(path, PAIR_COLUMNS), lambda line: tuple(line[name] for name in names))
    for (dataset, label, reference, split), group in lines_of:
        *lines, average = group

        def column(name: str, lines: Sequence[Cells] = lines) -> Float64:
            try:
                return np.array([float(line[name] or "nan") for line in lines])
            except ValueError as error:
                raise UserError(f"{path}: column {name} holds no number; {_AGAIN}") from error

        comparison = Comparison(
            metrics=tuple(line["metric"] for line in lines), users=int(average["users"]), value=column("value"),
            reference=column("reference_value"), difference=column("difference"), low=column("ci_low"),
            high=column("ci_high"), relative=column("relative_difference"), relative_low=column("relative_ci_low"),
            relative_high=column("relative_ci_high"), p_value=column("p_value"),
            improvement=float(column("relative_difference", [average])[0]),
            improvement_low=float(column("relative_ci_low", [average])[0]),
            improvement_high=float(column("relative_ci_high", [average])[0]),
        )  # fmt: skip
        pairs.append(_Pair(dataset, label, reference, comparison, column("p_holm"), split))
    return pairs


def _blocks(rows: Sequence[RowResult], pairs: Sequence[_Pair], where: Path) -> list[list[RowResult]]:
    """Rows by block, labelled and compared: a block has a row more than it has comparisons, the reference."""
    blocks: list[list[RowResult]] = []
    for key, segment in groupby(rows, lambda row: (row.row.runs[0].dataset, row.row.runs[0].dataset_hash)):
        own = [pair for pair in pairs if (pair.dataset, pair.dataset_hash) == key]
        inside = list(segment)
        compared = [list(group) for _, group in groupby(own, lambda pair: pair.reference)]
        sizes = [len(group) + 1 for group in compared] or [1] * len(inside)
        if sum(sizes) != len(inside):
            raise UserError(f"{where} has {len(inside)} rows on {key[0]}, and its pairs are of {sum(sizes)}; {_AGAIN}")
        for group in compared or [[] for _ in inside]:
            blocks.append(_compared(inside[: len(group) + 1], group, where))
            inside = inside[len(group) + 1 :]
    return blocks


def _compared(rows: Sequence[RowResult], pairs: Sequence[_Pair], where: Path) -> list[RowResult]:
    """The rows of a block, each with its comparison: all but one, in the order of the pairs, are what was compared."""
    if not pairs:
        return list(rows)
    fitting = [
        index
        for index, row in enumerate(rows)
        if _same(row, pairs[0].comparison.reference)
        and all(_same(o, p.comparison.value) for o, p in zip([*rows[:index], *rows[index + 1 :]], pairs, strict=True))
    ]
    if not fitting:
        raise UserError(f"{where}: values of the rows on {pairs[0].dataset} are not those of its pairs; {_AGAIN}")
    reference = min(fitting, key=lambda index: rows[index].row.label != pairs[0].reference)  # equal rows: the named one
    left = iter(pairs)
    found = []
    for index, row in enumerate(rows):
        if index == reference:
            found.append(replace(row, row=replace(row.row, label=pairs[0].reference)))
        else:
            pair = next(left)
            found.append(
                replace(row, row=replace(row.row, label=pair.label), comparison=pair.comparison, p_holm=pair.p_holm)
            )
    return found


def _same(row: RowResult, values: Float64) -> bool:
    return np.allclose(row.mean, values, rtol=0, atol=SAME)


def _named(rows: list[RowResult], number: int, planned: Sequence[Block], spec: TableSpec) -> BlockResult:
    """A block with what the configuration says of it: its title, and the published numbers of its rows."""
    first = rows[0].row.runs[0]
    own = [block for block in planned if (block.dataset, block.protocol) == (first.dataset, first.protocol)]
    block = planned[number] if number < len(planned) and planned[number] in own else own[0] if own else None
    wanted = {row.label: row.published for row in block.rows if row.published} if block else {}
    for index, row in enumerate(rows):
        selected = wanted.get(row.row.label)
        if row.published and selected and spec.published:
            found = find_published(spec.published, selected, tuple(row.published.metrics))
            if found.metrics == row.published.metrics:  # the file still says what the table was made with
                rows[index] = replace(row, row=replace(row.row, published=selected), published=found)
    reference = next(row.row.label for row in rows if row.comparison is None)
    title = block.title if block and block.title else first.dataset
    return BlockResult(TableBlock(first.dataset, title, tuple(row.row for row in rows), reference), tuple(rows))
