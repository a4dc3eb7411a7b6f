"""Any data set in the layout of the released code: interactions.csv (item_id,user_id,timestamp) and items.csv
(item_id,title and perhaps tag and description), columns in any order, RFC 4180 quoting, UTF-8. PixelRec's files are of
this layout, with line breaks, quotes and missing values in their texts."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from benchmark.data.delimited import BadRows, DelimitedFile, Format
from benchmark.data.raw_tables import InteractionFile, ItemTable, read_items
from benchmark.data.sources import DatasetDefinition


def interactions(definition: DatasetDefinition, path: Path, bad: BadRows) -> InteractionFile:
    """The interactions, of a file with a header or without one (the definition's `header`)."""
    return InteractionFile(definition, path, Format("csv", definition.header), bad)


def items(definition: DatasetDefinition, path: Path, wanted: pl.Series | None, bad: BadRows) -> ItemTable:
    """The items; without text_fields, with title and those of tag and description that are there."""
    form, fields = Format("csv"), definition.text_fields
    if fields is None:
        header = DelimitedFile(path, form).header
        fields = {"title": "title"} | {name: name for name in ("tag", "description") if name in header}
    return read_items(definition, path, form, fields, wanted, bad)
