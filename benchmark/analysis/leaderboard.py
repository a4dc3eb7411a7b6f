"""The leaderboard of a preset: finished runs and submitted ones, a row a method, never across splits.

A board is a data set, a protocol and a split (its hash). A row is a method under its name and variant: the mean over
the seeds of one group of settings. Where a name has several groups of settings, the one with most seeds stands there,
and how many do not is said: choosing the best by its test result would favour methods that are tried more often.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.analysis import rendering
from benchmark.analysis.runs import LoadedRun, check_comparable, load_run, settings_but_seed, settings_hash
from benchmark.analysis.significance import Comparison, compare, mean_intervals, outcomes
from benchmark.analysis.views import NONE, Cell, Line, Section, View, magnitude, metric_title, signed
from benchmark.errors import UserError
from benchmark.evaluation.metrics import DEFAULT_METRICS, Float64
from benchmark.files import write_text

ORDER = "ndcg@10"  # the metric that places follow
SHOWN = ("recall@10", "recall@50", "recall@200", "ndcg@10", "ndcg@50", "ndcg@200")
SUBMITTED = "submitted"  # folder of a preset's results that holds checked submissions
COLUMNS = (
    "dataset", "protocol", "dataset_hash", "place", "method", "label", "variant", *DEFAULT_METRICS,
    f"{ORDER}_ci_low", f"{ORDER}_ci_high", "behind_first", "behind_first_ci_low", "behind_first_ci_high", "users",
    "seeds", "other_settings", "negatives", "global_batch", "sequence_length", "parameters", "hours", "device",
    "git_revision", "source", "run_ids",
)  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """A method on a board. values, low, high: (m,) in the order of DEFAULT_METRICS, fractions.

    behind: this method against the first one by ORDER, for the same users; None for the first. others: groups of
    settings under the same name that are left out.
    """

    place: int
    runs: tuple[LoadedRun, ...]
    values: Float64
    low: Float64
    high: Float64
    behind: Comparison | None
    others: int
    source: str


@dataclass(frozen=True)
class Board:
    dataset: str
    protocol: str
    dataset_hash: str
    standings: tuple[Standing, ...]


def make_leaderboard(folder: Path) -> str:
    """Write folder/leaderboard.csv, .md and .html from folder's finished runs; returns the text for a terminal."""
    found = boards(folder)
    if not found:
        raise UserError(f"{folder} has no finished run in runs or {SUBMITTED}; make a table first, or submit a run")
    view = _view(found, folder.name)
    write_text(folder / "leaderboard.csv", _csv(found))
    write_text(folder / "leaderboard.md", rendering.markdown([view]))
    write_text(folder / "leaderboard.html", rendering.html([view]))
    return rendering.text([view])


def boards(folder: Path) -> list[Board]:
    """The boards of a preset's results, by data set; runs of one board have the same users and targets."""
    grouped: dict[tuple[str, str, str], dict[tuple[str, str, str], dict[str, list[tuple[LoadedRun, str]]]]] = {}
    places = {folder / "runs": "run", folder / SUBMITTED: SUBMITTED}
    for place, source in places.items():
        for ranks in sorted(place.glob("*/ranks.parquet")):
            run = load_run(ranks.parent)
            board = grouped.setdefault((run.dataset, run.protocol, run.dataset_hash), {})
            settings = board.setdefault((run.method, run.label, run.variant), {})
            members = settings.setdefault(settings_hash(settings_but_seed(ranks.parent, list(places))), [])
            if run.seed not in {other.seed for other, _ in members}:  # a run that was submitted counts once
                members.append((run, source))
    return [Board(*key, _standings(methods)) for key, methods in sorted(grouped.items())]


def _standings(methods: dict[tuple[str, str, str], dict[str, list[tuple[LoadedRun, str]]]]) -> tuple[Standing, ...]:
    rows = []
    for settings in methods.values():
        chosen = max(settings.values(), key=lambda members: (len(members), [run.run_id for run, _ in members]))
        runs = tuple(run for run, _ in sorted(chosen, key=lambda member: member[0].seed))
        rows.append((runs, len(settings) - 1, " and ".join(sorted({source for _, source in chosen}))))
    check_comparable([run for runs, _, _ in rows for run in runs])
    folded = [outcomes(np.stack([run.ranks for run in runs]), DEFAULT_METRICS) for runs, _, _ in rows]
    measured = [mean_intervals(one) for one in folded]
    column = DEFAULT_METRICS.index(ORDER)
    order = sorted(range(len(rows)), key=lambda index: -measured[index][0][column])
    return tuple(
        Standing(
            place=1 + sum(measured[other][0][column] > measured[index][0][column] for other in order),
            runs=rows[index][0],
            values=measured[index][0],
            low=measured[index][1],
            high=measured[index][2],
            behind=None if index == order[0] else compare(folded[index], folded[order[0]]),
            others=rows[index][1],
            source=rows[index][2],
        )
        for index in order
    )


def _csv(found: Sequence[Board]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    column = DEFAULT_METRICS.index(ORDER)
    for board in found:
        for row in board.standings:
            run, hours = row.runs[0], [one.hours for one in row.runs if one.hours is not None]
            behind: list[float | None] = [None, None, None]
            if row.behind:
                behind = [float(part[column]) for part in (row.behind.difference, row.behind.low, row.behind.high)]
            writer.writerow(
                (
                    board.dataset, board.protocol, board.dataset_hash, row.place, run.method, run.label, run.variant,
                    *map(float, row.values), float(row.low[column]), float(row.high[column]), *behind, run.users,
                    len(row.runs), row.others, run.negatives, run.global_batch, run.sequence_length, run.parameters,
                    math.fsum(hours) / len(hours) if hours else None, run.device,
                    " ".join(dict.fromkeys(one.git_revision for one in row.runs)), row.source,
                    " ".join(one.run_id for one in row.runs),
                )
            )  # fmt: skip
    return text.getvalue()


def _view(found: Sequence[Board], preset: str) -> View:
    columns = ("Place", "Method", "Source", *map(metric_title, SHOWN), "Behind first", "Seeds", "Parameters", "Hours")
    sections = []
    for board in found:
        users = board.standings[0].runs[0].users
        title = f"{board.dataset}, protocol {board.protocol}, split {board.dataset_hash[:12]} ({users:,} users)"
        sections.append(Section(title, tuple(_line(row) for row in board.standings)))
    others = [row for board in found for row in board.standings if row.others]
    title, order = f"Leaderboard, preset {preset}", metric_title(ORDER)
    notes = (
        f"Percentages over users, by {order}; the mean over seeds where there are several. Boards of different splits "
        "must not be compared.",
        f"Behind first: difference in {order} from the first place in points, with its 95 % interval (paired bootstrap "
        "over users); an interval that holds 0 leaves the order of the two open. Seeds' variation is not in it.",
        f"Source: {SUBMITTED} runs passed `python -m benchmark submit`; the others were made here.",
        *(
            f"{row.runs[0].label} on {row.runs[0].dataset} has {row.others} more group(s) of settings; shown is the "
            "one with most seeds."
            for row in others
        ),
    )
    return View("leaderboard", title, columns, tuple(sections), notes, text_columns=3)


def _line(row: Standing) -> Line:
    run, column = row.runs[0], DEFAULT_METRICS.index(ORDER)
    behind = NONE
    if row.behind:
        parts = (row.behind.difference, row.behind.low, row.behind.high)
        difference, low, high = (signed(100 * float(part[column]), 2) for part in parts)
        behind = f"{difference} ({low} to {high})"
    hours = [one.hours for one in row.runs if one.hours is not None]
    mean_hours = math.fsum(hours) / len(hours) if hours else math.nan
    texts = (
        str(row.place), run.label, row.source,
        *(f"{100 * row.values[DEFAULT_METRICS.index(metric)]:.2f}" for metric in SHOWN), behind, str(len(row.runs)),
        magnitude(run.parameters), NONE if not hours else "<0.01" if mean_hours < 0.01 else f"{mean_hours:.2f}",
    )  # fmt: skip
    return Line(tuple(Cell(text) for text in texts))
