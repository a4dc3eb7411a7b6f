"""A table of click predictions: AUC, group AUC and log loss with intervals and tests, and what a candidate costs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.analysis import rendering
from benchmark.analysis.click_significance import Estimate, check_metrics, compare_clicks, estimate
from benchmark.analysis.delong import Difference
from benchmark.analysis.published import find_published
from benchmark.analysis.result_csv import PAIR_COLUMNS, RESULT_COLUMNS, csv_text
from benchmark.analysis.significance import holm
from benchmark.analysis.views import AS_PUBLISHED, BETTER, LEVEL, NONE, WORSE, Cell, Line, Section, View, p_text, signed
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import CLICK_METRICS, ClickTable, read_clicks
from benchmark.files import write_text
from benchmark.settings import read_yaml

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable

_TITLES = {"auc": "AUC", "group_auc": "Group AUC", "log_loss": "Log loss"}
_LOWER_IS_BETTER = ("log_loss",)


@dataclass(frozen=True)
class ClickRun:
    """What a run's folder says. settings: run.yaml; record: provenance.json; serving: milliseconds a candidate by
    (candidates, sharing)."""

    settings: dict[str, Any]
    record: dict[str, Any]
    table: ClickTable
    serving: dict[tuple[int, str], float]


@dataclass(frozen=True)
class ClickRow:
    """estimates: a metric's over the row's seeds; comparisons: with the reference, None for that row itself; p_holm:
    corrected over the table. published: AUC as the file writes it."""

    label: str
    variant: str
    runs: tuple[ClickRun, ...]
    estimates: dict[str, Estimate]
    comparisons: dict[str, Difference] | None
    published: str | None
    p_holm: dict[str, float] | None = None


@dataclass(frozen=True)
class ClickBlock:
    title: str
    dataset: str
    reference: str
    rows: tuple[ClickRow, ...]


def is_click_table(metrics: Sequence[str]) -> bool:
    """Whether a table's metrics are of predicted clicks; no table mixes them with those of ranks."""
    return any(name in CLICK_METRICS for name in metrics)


def make_click_table(plan: PlannedTable, folder: Path) -> str:
    """Evaluate a planned table from its runs in folder/runs, write its files into folder, return it as text."""
    metrics = plan.file.metrics
    check_metrics(metrics)
    blocks = []
    for planned in plan.blocks:
        loaded = {
            row.label: tuple(load_click_run(folder / "runs" / run.id) for run in row.runs) for row in planned.rows
        }
        reference = planned.block.reference
        _check_same_split([run for runs in loaded.values() for run in runs])
        rows = []
        for row in planned.rows:
            seeds = [run.table for run in loaded[row.label]]
            against = [run.table for run in loaded[reference]]
            published = _published(plan, row.row.published)
            found = {name: estimate(seeds, name) for name in metrics}
            compared = None
            if row.label != reference:
                compared = {name: compare_clicks(seeds, against, name) for name in metrics}
            rows.append(ClickRow(row.label, row.row.variant, loaded[row.label], found, compared, published))
        block = planned.block
        blocks.append(ClickBlock(block.title or block.dataset, block.dataset, reference, tuple(rows)))
    blocks = _corrected(blocks, metrics)
    shown = [_methods_view(plan, blocks), _pairs_view(plan, blocks)]
    write_text(folder / f"{plan.name}.csv", _results_csv(plan.name, blocks))
    write_text(folder / f"{plan.name}_pairs.csv", _pairs_csv(plan.name, blocks))
    write_text(folder / f"{plan.name}.md", rendering.markdown(shown))
    write_text(folder / f"{plan.name}.tex", rendering.latex(shown))
    write_text(folder / f"{plan.name}.html", rendering.html(shown))
    return rendering.text(shown)


def load_click_run(folder: Path) -> ClickRun:
    """Read a run's run.yaml, provenance.json, clicks.parquet and serving.csv."""
    names = ("run.yaml", "provenance.json", "clicks.parquet", "serving.csv")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} is no finished run: it lacks {', '.join(missing)}; train it and predict its clicks")
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        with (folder / "serving.csv").open(encoding="utf-8", newline="") as file:
            serving = {
                (int(row["candidates"]), row["sharing"]): float(row["milliseconds_per_candidate"])
                for row in csv.DictReader(file)
            }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: provenance.json or serving.csv is damaged ({error}); run its steps again"
        ) from error
    return ClickRun(read_yaml(folder / "run.yaml"), record, read_clicks(folder / "clicks.parquet"), serving)


def _check_same_split(runs: Sequence[ClickRun]) -> None:
    hashes = {str(run.record.get("dataset_hash")): run.settings["id"] for run in runs}
    if len(hashes) > 1:
        (one, first), (two, second), *_ = hashes.items()
        raise UserError(
            f"runs {first} and {second} cannot be compared: the hash of the first one's data set is {one[:12]} and of "
            f"the second one's {two[:12]}; train both on the same prepared data set"
        )


def _published(plan: PlannedTable, wanted: dict[str, str] | None) -> str | None:
    if wanted is None:
        return None
    if plan.file.published is None:
        raise UserError(f"table {plan.name}: a row's `published` needs the table's `published`, the path of a CSV file")
    return find_published(Path(plan.file.published), wanted, ["auc"]).digits.get("auc")


def _corrected(blocks: Sequence[ClickBlock], metrics: Sequence[str]) -> list[ClickBlock]:
    """Holm's correction over every comparison of the table."""
    p_values = [row.comparisons[m].p_value for b in blocks for row in b.rows if row.comparisons for m in metrics]
    corrected = iter(holm(np.array(p_values)).tolist())
    return [
        replace(
            block,
            rows=tuple(
                replace(row, p_holm={m: next(corrected) for m in metrics}) if row.comparisons else row
                for row in block.rows
            ),
        )
        for block in blocks
    ]


def _mark(row: ClickRow, metric: str) -> str:
    if row.comparisons is None or row.p_holm is None or row.p_holm[metric] >= LEVEL:
        return ""
    higher = row.comparisons[metric].value > 0
    return BETTER if higher != (metric in _LOWER_IS_BETTER) else WORSE


def _methods_view(plan: PlannedTable, blocks: Sequence[ClickBlock]) -> View:
    metrics = plan.file.metrics
    counts = sorted({count for block in blocks for row in block.rows for run in row.runs for count, _ in run.serving})
    columns = (
        "Method", *(title for name in metrics for title in (_TITLES[name], "95 % interval")),
        *(f"ms a candidate, {count} a request" for count in counts), "Length", "Parameters", "Seeds",
    )  # fmt: skip
    sections = []
    for block in blocks:
        lines = []
        for row in block.rows:
            cells = [Cell(row.label)]
            for name in metrics:
                found = row.estimates[name]
                cells += [
                    Cell(f"{found.value:.4f}", mark=_mark(row, name)),
                    Cell(f"{found.low:.4f} to {found.high:.4f}"),
                ]
            cells += [Cell(_serving_text(row, count)) for count in counts]
            run = row.runs[0]
            cells += [
                Cell(str(run.settings["evaluation"]["sequence_length"])),
                Cell(f"{int(run.record['parameters']):,}"),
                Cell(str(len(row.runs))),
            ]
            lines.append(Line(tuple(cells)))
            if row.published is not None:
                quoted = [Cell(AS_PUBLISHED), *(Cell(NONE) for _ in columns[1:])]
                quoted[1 + 2 * metrics.index("auc")] = Cell(row.published)
                lines.append(Line(tuple(quoted), quoted=True))
        first = block.rows[0].runs[0]
        cases, users = len(first.table), len(np.unique(first.table.users()))
        split = str(first.record["dataset_hash"])[:12]
        title = f"{block.title} ({cases:,} cases of {users:,} users, split {split}; against {block.reference})"
        sections.append(Section(title, tuple(lines)))
    return View(plan.name, plan.file.title, columns, tuple(sections), _notes(blocks, metrics))


def _serving_text(row: ClickRow, count: int) -> str:
    """The method's cheapest way of serving; late fusion's dearer one in brackets."""
    found = {sharing: np.mean([run.serving[count, sharing] for run in row.runs]) for sharing in ("none", "state")
             if all((count, sharing) in run.serving for run in row.runs)}  # fmt: skip
    if "state" in found:
        return f"{found['state']:.3f} ({found['none']:.3f})"
    return f"{found['none']:.3f}" if found else NONE


def _notes(blocks: Sequence[ClickBlock], metrics: Sequence[str]) -> tuple[str, ...]:
    tests = sum(len(metrics) for block in blocks for row in block.rows if row.comparisons)
    click = blocks[0].rows[0].runs[0].settings["training"]["click"]
    devices = sorted({str(run.record.get("device")) for block in blocks for row in block.rows for run in row.runs})
    counts = sorted({int(run.settings["execution"]["threads"]) for b in blocks for row in b.rows for run in row.runs})
    threads = f"{' or '.join(map(str, counts))} thread{'s' if counts != [1] else ''}"
    reference = next(row for row in blocks[0].rows if row.comparisons is None)
    independent = reference.estimates["auc"].independent if "auc" in metrics else None
    return (
        f"Cases: every event of the latest {100 * click['test_share']:g} % of all events that has an earlier one of "
        "the same user; trained on events before them in time. No label is an input of its own case.",
        "Intervals of AUC: DeLong's variance with a user's cases as one cluster (Obuchowski); of the others: the "
        "variance of the ratio over users."
        + (
            f" Taking all cases as independent, {reference.label}'s AUC would have {independent[0]:.4f} to "
            f"{independent[1]:.4f}."
            if independent
            else ""
        ),
        f"{BETTER}, {WORSE}: better, worse than the block's reference, p < {LEVEL}: DeLong's paired test for AUC, "
        f"paired over users for the others, Holm's correction over the {tests} tests of this table.",
        "Milliseconds a candidate: median over requests with the longest histories, one request at a time, item "
        f"embeddings at hand, on {', '.join(devices)}, {threads}; of each request the least time of several, because "
        "other work on the machine lengthens some. They are of that machine: what they tell is how rows compare. Late "
        "fusion: one state of the user for all candidates, and in brackets one for each; early fusion reads the whole "
        "history again for every candidate.",
        "One seed: intervals and tests do not cover how a method varies with it."
        if all(len(row.runs) == 1 for block in blocks for row in block.rows)
        else "",
    )


def _pairs_view(plan: PlannedTable, blocks: Sequence[ClickBlock]) -> View:
    columns = ("Method", "Metric", "Difference", "95 % interval", "p (Holm)")
    sections = []
    for block in blocks:
        lines = []
        for row in block.rows:
            for name, pair in (row.comparisons or {}).items():
                bounds = f"{signed(pair.low, 4)} to {signed(pair.high, 4)}"
                p_holm = p_text(row.p_holm[name]) if row.p_holm else NONE
                cells = (row.label, _TITLES[name], signed(pair.value, 4), bounds, p_holm)
                lines.append(Line(tuple(map(Cell, cells))))
        if lines:
            sections.append(Section(f"{block.title}: against {block.reference}", tuple(lines)))
    title = f"{plan.file.title}: differences"
    notes = ("Differences of the metrics themselves; a lower log loss is better.",)
    return View(f"{plan.name}-pairs", title, columns, tuple(sections), notes, text_columns=2)


def _results_csv(name: str, blocks: Sequence[ClickBlock]) -> str:
    """The result CSV: a row a run and metric; the milliseconds a candidate are metrics too."""
    lines: list[Sequence[object]] = []
    for block in blocks:
        for row in block.rows:
            for run in row.runs:
                training, record = run.settings["training"], run.record
                rows: list[tuple[str, float, float | None, float | None]] = []
                for metric in row.estimates:
                    own = estimate([run.table], metric)
                    rows.append((metric, own.value, own.low, own.high))
                for (count, sharing), value in run.serving.items():
                    suffix = "_shared" if sharing == "state" else ""
                    rows.append((f"ms_per_candidate{suffix}@{count}", value, None, None))
                for metric, value, low, high in rows:
                    known = float(row.published) if row.published and metric == "auc" else None
                    lines.append(
                        (
                            name, block.dataset, run.settings["method"], row.variant, run.settings["seed"], metric,
                            value, low, high, len(np.unique(run.table.users())), training["negatives"]["count"],
                            training["global_batch"], training["sequence_length"], record.get("parameters"),
                            record.get("epochs"), record.get("hours"), record.get("device"), record["dataset_hash"],
                            run.settings["id"], record.get("git_revision"), known,
                            None if known is None else value - known,
                        )
                    )  # fmt: skip
    return csv_text(RESULT_COLUMNS, lines)


def _pairs_csv(name: str, blocks: Sequence[ClickBlock]) -> str:
    lines: list[Sequence[object]] = []
    for block in blocks:
        reference = next(row for row in block.rows if row.comparisons is None)
        for row in block.rows:
            for metric, pair in (row.comparisons or {}).items():
                base, p_holm = reference.estimates[metric].value, row.p_holm[metric] if row.p_holm else None
                users = len(np.unique(row.runs[0].table.users()))
                lines.append(
                    (
                        name, block.dataset, row.label, block.reference, metric, pair.value, pair.value / base,
                        pair.low, pair.high, None, None, row.estimates[metric].value, base, users, len(row.runs),
                        len(reference.runs), row.runs[0].record["dataset_hash"], pair.p_value, p_holm,
                    )
                )  # fmt: skip
    return csv_text(PAIR_COLUMNS, lines)
