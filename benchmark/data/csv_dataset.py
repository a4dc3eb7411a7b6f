"""Any data set in the layout of the released code: interactions.csv (item_id,user_id,timestamp) and items.csv
(item_id,title and perhaps tag and description), columns in any order, RFC 4180 quoting, UTF-8."""

from __future__ import annotations

from benchmark.data.delimited import BadRows, Format, read_header
from benchmark.data.raw_tables import RawTables, read_tables
from benchmark.data.sources import DatasetDefinition


def read(definition: DatasetDefinition, bad: BadRows) -> RawTables:
    """The interactions and the items; without text_fields, title and those of tag and description that are there."""
    form, fields = Format("csv"), definition.text_fields
    if fields is None:
        header, _ = read_header(definition.files()[1], form)
        fields = {"title": "title"} | {name: name for name in ("tag", "description") if name in header}
    return read_tables(definition, form, fields, bad)
