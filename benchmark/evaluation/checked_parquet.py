"""Parquet files that a step wrote and another one reads, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import UserError


def read_parquet(path: Path, again: str) -> pa.Table:
    """The table of a file. again: how the file is written anew, for the UserError that names what is wrong with it."""
    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {again}") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no complete Parquet file; delete it and {again}") from error


def check_columns(path: Path, table: pa.Table, schema: Mapping[str, str], again: str) -> None:
    """UserError unless the table of a file has these columns, of these Arrow types and without empty entries."""
    for name, kind in schema.items():
        if name not in table.column_names:
            raise UserError(f"{path}: column {name} is missing; it has {', '.join(table.column_names)}; {again}")
        if str(table.schema.field(name).type).removeprefix("large_") != kind:
            found = table.schema.field(name).type
            raise UserError(f"{path}: column {name} has type {found} where {kind} was expected; {again}")
        if table[name].null_count:
            raise UserError(f"{path}: column {name} has {table[name].null_count} empty entries; {again}")


def read_checked(path: Path, schema: Mapping[str, str], again: str) -> pa.Table:
    """The table of a file that has these columns, of these Arrow types and without empty entries, or UserError."""
    table = read_parquet(path, again)
    check_columns(path, table, schema, again)
    return table
