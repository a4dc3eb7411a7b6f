"""What the ranks.parquet of all runs on a split have in common, kept once instead of in each of them.

Beside a folder `runs`, a folder `cases` may hold one file a split with the columns that no method decides: users, their
test items, and what is known of both. A ranks.parquet that goes with it has the other columns alone, in the same order
of users, and names that file and its SHA-256 in its metadata.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import UserError
from benchmark.evaluation.checked_parquet import read_parquet
from benchmark.files import write_atomically

RANKS_SCHEMA = {
    "user_id": "string", "target_item": "string", "rank": "double", "ties": "int32", "history_length": "int32",
    "target_frequency": "int32", "hittable": "bool",
}  # fmt: skip
_DECIDED = ("rank", "ties", "hittable")  # by the run
_FILE, _SHA256 = b"cases_file", b"cases_sha256"
_AGAIN = "copy it from where the run was kept"
_RANK = "rank the run again to write it"


def write_parquet(table: pa.Table, where: Any) -> None:
    """Write a table of users to a path or a binary file."""
    others = [name for name in table.column_names if name != "user_id"]
    encoding = {"user_id": "DELTA_BYTE_ARRAY"} if "user_id" in table.column_names else None
    # no user comes twice: a dictionary of them would be a third of a whole file
    pq.write_table(table, where, compression="zstd", use_dictionary=others, column_encoding=encoding)


def keep_ranks(source: Path, target: Path, name: str) -> None:
    """Write a ranks.parquet to <folder>/runs/<run>/ranks.parquet (target) without what it shares with other runs, which
    goes to <folder>/cases/<name>.parquet, or is there already; UserError where that file holds other cases."""
    cases, table = _folder(target) / f"{name}.parquet", completed(source, read_parquet(source, _RANK))
    shared = table.drop_columns(list(_DECIDED))
    if cases.exists():
        _check_same(source, shared, cases, read_parquet(cases, _AGAIN))
    else:
        write_atomically(cases, lambda temporary: write_parquet(shared, temporary))
    pointer = {_FILE: cases.name, _SHA256: hashlib.sha256(cases.read_bytes()).hexdigest()}
    decided = table.select(list(_DECIDED)).replace_schema_metadata(pointer)
    write_atomically(target, lambda temporary: write_parquet(decided, temporary))


def check_cases(sources: Sequence[Path], cases: Path) -> None:
    """UserError unless these ranks.parquet are of the same cases, and of those in the file, if it is there."""
    known = (cases, read_parquet(cases, _AGAIN)) if cases.exists() else None
    for source in sources:
        shared = completed(source, read_parquet(source, _RANK)).drop_columns(list(_DECIDED))
        known = known or (source, shared)
        _check_same(source, shared, *known)


def _check_same(source: Path, shared: pa.Table, path: Path, known: pa.Table) -> None:
    if not shared.equals(known):
        raise UserError(f"{source} has other users, test items or histories than {path}; keep it elsewhere")


def completed(path: Path, table: pa.Table) -> pa.Table:
    """The table of a ranks.parquet with all its columns, whether it has them itself or shares some of them."""
    pointer = table.schema.metadata or {}
    if _FILE not in pointer:
        return table
    cases = _folder(path) / Path(pointer[_FILE].decode()).name
    shared = read_parquet(cases, f"{path} needs it, so {_AGAIN}")
    if hashlib.sha256(cases.read_bytes()).hexdigest() != pointer.get(_SHA256, b"").decode():
        raise UserError(f"{cases} is not the file that {path} was written with; {_AGAIN}")
    columns = {name: (table if name in _DECIDED else shared)[name] for name in RANKS_SCHEMA}
    return pa.table(columns)


def whole_file(path: Path) -> bytes:
    """What a ranks.parquet is that needs no other file: its own bytes, or those of the completed table."""
    table = read_parquet(path, _AGAIN)
    if _FILE not in (table.schema.metadata or {}):
        return path.read_bytes()
    content = io.BytesIO()
    write_parquet(completed(path, table), content)
    return content.getvalue()


def _folder(ranks: Path) -> Path:
    return Path(os.path.normpath(ranks.parent / "../../cases"))
