"""From raw tables to a prepared data set: filter, order, split, data card. The result depends on the raw files, the
definition and the protocol alone, to the byte."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from benchmark.data import amazon, csv_dataset, movielens
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
from benchmark.data.events import Bools, Events, Ids, count_deviations, counted, filtered, present
from benchmark.data.raw_tables import InteractionFile, ItemTable, without
from benchmark.data.sources import DatasetDefinition
from benchmark.data.splits import Sequences, split_events, split_facts
from benchmark.errors import UserError
from benchmark.files import write_atomically

READERS: dict[str, Any] = {"movielens": movielens, "csv": csv_dataset, "amazon": amazon}
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
    reader = READERS[definition.reader]
    interactions_path, items_path = definition.files()
    users, items, table, catalogue = Ids(), Ids(), None, None
    if definition.missing_text == "fail":  # then interactions of items without a record are bad rows
        table = reader.items(definition, items_path, None, bad)
        catalogue = (items_path.name, len(items.codes(table.frame["item_id"])))
    file = reader.interactions(definition, interactions_path, bad)
    events = _read_events(file, users, items, catalogue, bad)
    dropped: dict[str, int] = {}
    events, candidates = filtered(events, len(items) if catalogue is None else catalogue[1], definition.filter, dropped)
    if table is None:  # their texts take most memory: those of dropped items are not kept
        wanted = items.names().filter(pl.Series(candidates)) if definition.filter is not None else None
        table = reader.items(definition, items_path, wanted, bad)
        if wanted is None:  # the item file is part of the catalogue
            items.codes(table.frame["item_id"])
            candidates = np.ones(len(items), dtype=np.bool_)
    deviations = count_deviations(definition, counted(events, candidates))
    if deviations and on_other_counts == "fail":
        raise UserError(
            f"data set {definition.name}: {', '.join(deviations)}; the raw files are not those that the definition "
            "describes: get them again, mend `expected` and `filter`, or accept it with --on-other-counts accept"
        )
    events, user_ids = _by_user_id(events, users)
    try:
        sequences = split_events(events, len(user_ids), protocol, definition.tied_order, dropped)
    except UserError as error:
        raise UserError(f"data set {definition.name}: {error}") from error
    del events
    if protocol != "meta":
        candidates = present(sequences.items, len(candidates))
    item_ids, numbers = _sorted_ids(items, candidates)
    sequences = replace(sequences, items=numbers[sequences.items].astype("<i4", copy=False))
    user_ids = user_ids.filter(pl.Series(sequences.users))
    left_out = dict(sorted(bad.dropped.items())) | dropped
    sources = [file.source, table.source]
    return _write(
        definition, protocol, output_folder, sequences, user_ids, item_ids, table, left_out, sources, deviations
    )


def _read_events(
    file: InteractionFile, users: Ids, items: Ids, catalogue: tuple[str, int] | None, bad: BadRows
) -> Events:
    """The interactions as numbers, in the file's order. catalogue: the item file's name and how many items it has, if
    an interaction with any other item is a bad row."""
    parts: list[tuple[np.ndarray[Any, Any], ...]] = []
    batches = file.batches()
    with ThreadPoolExecutor(2) as pool:  # users and items are numbered, and the next rows are read, side by side
        coming = pool.submit(next, batches, None)
        while (frame := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            numbering = pool.submit(users.codes, frame["user_id"])
            item_numbers = items.codes(frame["item_id"])
            user_numbers = numbering.result()
            if catalogue is not None and (item_numbers >= catalogue[1]).any():
                name, known = catalogue
                reason = f"interaction with an item that {name} does not have"
                found = f"item {{}} has no usable record in {name} (or keep such items with `missing_text: allow`)"
                unknown = item_numbers >= known
                rest = without(frame, pl.Series(unknown), file.path, "item_id", reason, found, bad)
                user_numbers, item_numbers = user_numbers[~unknown], item_numbers[~unknown]
            else:
                rest = frame
            columns = [user_numbers, item_numbers, rest["timestamp"].to_numpy()]
            parts.append((*columns, rest["label"].to_numpy()) if "label" in rest.columns else tuple(columns))
    if not sum(len(part[0]) for part in parts):
        raise UserError(f"{file.path} has no usable rows below its header: a data set needs interactions")
    joined = []
    for place in range(len(parts[0])):
        joined.append(np.concatenate([part[place] for part in parts]))
        parts = [(*part[:place], np.empty(0), *part[place + 1 :]) for part in parts]  # frees what was joined
    return Events(joined[0], joined[1], joined[2], joined[3] if len(joined) > 3 else None)


def _by_user_id(events: Events, users: Ids) -> tuple[Events, pl.Series]:
    """The events with users numbered in the order of their ids, and these ids, of users with events."""
    ids, numbers = _sorted_ids(users, present(events.users, len(users)))
    return replace(events, users=numbers[events.users]), ids


def _sorted_ids(ids: Ids, kept: Bools) -> tuple[pl.Series, Int32]:
    """The kept ids sorted (polars does so by their UTF-8 bytes), and where each number among them went."""
    names = ids.names().head(len(kept)).filter(pl.Series(kept))
    order = names.arg_sort().to_numpy()
    numbers = np.full(len(kept), -1, dtype=np.int32)
    numbers[np.flatnonzero(kept)[order]] = np.arange(len(order), dtype=np.int32)
    return names.gather(order), numbers


def _write(
    definition: DatasetDefinition, protocol: str, folder: Path, sequences: Sequences, user_ids: pl.Series,
    item_ids: pl.Series, table: ItemTable, dropped: dict[str, int], sources: list[Any],
    deviations: list[str],
) -> DataCard:  # fmt: skip
    """Write the folder, the card last."""
    items = item_ids.to_frame("item_id").join(table.frame, on="item_id", how="left", maintain_order="left")
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
        split_sha256=split_hash(protocol, item_ids, user_ids, **arrays),
        licence=definition.licence,
        terms=definition.terms,
        created_by=_versions(),
        labels=labels,
        text_changes=table.changed,
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
    write_atomically(folder / "users.parquet", partial(_save_table, user_ids.to_frame("user_id")))
    write_atomically(folder / "items.parquet", partial(_save_table, items))
    write_atomically(
        folder / "dataset.json", lambda path: path.write_text(card.to_json(), encoding="utf-8", newline="\n")
    )
    return card


def _save(array: np.ndarray[Any, Any], path: Path) -> None:
    with path.open("wb") as file:  # np.save hides the reason where a disk is full
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).data)


def _save_table(frame: pl.DataFrame, path: Path) -> None:
    try:
        frame.write_parquet(path)
    except pl.exceptions.PolarsError as error:  # so it tells of a full disk
        raise OSError(str(error).rpartition("IO error: ")[2]) from error


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("hllm-bench", "numpy", "polars", "pyarrow")}
    return {"python": platform.python_version(), **packages}
