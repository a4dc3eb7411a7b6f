"""What a run costs before it is run: steps, tokens, operations, memory and GPU-hours.

Operations are those of matrix products: 2 for each weight and token forwards, 4 backwards (none for weights that are
frozen and read nothing that is learned), and the products of the scores. What gradient checkpointing or chunks compute
twice counts as time lost, that is, as utilisation, and not as work.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from benchmark.data.batches import Int64, training_windows
from benchmark.errors import UserError
from benchmark.experiments import Run
from benchmark.experiments.engine_choice import EngineChoice, Weights
from benchmark.settings import Settings, read_yaml, validated

_QUANTILES = 20_000


class Gpu(Settings):
    """bf16, fp32: operations a second at most."""

    memory_gib: float = Field(gt=0)
    bf16: float = Field(gt=0)
    fp32: float = Field(gt=0)


class CostAssumptions(Settings):
    """config/costs.yaml."""

    gpus: dict[str, Gpu]
    utilisation: dict[Literal["bf16", "fp32"], float]
    step_seconds: float = Field(ge=0)
    text_tokens: dict[str, float]

    def gpu(self, name: str) -> Gpu:
        if name not in self.gpus:
            raise UserError(f"config/costs.yaml has no GPU {name!r}; it has: {', '.join(self.gpus)}")
        return self.gpus[name]


@dataclass(frozen=True)
class DataFacts:
    """lengths, offsets: (u,) training events of u users, each of whom stands for `weight` users; measured: they are the
    users of the prepared data set. tokens: of an item's text, on average; 0 without text."""

    users: int
    items: int
    lengths: Int64
    weight: float
    tokens: float
    measured: bool


@dataclass(frozen=True)
class ModelSize:
    """weights: with a gradient and without. item: weights that every token of a text is multiplied with; history: those
    of every event of a history. width: of an embedding. frozen_items: the item part has no gradient."""

    weights: Weights
    item: int
    history: int
    width: int
    frozen_items: bool = False

    @property
    def parameters(self) -> int:
        return self.weights.learned + self.weights.frozen


@dataclass(frozen=True)
class Work:
    """steps, item_tokens (texts' tokens), positions (events read) and operations, each of one epoch of training;
    evaluation: operations of ranking the validation once."""

    steps: int
    item_tokens: float
    positions: float
    training: float
    evaluation: float


def load_assumptions(path: Path) -> CostAssumptions:
    return validated(CostAssumptions, read_yaml(path), str(path))


def estimated_lengths(users: int, interactions: int, shortest: int) -> Int64:
    """Events of typical users, where only their number is known: the quantiles of an exponential above the shortest."""
    count = min(users, _QUANTILES)
    middle = (np.arange(count) + 0.5) / count
    drawn = -np.log1p(-middle) * max(interactions / users - shortest, 0.0)
    return (shortest + np.round(drawn)).astype(np.int64)


def work_of(run: Run, facts: DataFacts, size: ModelSize) -> Work:
    """The work of a run, whatever it runs on."""
    training = run.training
    starts = facts.lengths.cumsum() - facts.lengths
    _, windows = training_windows(facts.lengths, starts, training.sequence_length, training.windows)
    count = len(windows) * facts.weight * training.user_share
    steps = max(1, math.ceil(count / training.global_batch))
    positions = float((windows - 1).sum()) * facts.weight * training.user_share
    # drawn: beside the windows' own items, which hold the negatives where these are the last targets of the batch.
    negatives, drawn = float(training.negatives.count), float(training.negatives.count)
    if training.negatives.sharing == "per_position":
        drawn = negatives * positions / steps
    elif training.negatives.sharing == "in_batch":
        negatives, drawn = count / steps, 0.0
    distinct = facts.items * -math.expm1(-drawn / facts.items)
    items_a_step = min(float(facts.items), positions / steps + count / steps + distinct)
    item_tokens = steps * items_a_step * facts.tokens
    item_factor = 2 if size.frozen_items else 6
    scores = 6 * positions * negatives * size.width
    operations = item_factor * size.item * item_tokens + 6 * size.history * positions + scores
    read = float(np.minimum(facts.lengths, run.evaluation.sequence_length).sum()) * facts.weight
    catalogue = 2 * size.item * facts.items * facts.tokens
    ranking = 2 * size.history * read + 2 * facts.users * facts.items * size.width
    return Work(steps, item_tokens, positions, operations, catalogue + ranking)


def total_operations(run: Run, work: Work) -> float:
    """Of all epochs, each with its validation, and of ranking the test once; patience may end a run sooner."""
    validations = run.training.epochs if run.training.selection == "best" else 0
    return run.training.epochs * work.training + (validations + 1) * work.evaluation


def gpu_hours(run: Run, work: Work, gpus: int, rate: float, step_seconds: float) -> float:
    """Hours of all GPUs together. rate: operations a second of one; step_seconds: the least that a step takes."""
    computing = total_operations(run, work) / (rate * gpus)
    return gpus * max(computing, run.training.epochs * work.steps * step_seconds) / 3600


def measured_utilisation(path: Path, method: str, gpu: str, choice: EngineChoice | None = None) -> float | None:
    """The median share of the peak that training of a method reached on a GPU, from the file that `speed` writes; where
    something is kept on the host, with the same engine and the same there."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = None if choice is None or choice.offload == "none" else (choice.engine, choice.offload)
    found = [
        float(row["utilisation"])
        for row in rows
        if row.get("part") == "train"
        and row.get("method") == method
        and gpu in (row.get("device") or "")
        and row.get("utilisation")
        and (None if row.get("offload") in (None, "", "none") else (row.get("engine"), row["offload"])) == kept
    ]
    return float(np.median(found)) if found else None
