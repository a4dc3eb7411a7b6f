"""Strict reading of delimited text: every line is read as written, or rejected with its number and column.

A file whose bytes show that each line is one record with the right number of fields is parsed by polars. Any other
file (quotes, ragged lines, bad bytes) goes through Python's csv module record by record, which knows where it is.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from benchmark.data.dataset import SourceFile
from benchmark.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader as _Records

OnBadRows = Literal["fail", "drop"]
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"|[^",\r\n][^,\r\n]*|')
LINE = "__line__"  # the column that holds line numbers; no file has it
_BLOCK = 1 << 22
_BATCH = 1 << 18


@dataclass
class BadRows:
    """What happens to rows that cannot be used: the first one stops the reading, or they are left out and counted."""

    mode: OnBadRows
    dropped: Counter[str] = field(default_factory=Counter)

    def reject(self, path: Path, line: int, column: str | None, reason: str, found: str, count: int = 1) -> None:
        """Leave out `count` rows for a reason; line, column and found tell of the first of them."""
        if self.mode == "fail":
            place = f"{path}, line {line}" + (f", column {column}" if column is not None else "")
            raise UserError(f"{place}: {found}; mend the file, or leave such rows out with --on-bad-rows drop")
        self.dropped[reason] += count


@dataclass(frozen=True)
class Format:
    """csv: commas, RFC 4180 quoting. atomic: RecBole's tab-separated files with a header of name:type, no quoting."""

    kind: Literal["csv", "atomic"]

    @property
    def separator(self) -> str:
        return "," if self.kind == "csv" else "\t"

    def records(self, lines: Iterable[str]) -> _Records:
        if self.kind == "csv":
            return csv.reader(lines, strict=True)
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


@dataclass(frozen=True)
class _Bytes:
    """What the bytes of a file tell before it is parsed. one_record_a_line: it is UTF-8 without quoting, lines end with
    a newline (after a carriage return or not), and every line has as many separators as it should."""

    source: SourceFile
    is_utf8: bool
    lines: int
    one_record_a_line: bool


def read_table(path: Path, form: Format, columns: Sequence[str], bad: BadRows) -> tuple[pl.DataFrame, SourceFile]:
    """The named columns as strings ("" where empty), and LINE (UInt32), where each record starts, from 2.

    Rows keep the file's order. A missing, repeated or empty column name and an empty file are errors in either mode.
    """
    header, header_lines = read_header(path, form)
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{path}, line 1: there is no column {missing[0]}; it has: {', '.join(header)}")
    facts = _inspect(path, form, len(header))
    plain = facts.one_record_a_line and facts.lines > header_lines
    frame = _read_plain(path, form, header, columns, facts.lines - header_lines) if plain else None
    if frame is None:
        frame = _read_records(path, form, header, columns, facts.is_utf8, bad)
    return frame, facts.source


def read_header(path: Path, form: Format) -> tuple[list[str], int]:
    """The column names, without RecBole's types, and the number of lines that they take."""
    if path.stat().st_size == 0:
        raise UserError(f"{path}, line 1: the file is empty: expected a header with column names")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = form.records(file)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{path}, line 1: the header's quotation marks do not match ({error})") from error
        lines = reader.line_num
    for number, name in enumerate(header, 1):
        if not _is_text(name):
            raise UserError(f"{path}, line 1, column {number}: the header is not UTF-8; save the file as UTF-8")
    names = [name.rsplit(":", 1)[0] if form.kind == "atomic" else name for name in header]
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path}, line 1, column {number}: the column has no name; give every column one")
        if name in names[: number - 1]:
            raise UserError(f"{path}, line 1, column {number}: the header names {name} twice; rename or remove one")
    if not names:
        raise UserError(f"{path}, line 1: expected a header with column names, found an empty line")
    return names, lines


def _inspect(path: Path, form: Format, width: int) -> _Bytes:
    """Hash a file and look at the bytes that decide how it can be parsed; width: fields of a record."""
    digest, decoder, is_utf8, plain = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), True, True
    marks = form.separator.encode() + b"\n"  # without quoting, these come in the same order in every line
    others = bytes(set(range(256)) - set(marks))
    record = marks[:1] * (width - 1) + b"\n"
    pattern = record * (_BLOCK // width + 2)
    size = lines = place = 0
    block = b""
    with path.open("rb") as file:
        while new := file.read(_BLOCK):
            block = new if new[-1:] != b"\r" else new + file.read(1)  # never part a carriage return from its newline
            digest.update(block)
            size, lines = size + len(block), lines + block.count(b"\n")
            is_utf8 = is_utf8 and _decodes(decoder, block)
            if plain:
                found = block.translate(None, others)
                plain = found == pattern[place : place + len(found)]
                place = (place + len(found)) % width
                plain = plain and block.count(b"\r") == block.count(b"\r\n")
                plain = plain and (form.kind == "atomic" or b'"' not in block)
    is_utf8 = is_utf8 and _decodes(decoder, b"", final=True)
    unended = block[-1:] != b"\n"
    plain = plain and is_utf8 and width > 1 and place == (width - 1 if unended else 0)
    return _Bytes(SourceFile(path.name, size, digest.hexdigest()), is_utf8, lines + unended, plain)


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _is_text(value: str) -> bool:
    """Whether a string read with surrogateescape was UTF-8."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _read_plain(
    path: Path, form: Format, header: Sequence[str], columns: Sequence[str], lines: int
) -> pl.DataFrame | None:
    """Parse a file with one record a line; None if polars sees it otherwise."""
    try:
        frame = pl.read_csv(
            path,
            has_header=False,
            skip_lines=1,
            separator=form.separator,
            quote_char=None,
            infer_schema=False,
            glob=False,
        )
    except pl.exceptions.PolarsError:
        return None  # such as a line that is too long and another one too short
    if frame.height != lines or frame.width != len(header):
        return None
    line = pl.int_range(2, lines + 2, dtype=pl.UInt32).alias(LINE)
    fields = (pl.nth(header.index(name)).fill_null("").alias(name) for name in columns)
    return frame.select(*fields, line)


def _read_records(
    path: Path, form: Format, header: Sequence[str], columns: Sequence[str], is_utf8: bool, bad: BadRows
) -> pl.DataFrame:
    """Parse a file record by record, rejecting those that are not as many fields of text as the header has."""
    places = [header.index(name) for name in columns]
    schema = dict.fromkeys(columns, pl.String)
    frames = [pl.DataFrame(schema=schema | {LINE: pl.UInt32})]
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_fields():
        records = _good_records(path, form, file, header, is_utf8, bad)
        while batch := list(islice(records, _BATCH)):
            data = {name: [record[place] for _, record in batch] for name, place in zip(columns, places, strict=True)}
            line = pl.Series(LINE, [line for line, _ in batch], pl.UInt32)
            frames.append(pl.DataFrame(data, schema=schema).with_columns(line))
    return pl.concat(frames)


def _good_records(
    path: Path, form: Format, file: Iterable[str], header: Sequence[str], is_utf8: bool, bad: BadRows
) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every record but the header; the rest goes to `bad`."""
    reader = form.records(file)
    next(reader)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            column = _broken_column(path, line, reader.line_num, header)
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{path}, line {line}, column {column}: a quotation mark is opened and never closed, so that "
                    "the rest of the file would be lost; close it"
                ) from error
            found = "after a closing quotation mark stands more text (a quotation mark in a field is written twice)"
            bad.reject(path, line, column, "broken quoting (lines)", found, reader.line_num + 1 - line)
            continue
        if len(record) != len(header):
            column = header[min(len(record), len(header) - 1)]
            found = f"{len(record)} fields where the header has {len(header)}" if record else "the line is empty"
            bad.reject(path, line, column, "ragged line", found)
            continue
        if not is_utf8 and not all(map(_is_text, record)):
            column = next(name for name, value in zip(header, record, strict=True) if not _is_text(value))
            bad.reject(path, line, column, "not UTF-8", "a byte is not UTF-8 (save the file as UTF-8)")
            continue
        yield line, record


def _broken_column(path: Path, first: int, last: int, header: Sequence[str]) -> str:
    """The column of the first field of these lines' record that no comma follows."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text = "".join(islice(file, first - 1, last))
    place = 0
    for name in header:
        match = _QUOTED_FIELD.match(text, place)
        place = match.end() if match else place
        if text[place : place + 1] != ",":
            return name
        place += 1
    return header[-1]


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be as long as it is: csv's limit of 131,072 characters is the whole process's, and is put back."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
