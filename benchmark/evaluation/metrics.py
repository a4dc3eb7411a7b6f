"""Metrics from ranks, and the two files that hold them: ranks.parquet (one row a user) and metrics.csv.

Every user has one held-out item, so that with its rank r (1 is best)

    recall@K = [r <= K]        ndcg@K = [r <= K] / log2(r + 1)        mrr = 1 / r

Items that tie with the target count by half: r = 1 + items scored higher + ties / 2, which may end in .5; a target of
rank 10.5 is no hit at 10. A target that cannot be recommended has a rank after all that can, and needs no rule of its
own. All values are fractions.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmark.errors import UserError
from benchmark.evaluation.checked_parquet import check_columns, read_parquet
from benchmark.evaluation.shared_cases import RANKS_SCHEMA, completed
from benchmark.files import write_text

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

CUTOFFS = (5, 10, 50, 200)
DEFAULT_METRICS = (*(f"recall@{k}" for k in CUTOFFS), *(f"ndcg@{k}" for k in CUTOFFS), "mrr")


@dataclass(frozen=True)
class Metric:
    """A metric as its name says it: "recall@10", "ndcg@200" or "mrr", which has no cutoff."""

    kind: Literal["recall", "ndcg", "mrr"]
    cutoff: int | None = None

    @staticmethod
    def parse(name: str) -> Metric:
        if name == "mrr":
            return Metric("mrr")
        if match := re.fullmatch(r"(recall|ndcg)@([1-9][0-9]*)", name):
            return Metric("recall" if match[1] == "recall" else "ndcg", int(match[2]))
        raise UserError(f"metric {name!r} is not known: write recall@K or ndcg@K with a whole number K >= 1, or mrr")

    def values(self, ranks: Float64) -> Float64:
        """The metric of each rank, in the shape of ranks; an infinite rank gives 0."""
        if self.cutoff is None:
            return 1 / ranks
        hit = ranks <= self.cutoff
        if self.kind == "recall":
            return hit.astype(np.float64)
        return np.where(hit, 1 / np.log2(ranks + 1), 0.0)


def metric_values(ranks: Float64, names: Sequence[str]) -> Float64:
    """(..., m) the metrics `names` of ranks (...)."""
    ranks = np.asarray(ranks, np.float64)
    return np.stack([Metric.parse(name).values(ranks) for name in names], axis=-1)


def metric_mean(ranks: Float64, name: str) -> float:
    """A metric's mean over users, from their ranks (n,)."""
    return float(np.mean(Metric.parse(name).values(np.asarray(ranks, np.float64))))


def write_metrics(path: Path, ranks: Float64, names: Sequence[str] = DEFAULT_METRICS) -> None:
    """Write metrics.csv: metric, value (a fraction, the mean over users), users."""
    if len(ranks) == 0:
        raise UserError(f"{path}: there is no rank to compute metrics from; the data set's split has no test user")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "value", "users"])
    writer.writerows([name, repr(metric_mean(ranks, name)), len(ranks)] for name in names)
    write_text(path, text.getvalue())


def read_metrics(path: Path) -> tuple[dict[str, float], int]:
    """metrics.csv as (metric -> mean, number of users)."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; rank the run to write it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; delete it and rank the run again") from error
    if not rows or rows[0] != ["metric", "value", "users"]:
        raise UserError(f"{path}, line 1: expected the columns metric,value,users; rank the run again to write it")
    means: dict[str, float] = {}
    users: set[int] = set()
    for number, row in enumerate(rows[1:], start=2):
        try:
            name, value, count = row
            means[name] = float(value)
            users.add(int(count))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: expected a metric, a number and a number of users, found {','.join(row)!r}; "
                "rank the run again to write it"
            ) from error
    if len(users) != 1 or len(means) != len(rows) - 1:
        raise UserError(f"{path}: expected each metric once, all over the same number of users; rank the run again")
    return means, users.pop()


@dataclass(frozen=True)
class RankTable:
    """ranks.parquet: one entry a user, in the data set's order; user_id and target_item are Arrow string arrays."""

    user_id: Any
    target_item: Any
    rank: Float64
    ties: Int32
    history_length: Int32
    target_frequency: Int32
    hittable: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rank)


def read_ranks(path: Path) -> RankTable:
    """Read and check ranks.parquet; a file that cannot be one is a UserError that names what is wrong with it."""
    again = "rank the run again to write it"
    table = completed(path, read_parquet(path, again))
    check_columns(path, table, RANKS_SCHEMA, again)
    if table.num_rows == 0:
        raise UserError(f"{path} has no row; {again}")
    rank = table["rank"].to_numpy()
    wrong = np.flatnonzero(~((rank >= 1) & np.isfinite(rank)))
    if len(wrong):
        raise UserError(f"{path}, row {wrong[0] + 1}: rank {rank[wrong[0]]} is no finite number >= 1; {again}")
    if pc.count_distinct(table["user_id"]).as_py() != table.num_rows:
        raise UserError(f"{path}: a user_id stands in more than one row, and each user has one; {again}")
    columns = {name: table[name].to_numpy() for name in ("ties", "history_length", "target_frequency", "hittable")}
    text = {name: pa.concat_arrays(table[name].cast(pa.large_string()).chunks) for name in ("user_id", "target_item")}
    return RankTable(rank=rank, **text, **columns)
