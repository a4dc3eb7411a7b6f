"""The raw tables of a data set, every value checked: interactions in batches, and the items with their texts."""

from __future__ import annotations

import html
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from benchmark.data.dataset import SourceFile
from benchmark.data.delimited import LINE, BadRows, DelimitedFile, Format
from benchmark.data.events import Ids
from benchmark.data.sources import DatasetDefinition, LabelDefinition

_ENTITY = r"&(#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # all but tab and line ends

log = logging.getLogger(__name__)


@dataclass
class ItemTable:
    """frame: item_id (string, each once), then the text fields (strings, null where there is no text).

    changed: texts that `clean_text` changed, by what was changed.
    """

    frame: pl.DataFrame
    source: SourceFile
    changed: dict[str, int] = field(default_factory=dict)


class InteractionFile:
    """user_id, item_id (strings), timestamp (Int64) and, where the definition has one, label (Int8, 0 or 1), in batches
    in the file's order. `source` is complete at the end."""

    def __init__(self, definition: DatasetDefinition, path: Path, form: Format, bad: BadRows) -> None:
        self.path, self._bad, self._label, self._unit = path, bad, definition.label, definition.timestamp_unit
        self._columns = {name: definition.columns.get(name, name) for name in ("user_id", "item_id", "timestamp")}
        self._file = DelimitedFile(path, form)

    @property
    def source(self) -> SourceFile:
        return self._file.source

    def batches(self) -> Iterator[pl.DataFrame]:
        """Batches with LINE, the line of each row."""
        wanted = list(self._columns.values()) + ([self._label.column] if self._label else [])
        for raw in self._file.batches(tuple(dict.fromkeys(wanted)), self._bad):
            frame = raw.rename({column: name for name, column in self._columns.items()})
            for name in ("user_id", "item_id"):
                frame = _with_ids(frame, self.path, name, self._columns[name], self._bad)
            frame = self._with_times(frame)
            if self._label is not None:
                frame = self._with_labels(frame, self._label)
            yield frame.select("user_id", "item_id", "timestamp", *(["label"] if self._label else []), LINE)

    def _with_times(self, frame: pl.DataFrame) -> pl.DataFrame:
        times = timestamps(frame["timestamp"])
        found = "timestamp {!r} is not a whole number (of 64 bits), such as seconds since 1970"
        column = self._columns["timestamp"]
        frame = without(
            frame, times.is_null(), self.path, column, "unparsable timestamp", found, self._bad, "timestamp"
        )
        times = times.drop_nulls()
        return frame.with_columns(times if self._unit == "s" else times // 1000)

    def _with_labels(self, frame: pl.DataFrame, label: LabelDefinition) -> pl.DataFrame:
        values = labels(frame[label.column], label)
        wanted = "0 or 1 (or set label.positive_from)" if label.positive_from is None else "a number"
        found = f"{label.column} {{!r}} is not {wanted}"
        frame = without(frame, values.is_null(), self.path, label.column, "unparsable label", found, self._bad)
        return frame.with_columns(values.drop_nulls().alias("label"))


def read_items(
    definition: DatasetDefinition,
    path: Path,
    form: Format,
    fields: Mapping[str, str],
    wanted: pl.Series | None,
    bad: BadRows,
) -> ItemTable:
    """Read a delimited file of items. fields: text field -> column; wanted: the ids to read, None for all."""
    file, key = DelimitedFile(path, form), definition.item_key
    frames, seen = [], Ids()
    for raw in file.batches(tuple(dict.fromkeys((key, *fields.values()))), bad):
        frame = raw if key == "item_id" else raw.rename({key: "item_id"})
        frame = _with_ids(frame, path, "item_id", key, bad)
        known = len(seen)
        codes = pl.Series(seen.codes(frame["item_id"]))
        repeated = (codes < known) | ~codes.is_first_distinct()
        found = "item {} stands on an earlier line too"
        frame = without(frame, repeated, path, key, "item repeated", found, bad, "item_id")
        if wanted is not None:
            frame = frame.filter(frame["item_id"].is_in(wanted.implode()))
        texts = (
            pl.when(~_blank(pl.col(column))).then(pl.col(column)).alias(name)
            for name, column in ((name, "item_id" if column == key else column) for name, column in fields.items())
        )
        frames.append(frame.select("item_id", *texts, LINE))
    schema = {"item_id": pl.String} | dict.fromkeys(fields, pl.String) | {LINE: pl.UInt32}
    frame = pl.concat([pl.DataFrame(schema=schema), *frames])
    frame, changed = cleaned(frame, list(fields)) if definition.clean_text else (frame, {})
    if definition.missing_text == "fail" and fields:
        empty = frame.select(pl.all_horizontal(pl.col(name).is_null() for name in fields)).to_series()
        column = next(iter(fields.values()))
        found = "item {} has no text (or keep such items with `missing_text: allow`)"
        frame = without(frame, empty, path, column, "item without text", found, bad, "item_id")
    return ItemTable(frame.drop(LINE), file.source, changed)


def cleaned(frame: pl.DataFrame, fields: list[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Texts with HTML entities decoded and control characters (all but tab and line ends) made spaces, and how many
    texts that changed."""
    changed: Counter[str] = Counter()
    for name in fields:
        for what, pattern, mend in (
            ("HTML entities decoded", _ENTITY, html.unescape),
            ("control characters made spaces", _CONTROL, None),
        ):
            found = frame[name].str.contains(pattern).fill_null(False)
            if not found.any():
                continue
            texts = frame[name].filter(found)
            new = texts.str.replace_all(_CONTROL, " ") if mend is None else _mapped(texts, mend)
            frame = frame.with_columns(frame[name].scatter(found.arg_true(), new))
            changed[f"{name}: {what}"] += int(found.sum())
    for what, count in changed.items():
        log.info("%s in %d texts", what, count)
    blank = [pl.when(~_blank(pl.col(name))).then(pl.col(name)).alias(name) for name in fields]
    return frame.with_columns(blank), dict(changed)


def _mapped(texts: pl.Series, function: Callable[[str], str]) -> pl.Series:
    return pl.Series([function(text) for text in texts], dtype=pl.String)


def _with_ids(frame: pl.DataFrame, path: Path, name: str, column: str, bad: BadRows) -> pl.DataFrame:
    """Without the rows whose id is blank or more than one line (an id is one line of the split's hash)."""
    blank = frame.select(_blank(pl.col(name))).to_series()
    frame = without(frame, blank, path, column, f"empty {name}", "the id is empty", bad)
    breaks = frame[name].str.contains("\n", literal=True)
    return without(
        frame, breaks, path, column, f"line break in {name}", "the id {!r} has a line break in it", bad, name
    )


def without(
    frame: pl.DataFrame,
    rows: pl.Series,
    path: Path,
    column: str,
    reason: str,
    found: str,
    bad: BadRows,
    value: str | None = None,
) -> pl.DataFrame:
    """The frame without these rows, which go to `bad`; found: what is wrong, with {} for the first one's value, which
    stands in the frame's column `value` (None: the one called `column`)."""
    count = int(rows.sum())
    if not count:
        return frame
    first = frame.row(rows.arg_max(), named=True)
    bad.reject(path, first[LINE], column, reason, found.format(first.get(value or column)), count)
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
