"""Where a training run stands, its schedule, and its record."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.experiments import TrainingSettings
from benchmark.files import write_atomically


@dataclass
class Progress:
    """Where a training run stands; part of the resumable state."""

    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    items_encoded: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)  # of the steps since the last epoch ended
    record: list[dict[str, float]] = field(default_factory=list)


def learning_rate_factor(step: int, total: int, settings: TrainingSettings) -> float:
    """The learning rate of step (counted from 0) as a share of the highest; total: steps of the whole run."""
    warmup = total * settings.schedule.warmup
    if step < warmup:
        return step / max(1.0, warmup)
    if settings.schedule.kind == "constant":
        return 1.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup))))


def write_record(path: Path, rows: list[dict[str, float]]) -> None:
    """training.csv: a row an evaluation."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue()))


def _plain(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
