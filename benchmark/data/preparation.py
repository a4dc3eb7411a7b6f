"""From raw tables to a prepared data set: filter, order, split, data card. The result depends on the raw files, the
definition and the protocol alone, to the byte."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch

from benchmark.data import csv_dataset, movielens, randomness
from benchmark.data.dataset import (
    FORMAT_VERSION,
    TEST,
    TRAIN_END,
    VALIDATION,
    Counts,
    DataCard,
    Int8,
    Int32,
    Int64,
    LabelFacts,
    Protocol,
    SequenceLength,
    labels_hash,
    split_hash,
)
from benchmark.data.delimited import BadRows, OnBadRows
from benchmark.data.randomness import Stream
from benchmark.data.sources import DatasetDefinition, ExpectedCounts, OnePassFilter, TiedOrder
from benchmark.errors import UserError
from benchmark.files import write_atomically

READERS = {"movielens": movielens.read, "csv": csv_dataset.read}

# Fewest events of a user: hllm holds two out and trains on the rest, meta holds one out.
SHORTEST = {"hllm": 3, "meta": 2}

Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class _Events:
    """The interactions in the file's order, as indices into sorted ids; each (n,). labels: if the data set has any."""

    users: Int64
    items: Int64
    timestamps: Int64
    labels: Int8 | None

    def where(self, kept: Bools) -> _Events:
        if kept.all():
            return self
        labels = self.labels[kept] if self.labels is not None else None
        return _Events(self.users[kept], self.items[kept], self.timestamps[kept], labels)


@dataclass(frozen=True)
class _Sequences:
    """The canonical form; see `benchmark.data.dataset.Dataset`."""

    items: Int32
    timestamps: Int64
    offsets: Int64
    split: Int32
    labels: Int8 | None


def prepare(definition: DatasetDefinition, protocol: str, output_folder: Path, on_bad_rows: str = "fail") -> DataCard:
    """Read a data set's raw files, check them, and write the prepared folder; returns its card.

    protocol: "hllm" (last event test, last but one validation) or "meta" (last event test, no validation).
    on_bad_rows: "fail" stops at the first bad row, "drop" leaves such rows out and counts them in the card.
    dataset.json is removed first and written last, so a folder that has it is whole.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"there is no protocol {protocol!r}; the protocols are: {', '.join(get_args(Protocol))}")
    if on_bad_rows not in get_args(OnBadRows):
        raise UserError(f"--on-bad-rows {on_bad_rows} is not known: write fail or drop")
    bad = BadRows(on_bad_rows)  # type: ignore[arg-type]
    raw = READERS[definition.reader](definition, bad)
    user_ids = raw.interactions["user_id"].unique().sort()  # polars orders strings by their UTF-8 bytes
    item_ids = pl.concat([raw.interactions["item_id"], raw.items["item_id"]]).unique().sort()
    events = _Events(
        _codes(raw.interactions["user_id"], user_ids),
        _codes(raw.interactions["item_id"], item_ids),
        raw.interactions["timestamp"].to_numpy().astype(np.int64, copy=False),
        raw.interactions["label"].to_numpy() if definition.label is not None else None,
    )
    texts, sources = raw.items, list(raw.sources)
    del raw  # the strings of all rows are the largest thing in memory

    dropped = dict(sorted(bad.dropped.items()))
    events, candidates = _filtered(events, len(item_ids), definition.filter, dropped)
    if definition.expected is not None:
        _check_counts(definition, definition.expected, events, int(candidates.sum()))
    events = _without_short_users(events, SHORTEST[protocol], dropped)
    if not len(events.users):
        raise UserError(
            f"data set {definition.name}: no user has the {SHORTEST[protocol]} interactions that protocol {protocol} "
            "needs; add interactions or loosen `filter`"
        )
    if protocol == "hllm":
        candidates = _present(events.items, len(item_ids))
    users = _present(events.users, len(user_ids))
    sequences = _sequences(events, users, candidates, protocol, definition.tied_order)
    del events
    user_ids, item_ids = user_ids.filter(pl.Series(users)), item_ids.filter(pl.Series(candidates))
    return _write(definition, protocol, output_folder, sequences, user_ids, item_ids, texts, dropped, sources)


def _codes(values: pl.Series, ids: pl.Series) -> Int64:
    """(n,) the place of each value among the sorted ids, which have them all."""
    return values.cast(pl.Enum(ids)).to_physical().to_numpy().astype(np.int64)


def _present(codes: Int64, size: int) -> Bools:
    """(size,) whether each code occurs."""
    present = np.zeros(size, dtype=np.bool_)
    present[codes] = True
    return present


def _filtered(
    events: _Events, item_count: int, rule: OnePassFilter | None, dropped: dict[str, int]
) -> tuple[_Events, Bools]:
    """The events that a filter keeps, and (item_count,) the catalogue of protocol meta.

    That catalogue is fixed before users are dropped for being too short: all items of the item file without a filter,
    and the items of the rows that pass the first step of the one-pass filter.
    """
    if rule is None:
        return events, np.ones(item_count, dtype=np.bool_)
    before = len(events.users)
    often = np.bincount(events.items, minlength=item_count)[events.items] >= rule.item_count
    events = events.where(often & (np.bincount(events.users)[events.users] >= rule.user_count))
    candidates = _present(events.items, item_count)
    if len(events.users):
        events = events.where(np.bincount(events.users)[events.users] >= rule.user_count)
    dropped["interactions left out by the one-pass filter"] = before - len(events.users)
    return events, candidates


def _without_short_users(events: _Events, shortest: int, dropped: dict[str, int]) -> _Events:
    """The events of users who have enough of them."""
    counts = np.bincount(events.users)
    kept = events.where(counts[events.users] >= shortest)
    reason = f"with fewer than {shortest} interactions"
    dropped[f"users {reason}"] = int(((counts > 0) & (counts < shortest)).sum())
    dropped[f"interactions of users {reason}"] = len(events.users) - len(kept.users)
    return kept


def _check_counts(definition: DatasetDefinition, expected: ExpectedCounts, events: _Events, candidates: int) -> None:
    found = ExpectedCounts.model_construct(
        users=len(np.unique(events.users)),
        items=len(np.unique(events.items)),
        interactions=len(events.users),
        candidates_meta=candidates if expected.candidates_meta is not None else None,
    )
    if found != expected:
        names = [name for name in ExpectedCounts.model_fields if getattr(found, name) != getattr(expected, name)]
        told = ", ".join(
            f"{getattr(expected, name)} {name} expected and {getattr(found, name)} found" for name in names
        )
        raise UserError(
            f"data set {definition.name}: {told}; the raw files are not those that the definition describes: "
            "get them again, or mend `expected` and `filter`"
        )


def _order(events: _Events, tied_order: TiedOrder) -> Int64:
    """(n,) rows by user and time; lexsort is stable, so that tied rows keep the file's order unless told otherwise."""
    if tied_order == "file":
        return np.lexsort((events.timestamps, events.users))
    rows = np.arange(len(events.users))
    if tied_order == "reversed":
        return np.lexsort((-rows, events.timestamps, events.users))
    shuffled = randomness.hashes(randomness.key(0, Stream.TIED_ORDER), torch.from_numpy(rows)).numpy()
    return np.lexsort((rows, shuffled, events.timestamps, events.users))


def _sequences(
    events: _Events, users: Bools, candidates: Bools, protocol: str, tied_order: TiedOrder = "file"
) -> _Sequences:
    """Sort by (user, timestamp, tied order), number users and items without gaps, and split every user's events."""
    order = _order(events, tied_order)
    lengths = np.bincount(events.users, minlength=len(users))[users]
    item_numbers = np.cumsum(candidates) - 1
    validation = lengths - 2 if protocol == "hllm" else np.full_like(lengths, -1)
    train_end = lengths - 2 if protocol == "hllm" else lengths - 1
    return _Sequences(
        items=item_numbers[events.items[order]].astype("<i4"),
        timestamps=events.timestamps[order].astype("<i8"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
        split=np.stack([train_end, validation, lengths - 1], axis=1).astype("<i4"),
        labels=events.labels[order] if events.labels is not None else None,
    )


def _facts(sequences: _Sequences) -> dict[str, Any]:
    """The figures of a data card that describe order and split."""
    offsets, timestamps, items = sequences.offsets, sequences.timestamps, sequences.items
    starts, lengths = offsets[:-1], np.diff(offsets)
    ties_with_last = np.concatenate([[False], timestamps[1:] == timestamps[:-1]])
    ties_with_last[starts] = False
    tied = ties_with_last | np.append(ties_with_last[1:], False)
    position = np.arange(len(items)) - np.repeat(starts, lengths)
    unhittable: dict[str, float | None] = {}
    for name, column in (("validation", VALIDATION), ("test", TEST)):
        target = sequences.split[:, column].astype(np.int64)
        has_target = target >= 0
        target_items = np.where(has_target, items[starts + np.maximum(target, 0)], -1)
        seen = (items == np.repeat(target_items, lengths)) & (position < np.repeat(target, lengths))
        share = np.logical_or.reduceat(seen, starts)[has_target]
        unhittable[name] = float(share.mean()) if len(share) else None
    return {
        "training_interactions": int(sequences.split[:, TRAIN_END].sum(dtype=np.int64)),
        "tie_rate": float(tied.mean()),
        "tied_targets": float(ties_with_last[offsets[1:] - 1].mean()),
        "unhittable_targets": unhittable,
        "sequence_length": SequenceLength(float(lengths.mean()), float(np.median(lengths)), int(lengths.max())),
    }


def _write(
    definition: DatasetDefinition, protocol: str, folder: Path, sequences: _Sequences, user_ids: pl.Series,
    item_ids: pl.Series, texts: pl.DataFrame, dropped: dict[str, int], sources: list[Any],
) -> DataCard:  # fmt: skip
    """Write the folder, the card last."""
    items = item_ids.to_frame("item_id").join(texts, on="item_id", how="left", maintain_order="left")
    fields = items.columns[1:]
    no_text = items.select(pl.all_horizontal(pl.col(name).is_null() for name in fields).sum()).item() if fields else 0
    arrays = {name: getattr(sequences, name) for name in ("items", "timestamps", "offsets", "split")}
    labels = None
    if definition.label is not None and sequences.labels is not None:
        positive, digest = float(sequences.labels.mean()), labels_hash(sequences.labels)
        labels = LabelFacts(definition.label.column, definition.label.positive_from, positive, digest)
    card = DataCard(
        format_version=FORMAT_VERSION,
        name=definition.name,
        protocol=protocol,  # type: ignore[arg-type]
        counts=Counts(len(user_ids), len(item_ids), len(sequences.items)),
        event_times=definition.event_times,
        text_fields=fields,
        items_without_text=no_text,
        dropped={reason: count for reason, count in dropped.items() if count},
        filter=definition.filter.model_dump() if definition.filter else "none",
        sources=sources,
        split_sha256=split_hash(protocol, item_ids.to_list(), user_ids.to_list(), **arrays),
        licence=definition.licence,
        terms=definition.terms,
        created_by=_versions(),
        labels=labels,
        **_facts(sequences),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset.json").unlink(missing_ok=True)
        (folder / "labels.npy").unlink(missing_ok=True)  # an earlier preparation may have had labels
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name a folder that can") from error
    for name, array in arrays.items():
        write_atomically(folder / f"{name}.npy", partial(_save, array))
    if sequences.labels is not None:
        write_atomically(folder / "labels.npy", partial(_save, sequences.labels))
    write_atomically(folder / "users.parquet", user_ids.to_frame("user_id").write_parquet)
    write_atomically(folder / "items.parquet", items.write_parquet)
    write_atomically(
        folder / "dataset.json", lambda path: path.write_text(card.to_json(), encoding="utf-8", newline="\n")
    )
    return card


def _save(array: np.ndarray[Any, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a name, np.save would add .npy to it
        np.save(file, array, allow_pickle=False)


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("hllm-bench", "numpy", "polars", "pyarrow")}
    return {"python": platform.python_version(), **packages}
