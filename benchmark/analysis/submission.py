"""Checks of a run's folder before it may stand on the leaderboard: form, origin, data, and values that cannot be.

The folder is only read. What cannot be checked without the prepared data set is said, and not taken for granted.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmark.analysis.leaderboard import SUBMITTED
from benchmark.analysis.runs import load_run, read_json
from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.evaluation.metrics import RankTable, metric_mean, read_ranks
from benchmark.evaluation.shared_cases import whole_file
from benchmark.experiments import Run, load_run_file

FILES = ("run.yaml", "provenance.json", "training.csv", "ranks.parquet", "metrics.csv")
PROVENANCE = ("git_revision", "python", "platform", "packages", "device", "seed", "parameters", "dataset_hash", "hours")
MOST_AT_FIRST_PLACE = 0.9  # share of users at rank 1: more is a target that the method has seen


@dataclass(frozen=True)
class Checked:
    """passed: what holds; failed: what does not, with its mend; unchecked: what could not be looked at, and why."""

    run_id: str
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    unchecked: tuple[str, ...]


def check_submission(folder: Path, data: Path) -> Checked:
    """Check a run's folder, and its cases against the prepared data set below data, if there is one.

    UserError where the folder cannot be read as a finished run at all, or its metrics do not follow from its ranks.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}; a submission has {', '.join(FILES)}")
    loaded, run, table = load_run(folder), load_run_file(folder / "run.yaml"), read_ranks(folder / "ranks.parquet")
    passed = ["its files are whole, and its metrics follow from its ranks"]
    failed, unchecked = [*_origin(folder, run), *_values(table)], []
    prepared = data / run.dataset / run.protocol
    if (prepared / "dataset.json").is_file():
        wrong = _against_data(prepared, table, loaded.dataset_hash)
        failed += wrong
        if not wrong:
            passed.append(f"its users, targets, histories and split are those of {prepared}")
    else:
        unchecked.append(
            f"users and targets: {prepared} is not prepared here; `python -m benchmark prepare {run.dataset} "
            f"--protocol {run.protocol}` prepares it"
        )
    if not failed:
        passed += ["its provenance is complete", "its values are possible"]
    return Checked(run.id, tuple(passed), tuple(failed), tuple(unchecked))


def add_submission(folder: Path, run_id: str, results: Path) -> Path:
    """Copy a checked run into <results>/submitted, whole or not at all; the same run again changes nothing."""
    target = results / SUBMITTED / run_id
    contents = {name: (folder / name).read_bytes() for name in FILES}
    contents["ranks.parquet"] = whole_file(folder / "ranks.parquet")
    if target.exists():
        if any((target / name).read_bytes() != content for name, content in contents.items()):
            raise UserError(f"{target} is another submission of the same run; remove it first if it is to be replaced")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as temporary:
        inside = Path(temporary) / run_id
        inside.mkdir()
        for name, content in contents.items():
            (inside / name).write_bytes(content)
        inside.rename(target)
    return target


def _origin(folder: Path, run: Run) -> list[str]:
    """What is wrong with the run's id and provenance."""
    record = read_json(folder / "provenance.json")
    failed = []
    expected = f"{run.dataset}-{run.protocol}-{run.method}-seed{run.seed}-{run.identity()}"
    if run.id != expected:
        failed.append(
            f"run.yaml: id {run.id} is not {expected}, as its own settings give; put back the settings that it was "
            "trained with or, if they mean something else since then, train it with this version"
        )
    if absent := [key for key in PROVENANCE if record.get(key) is None]:
        failed.append(f"provenance.json lacks {', '.join(absent)}; train the run with this version to write them")
    revision = str(record.get("git_revision", ""))
    if not re.fullmatch("[0-9a-f]{40}", revision):
        failed.append(
            f"provenance.json: git_revision {revision!r} is no commit; commit the code that trained the run, and train "
            "and rank it from a clean checkout"
        )
    if record.get("seed") not in (None, run.seed):
        failed.append(f"provenance.json has seed {record['seed']} and run.yaml {run.seed}")
    if not re.fullmatch("[0-9a-f]{64}", str(record.get("dataset_hash", ""))):
        failed.append("provenance.json: dataset_hash is no SHA-256 of 64 hexadecimal digits")
    for key in ("hours", "parameters"):
        value = record.get(key)
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            failed.append(f"provenance.json: {key} is {value}, which cannot be")
    return failed


def _values(table: RankTable) -> list[str]:
    """What about the ranks cannot be, or is too good."""
    failed, rank = [], table.rank
    if (rows := np.flatnonzero(rank * 2 != np.floor(rank * 2))).size:
        failed.append(f"ranks.parquet, row {rows[0] + 1}: rank {rank[rows[0]]:g} is no multiple of a half")
    uneven = table.hittable & ((rank % 1 == 0.5) != (table.ties % 2 == 1))
    if (rows := np.flatnonzero(uneven)).size:
        row = rows[0]
        failed.append(
            f"ranks.parquet, row {row + 1}: rank {rank[row]:g} does not fit {table.ties[row]} ties, which count by half"
        )
    for name in ("ties", "history_length", "target_frequency"):
        if (rows := np.flatnonzero(getattr(table, name) < 0)).size:
            failed.append(f"ranks.parquet, row {rows[0] + 1}: {name} is negative")
    first = float(np.mean(rank == 1))
    if first > MOST_AT_FIRST_PLACE:
        failed.append(
            f"{100 * first:.1f} % of the users have their target at rank 1 (MRR {metric_mean(rank, 'mrr'):.3f}): no "
            "recommender does that; look for the target among what the method reads"
        )
    if len(rank) > 1 and bool((rank == rank[0]).all()):
        failed.append(f"every user has rank {rank[0]:g}")
    return failed


def _against_data(prepared: Path, table: RankTable, dataset_hash: str) -> list[str]:
    """What of the ranks does not fit the prepared data set."""
    dataset = load_dataset(prepared)
    if dataset.card.split_sha256 != dataset_hash:
        return [f"its split is {dataset_hash[:12]}, and that of {prepared} is {dataset.card.split_sha256[:12]}"]
    cases = dataset.cases("test")
    if len(cases) != len(table):
        return [f"ranks.parquet has {len(table)} users and the data set's test {len(cases)}"]
    failed = []
    users, items = pa.array(dataset.user_ids()).take(pa.array(cases.user)), pa.array(dataset.item_ids())
    for name, expected in (("user_id", users), ("target_item", items.take(pa.array(cases.target)))):
        if not getattr(table, name).equals(expected.cast(pa.large_string())):
            failed.append(f"ranks.parquet: {name} is not as in the data set's test, in its order")
    if (table.history_length != cases.history_end - cases.history_start).any():
        failed.append("ranks.parquet: history_length is not the data set's")
    if (table.target_frequency != dataset.training_frequency()[cases.target]).any():
        failed.append("ranks.parquet: target_frequency is not the data set's")
    if (rows := np.flatnonzero(table.rank > dataset.item_count)).size:
        row = rows[0]
        failed.append(
            f"ranks.parquet, row {row + 1}: rank {table.rank[row]:g} in a catalogue of {dataset.item_count} items"
        )
    return failed
