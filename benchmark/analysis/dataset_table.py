"""Table 1: the prepared data sets beside their published counts, and what their splits are like."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from benchmark.analysis import rendering
from benchmark.analysis.views import NONE, Cell, Line, Section, View
from benchmark.data.dataset import DataCard, load_dataset
from benchmark.data.preset_data import PresetData
from benchmark.errors import UserError
from benchmark.files import write_text

PUBLISHED = Path("results/published/table1_datasets.csv")
PUBLISHED_NAMES = {
    "amazon-books": "Books",
    "amazon-books-processed": "Books",
    "pixel200k": "Pixel200K",
    "pixel1m": "Pixel1M",
    "pixel8m": "Pixel8M",
}
COUNTS = ("users", "items", "interactions")
_COLUMNS = (
    "Data set", "Protocol", "Users", "Items", "Interactions", "Mean length", "Test targets", "Tied rows (%)",
    "Tied targets (%)", "Unhittable (%)", "Cold targets (%)", "Split",
)  # fmt: skip


def make_dataset_table(preset: PresetData, data: Path, folder: Path, published: Path = PUBLISHED) -> str:
    """Write table1.{csv,md,tex,html} into folder from the cards under data, and return the table as text."""
    cards = [
        load_dataset(data / name / protocol).card
        for name, protocols in preset.datasets.items()
        for protocol in protocols
    ]
    known = read_published(published)
    view = dataset_view(cards, known)
    write_text(folder / "table1.csv", dataset_csv(cards, known))
    write_text(folder / "table1.md", rendering.markdown([view]))
    write_text(folder / "table1.tex", rendering.latex([view]))
    write_text(folder / "table1.html", rendering.html([view]))
    return rendering.text([view])


def read_published(path: Path) -> dict[str, dict[str, int]]:
    """Published counts by our name of the data set."""
    try:
        rows = {row["dataset"]: row for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))}
        return {ours: {count: int(rows[theirs][count]) for count in COUNTS} for ours, theirs in PUBLISHED_NAMES.items()}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} does not hold the published counts ({error}); get it again") from error


def dataset_view(cards: Sequence[DataCard], published: dict[str, dict[str, int]]) -> View:
    """A line a prepared data set and, below its first one, the published counts and how ours differ."""
    lines: list[Line] = []
    quoted: set[str] = set()
    for card in cards:
        lines.append(Line(tuple(map(Cell, _cells(card)))))
        if card.name in published and card.name not in quoted:
            quoted.add(card.name)
            numbers = [f"{published[card.name][name]:,}" for name in COUNTS]
            rest = [NONE] * (len(_COLUMNS) - 5)
            lines.append(Line(tuple(map(Cell, ["as published", NONE, *numbers, *rest])), quoted=True))
    notes = (
        "Items: the catalogue, that is, all candidates. Tied rows share user and time with another row; tied targets "
        "are test targets at the time of the event before them, so that the order of the file decides them.",
        "Unhittable: users whose test target stands in their history already. Cold: targets without a training event. "
        "Split: the first digits of its SHA-256.",
        "The published Books counts have one user and one item more: they count the padding." if quoted else "",
        *(f"{card.name}, {card.protocol}: accepted: {'; '.join(card.count_deviations)}."
          for card in cards if card.count_deviations),
    )  # fmt: skip
    return View(
        "table1", "Table 1: data sets", _COLUMNS, (Section("As prepared", tuple(lines)),), notes, text_columns=2
    )


def _cells(card: DataCard) -> list[str]:
    counts = [f"{getattr(card.counts, name):,}" for name in COUNTS]
    targets = NONE if card.targets is None else f"{card.targets['test']:,}"
    shares = [card.tie_rate, card.tied_targets, card.unhittable_targets["test"], (card.cold_targets or {}).get("test")]
    percent = [NONE if share is None else f"{100 * share:.2f}" for share in shares]
    mean = f"{card.sequence_length.mean:.2f}"
    return [card.name, card.protocol, *counts, mean, targets, *percent, card.split_sha256[:10]]


def dataset_csv(cards: Sequence[DataCard], published: dict[str, dict[str, int]]) -> str:
    """One row a number: dataset, protocol, statistic, value (shares as fractions), published, difference, and the hash
    of the split."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", "protocol", "statistic", "value", "published", "difference", "dataset_hash"])
    for card in cards:
        values: dict[str, float | int | None] = {name: getattr(card.counts, name) for name in COUNTS}
        values |= {
            "training_interactions": card.training_interactions,
            "mean_length": card.sequence_length.mean,
            "median_length": card.sequence_length.median,
            "max_length": card.sequence_length.max,
            "tie_rate": card.tie_rate,
            "tied_targets": card.tied_targets,
            "items_without_text": card.items_without_text,
        }
        for split in ("validation", "test"):
            values[f"{split}_targets"] = (card.targets or {}).get(split)
            values[f"{split}_unhittable"] = card.unhittable_targets[split]
            values[f"{split}_cold"] = (card.cold_targets or {}).get(split)
        for name, value in values.items():
            stated = published.get(card.name, {}).get(name)
            difference = "" if stated is None or value is None else value - stated
            shown = ["" if number is None else number for number in (value, stated)]
            writer.writerow([card.name, card.protocol, name, *shown, difference, card.split_sha256])
    return file.getvalue()
