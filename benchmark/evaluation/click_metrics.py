"""Metrics of predicted clicks, and clicks.parquet, which holds a row a (history, target, label) case.

    AUC        = probability that a clicked case has a higher logit than one that is not; equal logits count by half
    group AUC  = sum over users of n_u AUC_u / sum of n_u, n_u the user's cases, over users with cases of both labels
                 (Zhou et al., Deep Interest Network, KDD 2018, equation 7)
    log loss   = mean over cases of -log p(label), p = sigmoid(logit), natural logarithm

All are fractions but log loss, which is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmark.errors import UserError
from benchmark.evaluation.checked_parquet import read_checked
from benchmark.evaluation.metrics import Float64, Int64
from benchmark.files import write_atomically

Int8 = NDArray[np.int8]

CLICK_METRICS = ("auc", "group_auc", "log_loss")
CLICKS_SCHEMA = {
    "user_id": "string",
    "target_item": "string",
    "label": "int8",
    "logit": "float",
    "history_length": "int32",
    "timestamp": "int64",
}


@dataclass(frozen=True)
class ClickTable:
    """clicks.parquet: one entry a case, users' cases together and oldest first.

    user_id, target_item: Arrow string arrays. label: (n,) 0 or 1. logit: (n,). history_length: (n,) events that the
    method could read. timestamp: (n,) the target's.
    """

    user_id: Any
    target_item: Any
    label: Int8
    logit: Float64
    history_length: NDArray[np.int32]
    timestamp: Int64

    def __len__(self) -> int:
        return len(self.label)

    def users(self) -> Int64:
        """(n,) a number for each case's user."""
        numbers: Int64 = self.user_id.dictionary_encode().indices.to_numpy().astype(np.int64)
        return numbers


def auc(label: Int8, logit: Float64) -> float:
    """Area under the ROC curve; NaN where a label is missing."""
    positives = int(label.sum())
    pairs = positives * (len(label) - positives)
    if pairs == 0:
        return float("nan")
    from scipy.stats import rankdata  # takes a second, and whatever trains or ranks imports this module

    return float((rankdata(logit)[label == 1].sum() - positives * (positives + 1) / 2) / pairs)


def user_aucs(users: Int64, label: Int8, logit: Float64) -> tuple[Float64, Int64]:
    """AUC of every user number 0, 1, ..., NaN for users without cases of both labels, and the users' cases."""
    order = np.lexsort((logit, users))
    user, value, positive = users[order], logit[order], label[order].astype(np.float64)
    cases, positives = np.bincount(user), np.bincount(user, positive)
    tied = np.flatnonzero(np.append(True, (np.diff(user) != 0) | (np.diff(value) != 0)))  # first of equal logits
    sizes = np.diff(np.append(tied, len(user)))
    rank = np.repeat(tied + (sizes + 1) / 2, sizes) - np.repeat(cases.cumsum() - cases, cases)  # within the user
    pairs = positives * (cases - positives)
    above = np.bincount(user, rank * positive) - positives * (positives + 1) / 2
    return np.divide(above, pairs, out=np.full(len(cases), np.nan), where=pairs > 0), cases


def group_auc(users: Int64, label: Int8, logit: Float64) -> float:
    """Users' AUC weighted by their cases; NaN if no user has cases of both labels."""
    values, cases = user_aucs(users, label, logit)
    both = ~np.isnan(values)
    return float(np.average(values[both], weights=cases[both])) if both.any() else float("nan")


def losses(label: Int8, logit: Float64) -> Float64:
    """(n,) -log p(label) of each case, without overflow."""
    found: Float64 = np.logaddexp(0.0, np.where(label == 1, -logit, logit))
    return found


def click_metric(table: ClickTable, name: str) -> float:
    """A metric of CLICK_METRICS over all cases."""
    if name == "auc":
        return auc(table.label, table.logit)
    if name == "group_auc":
        return group_auc(table.users(), table.label, table.logit)
    if name == "log_loss":
        return float(losses(table.label, table.logit).mean())
    raise UserError(f"metric {name!r} is not known for clicks: write one of {', '.join(CLICK_METRICS)}")


def write_clicks(path: Path, columns: dict[str, Any]) -> None:
    """Write clicks.parquet; columns: those of CLICKS_SCHEMA."""
    types = {"string": pa.string(), "int8": pa.int8(), "float": pa.float32(), "int32": pa.int32(), "int64": pa.int64()}
    table = pa.table({name: pa.array(columns[name], types[kind]) for name, kind in CLICKS_SCHEMA.items()})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_clicks(path: Path) -> ClickTable:
    """Read and check clicks.parquet; a file that cannot be one is a UserError that names what is wrong with it."""
    again = "run the click step of this run again to write it"
    table = read_checked(path, CLICKS_SCHEMA, again)
    label, logit = table["label"].to_numpy(), table["logit"].to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~(np.isin(label, (0, 1)) & np.isfinite(logit)))
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{path}, row {row + 1}: label {label[row]} and logit {logit[row]} must be 0 or 1 and a finite number; "
            f"{again}"
        )
    if len(np.unique(label)) < 2:
        raise UserError(f"{path} has no case of both labels, so that AUC is not defined; {again}")
    text = {name: pa.concat_arrays(table[name].cast(pa.large_string()).chunks) for name in ("user_id", "target_item")}
    numbers = {name: table[name].to_numpy() for name in ("history_length", "timestamp")}
    return ClickTable(**text, label=label, logit=logit, **numbers)
