"""What a table's runs reached on validation, where settings are chosen: the best epoch of each run's training.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.analysis import rendering
from benchmark.analysis.views import Cell, Line, Section, View, metric_title
from benchmark.errors import UserError
from benchmark.files import write_text

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable, Run


@dataclass(frozen=True)
class Validated:
    """score: the run's best validation value of its selection metric, a fraction; epochs: that it was trained for."""

    label: str
    dataset: str
    seed: int
    learning_rate: float
    metric: str
    score: float
    best_epoch: int
    epochs: int


def validated_rows(plan: PlannedTable, folder: Path) -> list[Validated]:
    """One entry a run of the table that was selected on validation; folder: holds runs/."""
    return [
        _read(run, row.label, folder / "runs" / run.id / "training.csv")
        for block in plan.blocks
        for row in block.rows
        for run in row.runs
        if run.training.selection == "best"
    ]


def _read(run: Run, label: str, path: Path) -> Validated:
    metric = run.training.selection_metric
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        scores = [(float(row[metric]), int(row["epoch"])) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} has no epochs with {metric} ({error}); train the run again to write it") from error
    if not scores:
        raise UserError(f"{path} has no epoch; train the run again to write it")
    best, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    rate = run.training.optimizer.learning_rate
    return Validated(label, run.dataset, run.seed, rate, metric, best, epoch, len(scores))


def write_validation(plan: PlannedTable, folder: Path) -> str:
    """Write <table>_validation.csv and .md into folder, and return the text for a terminal."""
    found = validated_rows(plan, folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "dataset", "seed", "learning_rate", "metric", "value", "best_epoch", "epochs"))
    writer.writerows(
        (x.label, x.dataset, x.seed, x.learning_rate, x.metric, f"{x.score:.12g}", x.best_epoch, x.epochs)
        for x in found
    )
    write_text(folder / f"{plan.name}_validation.csv", text.getvalue())
    view = _view(plan, found)
    write_text(folder / f"{plan.name}_validation.md", rendering.markdown([view]))
    return rendering.text([view])


def _view(plan: PlannedTable, found: list[Validated]) -> View:
    sections = []
    for dataset in dict.fromkeys(x.dataset for x in found):
        lines = [
            Line(tuple(map(Cell, (x.label, f"{x.learning_rate:g}", metric_title(x.metric), f"{100 * x.score:.2f}",
                                  f"{x.best_epoch} of {x.epochs}", str(x.seed)))))
            for x in found
            if x.dataset == dataset
        ]  # fmt: skip
        sections.append(Section(dataset, tuple(lines)))
    columns = ("Method", "Learning rate", "Metric", "Validation", "Best epoch", "Seed")
    notes = ("Validation: percent, of the best epoch, whose weights are the ones ranked on the test items.",)
    return View(f"{plan.name}-validation", f"{plan.file.title}: on validation", columns, tuple(sections), notes)
