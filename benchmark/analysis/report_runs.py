"""What a report shows of a run beyond its place in a table: settings, record, training curve, its users' groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.analysis.runs import read_json
from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, Int32, read_ranks
from benchmark.settings import read_yaml


@dataclass(frozen=True)
class RunDetails:
    """settings: run.yaml. record: provenance.json. curve: column -> (epochs,) of training.csv; empty where a method
    does not write a line an epoch. history_length, target_frequency: (n,) one a user."""

    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    curve: Mapping[str, Float64]
    history_length: Int32
    target_frequency: Int32


def read_details(folder: Path) -> RunDetails:
    """Of a finished run's folder; UserError where a file is none."""
    ranks = read_ranks(folder / "ranks.parquet")
    return RunDetails(
        read_yaml(folder / "run.yaml"),
        read_json(folder / "provenance.json"),
        _curve(folder / "training.csv"),
        ranks.history_length,
        ranks.target_frequency,
    )


def _curve(path: Path) -> dict[str, Float64]:
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        if not rows or "epoch" not in rows[0]:
            return {}
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no table of numbers ({error}); train the run again") from error
