"""A table's results by how often the target was trained on: cold items, and the tail and the head of the catalogue.

The strata are cut at the training events of the targets: none (cold), and the rest in thirds of the targets, so that
each has about as many users. Beside them stands the share of users whose target's score ties with another item's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmark.analysis.views import metric_title
from benchmark.evaluation.metrics import Float64, RankTable, metric_values, read_ranks

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable

METRICS = ("recall@10", "ndcg@10")
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Stratum:
    """users: (n,) whether the target of each is in it."""

    name: str
    users: NDArray[np.bool_]

    @property
    def size(self) -> int:
        return int(self.users.sum())


def strata(frequency: NDArray[np.int32]) -> list[Stratum]:
    """frequency: (n,) training events of each user's target. A stratum that no target falls in stays, with no user."""
    trained = frequency[frequency > 0]
    low, high = (
        (int(x) for x in np.quantile(trained, [1 / 3, 2 / 3], method="inverted_cdf")) if len(trained) else (0, 0)
    )
    return [
        Stratum("cold, no event", frequency == 0),
        Stratum(f"tail, 1 to {low}", (frequency > 0) & (frequency <= low)),
        Stratum(f"middle, {low + 1} to {high}", (frequency > low) & (frequency <= high)),
        Stratum(f"head, over {high}", frequency > high),
    ]


def means(table: RankTable, groups: Sequence[Stratum]) -> list[Float64]:
    """(m,) the means of METRICS over the users of each stratum; NaN where it has none."""
    values = metric_values(table.rank, METRICS)
    return [values[group.users].mean(axis=0) if group.size else np.full(len(METRICS), np.nan) for group in groups]


def breakdown(plan: PlannedTable, folder: Path) -> tuple[str, str]:
    """CSV (fractions) and Markdown (percentages) of a planned table's runs in folder/runs."""
    csv = ["table,dataset,protocol,method,variant,seed,stratum,users,metric,value"]
    text = [
        f"# {plan.file.title}: by how often the target was trained on", "",
        "Percentages: means over the users whose held-out item has so many training events. Ties: users whose target's "
        "score equals that of another item.",
    ]  # fmt: skip
    for block in plan.blocks:
        lines: list[str] = []
        for row in block.rows:
            tables = [read_ranks(folder / "runs" / run.id / "ranks.parquet") for run in row.runs]
            groups = strata(tables[0].target_frequency)
            if not lines:
                heads = [f"{metric_title(m)} {g.name} ({g.size})" for g in groups for m in METRICS]
                lines = [f"| Method | {' | '.join(heads)} | Ties |", f"| :-- |{' --: |' * (len(heads) + 1)}"]
            found = [means(table, groups) for table in tables]
            for run, values in zip(row.runs, found, strict=True):
                where = f'{plan.name},{run.dataset},{run.protocol},"{row.label}","{run.variant}",{run.seed}'
                csv += [
                    f'{where},"{group.name}",{group.size},{metric},{value if np.isfinite(value) else ""}'
                    for group, of_group in zip(groups, values, strict=True)
                    for metric, value in zip(METRICS, of_group, strict=True)
                ]
            average = np.mean(np.array(found), axis=0).flatten()
            cells = [f"{100 * value:.2f}" if np.isfinite(value) else NONE for value in average]
            ties = np.mean([np.mean(table.ties > 0) for table in tables])
            lines.append(f"| {row.label} | {' | '.join(cells)} | {100 * ties:.1f} % |")
        text += ["", f"**{block.block.title or block.block.dataset}**", "", *lines]
    return "\n".join(csv) + "\n", "\n".join(text) + "\n"
