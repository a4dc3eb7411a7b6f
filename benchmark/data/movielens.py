"""MovieLens as RecBole's wheels carry it: atomic files, tab-separated, with a header of name:type and no quoting."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from benchmark.data.delimited import BadRows, Format
from benchmark.data.raw_tables import InteractionFile, ItemTable, read_items
from benchmark.data.sources import DatasetDefinition

_FORM = Format("atomic")


def interactions(definition: DatasetDefinition, path: Path, bad: BadRows) -> InteractionFile:
    """user_id, item_id, timestamp, and the label's column; the rest is ignored."""
    return InteractionFile(definition, path, _FORM, bad)


def items(definition: DatasetDefinition, path: Path, wanted: pl.Series | None, bad: BadRows) -> ItemTable:
    """The items with the definition's fields."""
    return read_items(definition, path, _FORM, definition.text_fields or {}, wanted, bad)
