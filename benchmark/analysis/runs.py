"""Finished runs, read back from their folders and checked, which may be compared, and which are seeds of one method."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, RankTable, metric_mean, read_metrics, read_ranks
from benchmark.settings import read_yaml

Value = TypeVar("Value")

_NOT_SETTINGS = ("id", "label", "variant", "seed", "execution")


@dataclass(frozen=True)
class LoadedRun:
    """What a run's folder says. ranks: (n,) one a user; cases_sha256: of the users and their targets, in order.

    negatives, global_batch, sequence_length and epochs are None where the method has no such setting.
    """

    run_id: str
    label: str
    method: str
    variant: str
    dataset: str
    protocol: str
    seed: int
    negatives: int | None
    global_batch: int | None
    sequence_length: int | None
    parameters: int | None
    epochs: int | None
    hours: float | None
    device: str
    git_revision: str
    dataset_hash: str
    cases_sha256: str
    ranks: Float64

    @property
    def users(self) -> int:
        return len(self.ranks)


def load_run(folder: Path) -> LoadedRun:
    """Read a run's run.yaml, provenance.json, metrics.csv and ranks.parquet; UserError where they do not fit."""
    missing = [
        name
        for name in ("run.yaml", "provenance.json", "ranks.parquet", "metrics.csv")
        if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(f"{folder} is no finished run: it lacks {', '.join(missing)}; train and rank the run")
    settings, where = read_yaml(folder / "run.yaml"), folder / "run.yaml"
    record = read_json(folder / "provenance.json")
    table = read_ranks(folder / "ranks.parquet")
    _check_metrics(folder / "metrics.csv", table.rank)
    training = _optional(settings, "training", dict, where) or {}
    if "steps" not in record:  # a method that trains itself, or does not train, follows none of the trainer's settings
        training = {key: value for key, value in training.items() if key == "sequence_length"}
    if not record.get("epochs"):  # nothing was trained
        training = {}
    negatives = _optional(training, "negatives", dict, where) or {}
    return LoadedRun(
        run_id=_required(settings, "id", str, where),
        label=_required(settings, "label", str, where),
        method=_required(settings, "method", str, where),
        variant=_optional(settings, "variant", str, where) or "",
        dataset=_required(settings, "dataset", str, where),
        protocol=_required(settings, "protocol", str, where),
        seed=_required(settings, "seed", int, where),
        negatives=_optional(negatives, "count", int, where),
        global_batch=_optional(training, "global_batch", int, where),
        sequence_length=_optional(training, "sequence_length", int, where),
        parameters=_optional(record, "parameters", int, folder / "provenance.json"),
        epochs=_optional(record, "epochs", int, folder / "provenance.json"),
        hours=_optional(record, "hours", float, folder / "provenance.json"),
        device=_optional(record, "device", str, folder / "provenance.json") or "",
        git_revision=_optional(record, "git_revision", str, folder / "provenance.json") or "",
        dataset_hash=_required(record, "dataset_hash", str, folder / "provenance.json"),
        cases_sha256=_cases_sha256(table),
        ranks=table.rank,
    )


def settings_but_seed(folder: Path, places: Sequence[Path]) -> dict[str, Any]:
    """What in a run's run.yaml decides its result, but the seed: the same in the seeds of one method.

    places: folders of runs. The id of a run that it starts from has the seed in it, and so its method and the hash of
    its own settings stand for it; where none of places has that run, its id stays, and seeds count as other settings.
    """
    path = folder / "run.yaml"
    content = read_yaml(path)
    settings = {key: value for key, value in content.items() if key not in _NOT_SETTINGS}
    settings["precision"] = (_optional(content, "execution", dict, path) or {}).get("precision", "fp32")
    if source := _optional(content, "starts_from", dict, path):
        run = _required(source, "run", str, path)
        if found := next((place / run for place in places if (place / run / "run.yaml").is_file()), None):
            own = settings_but_seed(found, places)
            settings["starts_from"] = {**source, "run": f"{own.get('method')}-{settings_hash(own)[:10]}"}
    return settings


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def check_comparable(runs: Sequence[LoadedRun]) -> None:
    """Refuse runs on different splits, or of different users or targets."""
    first = runs[0]
    for run in runs[1:]:
        if run.dataset_hash != first.dataset_hash:
            raise UserError(
                f"runs {first.run_id} and {run.run_id} cannot be compared: the hash of the first one's data set is "
                f"{first.dataset_hash[:12]} and of the second one's {run.dataset_hash[:12]}; "
                "train and rank both on the same prepared data set"
            )
        if run.cases_sha256 != first.cases_sha256:
            raise UserError(
                f"runs {first.run_id} ({first.users} users) and {run.run_id} ({run.users} users) cannot be compared: "
                "their ranks.parquet hold different users or targets; rank both again on the same prepared data set"
            )


def _check_metrics(path: Path, ranks: Float64) -> None:
    means, users = read_metrics(path)
    if users != len(ranks):
        raise UserError(f"{path} is over {users} users and ranks.parquet has {len(ranks)}; rank the run again")
    for name, value in means.items():
        computed = metric_mean(ranks, name)
        if not math.isclose(value, computed, rel_tol=0, abs_tol=1e-9):
            raise UserError(
                f"{path}: {name} is {value!r}, and the ranks beside it give {computed!r}; rank the run again"
            )


def _cases_sha256(table: RankTable) -> str:
    """Over the Arrow buffers: lengths first, so that no two lists of strings give the same bytes."""
    digest = hashlib.sha256()
    for column in (table.user_id, table.target_item):
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64)[: len(column) + 1]
        digest.update(np.diff(ends).astype("<i8").tobytes())
        digest.update(memoryview(data)[ends[0] : ends[-1]] if data is not None else b"")
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run that holds an object; anything else is a UserError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); train the run again to write it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object, and holds {type(content).__name__}; train the run again")
    return content


def _required(content: Mapping[str, Any], key: str, kind: type[Value], path: Path) -> Value:
    value = _optional(content, key, kind, path)
    if value is None:
        raise UserError(f"{path}: {key} is missing, and must be of type {kind.__name__}; run the step again")
    return value


def _optional(content: Mapping[str, Any], key: str, kind: type[Value], path: Path) -> Value | None:
    value = content.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if value is not None and type(value) is not kind:
        raise UserError(f"{path}: {key} is {value!r}, and must be of type {kind.__name__}; run the step again")
    return value
