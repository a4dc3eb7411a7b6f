"""What a report says besides results: data cards, methods and their deviations, provenance, and the paper's claims."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.analysis.claims import UNTESTED, claim_line, claim_section, claims_view, untested_line
from benchmark.analysis.report_charts import numbers
from benchmark.analysis.report_inputs import ReportTable
from benchmark.analysis.runs import LoadedRun
from benchmark.analysis.tables import BlockResult
from benchmark.analysis.views import View
from benchmark.data.dataset import DataCard
from benchmark.data.sources import load_definitions
from benchmark.errors import UserError

if TYPE_CHECKING:
    from benchmark.experiments import Configuration

HASH = 12  # digits of hashes and revisions that are shown


@dataclass(frozen=True)
class DataFacts:
    """A data set of the report. view: of its card, or of what is known without one. remark: why there is none."""

    title: str
    split: str
    view: View
    card: DataCard | None = None
    remark: str = ""


@dataclass(frozen=True)
class MethodFacts:
    """rows: labels of the rows that use it, where they are not its own."""

    label: str
    rows: tuple[str, ...]
    source: str
    deviations: tuple[str, ...]


def data_facts(tables: Sequence[ReportTable], data: Path, configuration: Configuration) -> list[DataFacts]:
    """A data set, protocol and split each, in the order of the tables."""
    first = {
        (block.first_run.dataset, block.first_run.protocol, block.first_run.dataset_hash): block
        for table in reversed(tables)
        for block in reversed(table.result.blocks)
    }
    return [_data_facts(block, data, configuration) for block in reversed(first.values())]


def _data_facts(block: BlockResult, data: Path, configuration: Configuration) -> DataFacts:
    run = block.first_run
    path = data / run.dataset / run.protocol / "dataset.json"
    title = f"{run.dataset}, protocol {run.protocol}"
    name = f"data-{run.dataset}-{run.protocol}-{run.dataset_hash[:8]}"
    card = _read_card(path)
    if card is not None and card.split_sha256 == run.dataset_hash:
        return DataFacts(title, run.dataset_hash, _facts_view(name, title, _card_lines(card)), card)
    remark = f"The prepared data set is not at {path.parent}, so its card is not shown."
    if card is not None:
        other = card.split_sha256[:HASH]
        remark = f"The data set at {path.parent} has another split now ({other}), so its card is not shown."
    known = load_definitions(configuration.folder / "datasets.yaml").get(run.dataset)
    lines = [("Users with a held-out item", f"{run.users:,}"), ("SHA-256 of the split", run.dataset_hash)]
    if known is not None:
        lines += [("Licence", known.licence), *([("Terms", known.terms)] if known.terms else [])]
    return DataFacts(title, run.dataset_hash, _facts_view(name, title, lines), remark=remark)


def _read_card(path: Path) -> DataCard | None:
    if not path.is_file():
        return None
    try:
        return DataCard.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no data card of this version ({error}); prepare the data set again") from error


def _card_lines(card: DataCard) -> list[tuple[str, str]]:
    length = card.sequence_length
    unhittable = {split: share for split, share in card.unhittable_targets.items() if share is not None}
    return [
        ("Users", f"{card.counts.users:,}"),
        ("Items, all of them candidates", f"{card.counts.items:,}"),
        ("Interactions", f"{card.counts.interactions:,}"),
        ("Interactions in training", f"{card.training_interactions:,}"),
        ("Events a user", f"mean {length.mean:.1f}, median {length.median:g}, most {length.max:,}"),
        ("Rows that share user and time with another row", f"{100 * card.tie_rate:.2f} %"),
        ("Users whose last two events tie, so that file order decides the target", f"{100 * card.tied_targets:.2f} %"),
        *(
            (f"Users whose {split} item stands in their history and cannot be hit", f"{100 * share:.2f} %")
            for split, share in unhittable.items()
        ),
        *(
            (f"Users whose {split} item no training event has", f"{100 * share:.2f} %")
            for split, share in (card.cold_targets or {}).items()
            if share is not None
        ),
        ("Text fields", ", ".join(card.text_fields) or "none"),
        ("Items without text", f"{card.items_without_text:,}"),
        ("Left out", ", ".join(f"{reason} {count:,}" for reason, count in card.dropped.items()) or "nothing"),
        ("Filter", card.filter if isinstance(card.filter, str) else _plain(card.filter)),
        *((f"Raw file {source.file}", f"{source.bytes:,} bytes, SHA-256 {source.sha256}") for source in card.sources),
        *([("Differs from what is expected", "; ".join(card.count_deviations))] if card.count_deviations else []),
        ("SHA-256 of the split", card.split_sha256),
        ("Licence", card.licence),
        *([("Terms", card.terms)] if card.terms else []),
    ]


def _facts_view(name: str, title: str, lines: Sequence[tuple[str, str]]) -> View:
    return numbers(name, f"Data card: {title}", ("Property", "Value"), lines, text=2)


def _plain(settings: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def methods(tables: Sequence[ReportTable], configuration: Configuration) -> list[MethodFacts]:
    """Source of each method and its deviations from it, as its file under config/methods says now."""
    rows: dict[str, dict[str, None]] = {}
    for table in tables:
        for block in table.result.blocks:
            for row in block.rows:
                rows.setdefault(row.row.runs[0].method, {})[row.row.label] = None
    found = []
    for name, labels in rows.items():
        if (configuration.folder / "methods" / f"{name}.yaml").is_file():
            file = configuration.method(name)
            others = tuple(labels) if list(labels) != [file.label] else ()
            found.append(MethodFacts(file.label, others, " ".join(file.source.split()), tuple(file.deviations)))
    return found


@dataclass(frozen=True)
class NamedRun:
    """A run and the label of its row in the first table that has it."""

    run: LoadedRun
    label: str
    record: Any


def all_runs(tables: Sequence[ReportTable]) -> list[NamedRun]:
    """Every run of the report once, in the order of the tables."""
    found: dict[str, NamedRun] = {}
    for table in tables:
        for block in table.result.blocks:
            for row in block.rows:
                for one in row.runs:
                    details = table.details[one.run.run_id]
                    found.setdefault(one.run.run_id, NamedRun(one.run, row.row.label, details.record))
    return list(found.values())


def provenance(tables: Sequence[ReportTable]) -> tuple[View, View]:
    """Where every run comes from, and the software that the runs were made with."""
    runs = all_runs(tables)
    lines = [
        (named.run.run_id, named.label, str(named.run.seed), short(named.run.git_revision) or "unknown",
         named.run.device or "unknown", named.run.dataset_hash[:HASH])
        for named in runs
    ]  # fmt: skip
    software = Counter(
        (f"Python {named.record.get('python', 'unknown')}", str(named.record.get("platform", "unknown")),
         ", ".join(f"{name} {version}" for name, version in (named.record.get("packages") or {}).items()) or "unknown")
        for named in runs
    )  # fmt: skip
    return (
        numbers(
            "runs", "Runs", ("Run", "Method", "Seed", "Commit", "Device", "Split"), lines,
            "Each run's folder, runs/<run>, holds its settings, ranks, metrics, training curve and provenance.", text=2,
        ),
        numbers(
            "software", "Software of the runs", ("Runs", "Python", "Platform", "Packages"),
            [(str(count), *kind) for kind, count in software.items()], text=4,
        ),
    )  # fmt: skip


def short(revision: str) -> str:
    """A commit's first digits, and whether the code had changes besides."""
    commit, plus, changes = revision.partition("+")
    return commit[:HASH] + plus + changes


def claims(path: Path) -> View | None:
    """Claims of the paper as claims.csv has them, where it is."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sections = []
    try:
        for (claim, place), group in groupby(rows, lambda row: (row["claim"], row["paper"])):
            lines, verdicts = [], []
            for row in group:
                if row["verdict"] == UNTESTED:
                    lines.append(untested_line(row["contrast"]))
                    continue
                verdicts.append(row["verdict"])
                lines.append(
                    claim_line(
                        (row["verdict"], row["contrast"], row["dataset"], row["metric"]),
                        (float(row["estimate"]), float(row["ci_low"]), float(row["ci_high"])),
                        (float(row["p_holm"]), float(row["p_seeds"] or "nan")),
                        int(row["seeds"]),
                    )
                )
            sections.append(claim_section(claim, place, lines, verdicts))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} lacks a column or number ({error}); make the claims again") from error
    return claims_view(sections, sum(row["verdict"] != UNTESTED for row in rows))
