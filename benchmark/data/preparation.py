"""From raw tables to a prepared data set: filter, order, split, data card. The result depends on the raw files, the
definition and the protocol alone, to the byte."""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from benchmark.data import csv_dataset, movielens
from benchmark.data.dataset import (
    FORMAT_VERSION,
    Counts,
    DataCard,
    Int32,
    LabelFacts,
    Protocol,
    labels_hash,
    split_hash,
)
from benchmark.data.delimited import BadRows, OnBadRows
from benchmark.data.events import Events, count_deviations, counted, filtered, present
from benchmark.data.sources import DatasetDefinition
from benchmark.data.splits import Sequences, split_events, split_facts
from benchmark.errors import UserError
from benchmark.files import write_atomically

READERS = {"movielens": movielens.read, "csv": csv_dataset.read}
OnOtherCounts = Literal["fail", "accept"]


def prepare(
    definition: DatasetDefinition,
    protocol: str,
    output_folder: Path,
    on_bad_rows: str = "fail",
    on_other_counts: str = "fail",
) -> DataCard:
    """Read a data set's raw files, check them, and write the prepared folder; returns its card.

    protocol: "hllm", "meta" or "temporal"; `benchmark.data.splits.split_events` says what each holds out.
    on_bad_rows: "fail" stops at the first bad row, "drop" leaves such rows out and counts them in the card.
    on_other_counts: where the counts are not those that the definition expects, "fail" stops and "accept" notes it in
    the card. dataset.json is removed first and written last, so a folder that has it is whole.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"there is no protocol {protocol!r}; the protocols are: {', '.join(get_args(Protocol))}")
    if on_bad_rows not in get_args(OnBadRows):
        raise UserError(f"--on-bad-rows {on_bad_rows} is not known: write fail or drop")
    if on_other_counts not in get_args(OnOtherCounts):
        raise UserError(f"--on-other-counts {on_other_counts} is not known: write fail or accept")
    if protocol == "temporal" and not definition.event_times:
        raise UserError(
            f"data set {definition.name}: protocol temporal needs times, and its timestamps only order a user's events "
            "(event_times: false); use another protocol"
        )
    bad = BadRows(on_bad_rows)  # type: ignore[arg-type]
    raw = READERS[definition.reader](definition, bad)
    user_ids = raw.interactions["user_id"].unique().sort()  # polars orders strings by their UTF-8 bytes
    item_ids = pl.concat([raw.interactions["item_id"], raw.items["item_id"]]).unique().sort()
    events = Events(
        _codes(raw.interactions["user_id"], user_ids),
        _codes(raw.interactions["item_id"], item_ids),
        raw.interactions["timestamp"].to_numpy().astype(np.int64, copy=False),
        raw.interactions["label"].to_numpy() if definition.label is not None else None,
    )
    texts, sources = raw.items, list(raw.sources)
    del raw  # the strings of all rows are the largest thing in memory

    dropped = dict(sorted(bad.dropped.items()))
    events, candidates = filtered(events, len(item_ids), definition.filter, dropped)
    deviations = count_deviations(definition, counted(events, candidates))
    if deviations and on_other_counts == "fail":
        raise UserError(
            f"data set {definition.name}: {', '.join(deviations)}; the raw files are not those that the definition "
            "describes: get them again, mend `expected` and `filter`, or accept it with --on-other-counts accept"
        )
    try:
        sequences = split_events(events, len(user_ids), protocol, definition.tied_order, dropped)
    except UserError as error:
        raise UserError(f"data set {definition.name}: {error}") from error
    del events
    if protocol != "meta":
        candidates = present(sequences.items, len(item_ids))
    numbers = (np.cumsum(candidates) - 1).astype("<i4")
    sequences = replace(sequences, items=numbers[sequences.items])
    user_ids, item_ids = user_ids.filter(pl.Series(sequences.users)), item_ids.filter(pl.Series(candidates))
    return _write(
        definition, protocol, output_folder, sequences, user_ids, item_ids, texts, dropped, sources, deviations
    )


def _codes(values: pl.Series, ids: pl.Series) -> Int32:
    """(n,) the place of each value among the sorted ids, which have them all."""
    return values.cast(pl.Enum(ids)).to_physical().to_numpy().astype(np.int32)


def _write(
    definition: DatasetDefinition, protocol: str, folder: Path, sequences: Sequences, user_ids: pl.Series,
    item_ids: pl.Series, texts: pl.DataFrame, dropped: dict[str, int], sources: list[Any],
    deviations: list[str],
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
        cutoffs=sequences.cutoffs,
        count_deviations=deviations,
        **split_facts(sequences, len(item_ids)),
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
