"""The raw tables of a data set, every value checked: what each reader returns and the preparation reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmark.data.dataset import SourceFile
from benchmark.data.delimited import LINE, BadRows, Format, read_table
from benchmark.data.sources import DatasetDefinition, LabelDefinition
from benchmark.errors import UserError


@dataclass(frozen=True)
class RawTables:
    """interactions: user_id, item_id (strings), timestamp (Int64), and label (Int8, 0 or 1) where the definition has
    one, in the file's order.
    items: item_id (string, each once), then the text fields (strings, null where there is no text).
    sources: the files read.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    sources: tuple[SourceFile, ...]


def read_tables(definition: DatasetDefinition, form: Format, fields: Mapping[str, str], bad: BadRows) -> RawTables:
    """Read and check both files of a data set; fields: text field -> column of the item file."""
    interactions_path, items_path = definition.files()
    items, items_source = _read_items(items_path, form, fields, definition.missing_text == "fail", bad)
    interactions, interactions_source = _read_interactions(interactions_path, form, definition.label, bad)
    if definition.missing_text == "fail":
        unknown = ~interactions["item_id"].is_in(items["item_id"].implode())
        reason = f"interaction with an item that {items_path.name} does not have"
        found = f"item {{}} has no usable record in {items_path.name} (or keep such items with `missing_text: allow`)"
        interactions = _without(interactions, unknown, interactions_path, "item_id", reason, found, bad)
    if interactions.is_empty():
        raise UserError(f"{interactions_path} has no usable rows below its header: a data set needs interactions")
    return RawTables(interactions.drop(LINE), items.drop(LINE), (interactions_source, items_source))


def _read_interactions(
    path: Path, form: Format, label: LabelDefinition | None, bad: BadRows
) -> tuple[pl.DataFrame, SourceFile]:
    columns = ("user_id", "item_id", "timestamp", *((label.column,) if label else ()))
    frame, source = read_table(path, form, tuple(dict.fromkeys(columns)), bad)
    frame = _with_ids(_with_ids(frame, path, "user_id", bad), path, "item_id", bad)
    times = timestamps(frame["timestamp"])
    found = "timestamp {!r} is not a whole number (of 64 bits), such as seconds since 1970"
    frame = _without(frame, times.is_null(), path, "timestamp", "unparsable timestamp", found, bad)
    frame = frame.with_columns(times.drop_nulls())
    if label is not None:
        values = labels(frame[label.column], label)
        wanted = "0 or 1 (or set label.positive_from)" if label.positive_from is None else "a number"
        found = f"{label.column} {{!r}} is not {wanted}"
        frame = _without(frame, values.is_null(), path, label.column, "unparsable label", found, bad)
        frame = frame.with_columns(values.drop_nulls().alias("label"))
    return frame, source


def _read_items(
    path: Path, form: Format, fields: Mapping[str, str], need_text: bool, bad: BadRows
) -> tuple[pl.DataFrame, SourceFile]:
    frame, source = read_table(path, form, tuple(dict.fromkeys(("item_id", *fields.values()))), bad)
    frame = _with_ids(frame, path, "item_id", bad)
    repeated = ~frame["item_id"].is_first_distinct()
    frame = _without(frame, repeated, path, "item_id", "item repeated", "item {} stands on an earlier line too", bad)
    texts = (pl.when(~_blank(pl.col(column))).then(pl.col(column)).alias(field) for field, column in fields.items())
    frame = frame.select("item_id", *texts, LINE)
    if need_text and fields:
        empty = frame.select(pl.all_horizontal(pl.col(name).is_null() for name in fields)).to_series()
        column = next(iter(fields.values()))
        found = "item {} has no text (or keep such items with `missing_text: allow`)"
        frame = _without(frame, empty, path, column, "item without text", found, bad)
    return frame, source


def _with_ids(frame: pl.DataFrame, path: Path, column: str, bad: BadRows) -> pl.DataFrame:
    """Without the rows whose id is blank or more than one line (an id is one line of the split's hash)."""
    frame = _without(
        frame, frame.select(_blank(pl.col(column))).to_series(), path, column, f"empty {column}", "the id is empty", bad
    )
    breaks = frame[column].str.contains("\n", literal=True)
    found = "the id {!r} has a line break in it"
    return _without(frame, breaks, path, column, f"line break in {column}", found, bad)


def _without(
    frame: pl.DataFrame, rows: pl.Series, path: Path, column: str, reason: str, found: str, bad: BadRows
) -> pl.DataFrame:
    """The frame without these rows, which go to `bad`; found: what is wrong, with {} for the first one's value."""
    count = int(rows.sum())
    if not count:
        return frame
    first = frame.row(rows.arg_max(), named=True)
    bad.reject(path, first[LINE], column, reason, found.format(first.get(column, first.get("item_id"))), count)
    return frame.filter(~rows)


def _blank(text: pl.Expr) -> pl.Expr:
    """Whether a string is empty or white space."""
    return text.str.strip_chars() == ""


def timestamps(text: pl.Series) -> pl.Series:
    """Whole numbers as Int64, null for anything else. "1.0" is 1: pandas writes integers so beside missing values."""
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count():
        without_zeros = text.str.replace(r"^([+-]?[0-9]+)\.0+$", "$1")
        whole = whole.fill_null(without_zeros.cast(pl.Int64, strict=False))
    return whole


def labels(text: pl.Series, label: LabelDefinition) -> pl.Series:
    """0 or 1 as Int8, null for what is neither a finite number nor, without positive_from, 0 or 1."""
    value = text.cast(pl.Float64, strict=False)
    value = value.set(~value.is_finite().fill_null(False), None)
    if label.positive_from is not None:
        return (value >= label.positive_from).cast(pl.Int8)
    return value.set(~value.is_in([0.0, 1.0]), None).cast(pl.Int8)
