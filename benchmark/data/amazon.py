"""Amazon Reviews: ratings as CSV, metadata as one record a line, of Python literals (2014) or JSON (2018, 2023)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from benchmark.data.delimited import BadRows, Format
from benchmark.data.events import Ids
from benchmark.data.literals import literal_fields
from benchmark.data.raw_files import RawFile
from benchmark.data.raw_tables import InteractionFile, ItemTable, cleaned
from benchmark.data.sources import DatasetDefinition


def interactions(definition: DatasetDefinition, path: Path, bad: BadRows) -> InteractionFile:
    """The ratings: user, item and time; files of 2014 and 2018 have no header."""
    return InteractionFile(definition, path, Format("csv", definition.header), bad)


def items(definition: DatasetDefinition, path: Path, wanted: pl.Series | None, bad: BadRows) -> ItemTable:
    """The metadata of the items, or of the wanted ones; lists of texts are joined with a space.

    A line that is no record is left out, counted, and shown if it is one of the first ten. Of several records of an
    item the first one with a text counts, or the first one if none has any; the others are counted.
    """
    fields = definition.text_fields or {}
    file, seen, frames = RawFile(path), Ids(), []
    parse = _PARSERS[definition.records]((definition.item_key, *fields.values()))
    keep = None if wanted is None else set(wanted)
    schema = {"item_id": pl.String} | dict.fromkeys(fields, pl.String)
    line = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a literal with an unknown escape is read all the same
        for block in file.blocks():
            rows: list[tuple[str | None, ...]] = []
            for number, text in enumerate(_lines(block), line):
                try:
                    record = parse(text)
                    name = _text(record.get(definition.item_key))
                    if name is None or "\n" in name:
                        raise ValueError(f"it has no {definition.item_key}")
                except ValueError as error:
                    bad.leave_out(path, number, "malformed metadata lines", str(error))
                    continue
                if keep is None or name in keep:
                    rows.append((name, *(_text(record.get(column)) for column in fields.values())))
            line += block.count(b"\n")
            frames.append(pl.DataFrame(rows, schema=schema, orient="row"))
    frame = pl.concat([pl.DataFrame(schema=schema), *frames])
    frame, changed = cleaned(frame, list(fields)) if definition.clean_text else (frame, {})
    return ItemTable(_first_with_text(frame, seen, bad), file.source, changed)


def _lines(block: bytes) -> Iterator[bytes]:
    return iter(block.removesuffix(b"\n").split(b"\n"))


def _first_with_text(frame: pl.DataFrame, seen: Ids, bad: BadRows) -> pl.DataFrame:
    """One record an item, in the file's order of the first."""
    repeated = int((~frame["item_id"].is_first_distinct()).sum())
    if not repeated:
        return frame
    bad.dropped["item repeated"] += repeated
    fields = frame.columns[1:]
    empty = pl.all_horizontal(pl.col(name).is_null() for name in fields) if fields else pl.lit(False)
    order = frame.with_row_index().sort(empty, "index", maintain_order=True)
    return order.unique("item_id", keep="first", maintain_order=True).sort("index").drop("index")


def _text(value: object) -> str | None:
    """A value as text, None where there is none."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple):
        text = " ".join(part for part in map(_text, value) if part)
    elif isinstance(value, bool | None):
        return None
    elif isinstance(value, int | float):
        text = str(value)
    else:
        return None
    if not text or text.isspace():
        return None
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json_parser(keys: tuple[str, ...]) -> Callable[[bytes], Mapping[str, Any]]:
    def parse(line: bytes) -> Mapping[str, Any]:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"expected a record, found {type(record).__name__}")
        return record

    return parse


_PARSERS: dict[str, Callable[[tuple[str, ...]], Callable[[bytes], Mapping[str, Any]]]] = {
    "json": _json_parser,
    "python": literal_fields,
}
