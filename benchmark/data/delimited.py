"""Strict reading of delimited text: every line is read as written, or rejected with its number and column.

A block whose bytes show that each line is one record with the right number of fields is parsed by polars. Any other
block (quotes, ragged lines, bad bytes) goes through Python's csv module record by record, which knows where it is.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from benchmark.data.raw_files import RawFile, first_block
from benchmark.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader as _Records

OnBadRows = Literal["fail", "drop"]
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"|[^",\r\n][^,\r\n]*|')
LINE = "__line__"  # the column that holds line numbers; no file has it
_BATCH = 1 << 18
_BOM = b"\xef\xbb\xbf"
_SHOWN = 10  # records left out by themselves that are shown

log = logging.getLogger(__name__)


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

    def leave_out(self, path: Path, line: int, reason: str, found: str) -> None:
        """Leave out a record in either mode, as for files that are known to have such; the first ten are shown."""
        self.dropped[reason] += 1
        if self.dropped[reason] <= _SHOWN:
            log.warning("%s, line %d: %s (left out: %s)", path, line, found, reason)
        elif self.dropped[reason] == _SHOWN + 1:
            log.warning("%s: more such records are left out and counted, and not shown", path)


@dataclass(frozen=True)
class Format:
    """csv: commas, RFC 4180 quoting. atomic: RecBole's tab-separated files with a header of name:type, no quoting.

    names: the columns of a file that comes without a header. Copies of it with one are read too: their first line is
    a header if its timestamp is no number.
    """

    kind: Literal["csv", "atomic"]
    names: tuple[str, ...] | None = None

    @property
    def separator(self) -> str:
        return "," if self.kind == "csv" else "\t"

    def records(self, lines: Iterable[str]) -> _Records:
        if self.kind == "csv":
            return csv.reader(lines, strict=True)
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


class _Lines:
    """The lines of a block as text. While a record goes on at its end, further blocks are taken."""

    def __init__(self, block: bytes, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._lines: list[str] = []
        self._next = 0
        self.is_utf8 = True
        self.record: list[str] = []  # the lines that were taken since it was emptied
        self._take(block)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.at_end:
            self._take(next(self._blocks))
        line = self._lines[self._next]
        self._next += 1
        self.record.append(line)
        return line

    @property
    def at_end(self) -> bool:
        return self._next == len(self._lines)

    def _take(self, block: bytes) -> None:
        self.is_utf8 = self.is_utf8 and _is_utf8(block)
        text = io.TextIOWrapper(io.BytesIO(block), encoding="utf-8", errors="surrogateescape", newline="")
        self._lines, self._next = list(text), 0


class DelimitedFile:
    """A file of delimited records. header: its columns, without RecBole's types."""

    def __init__(self, path: Path, form: Format) -> None:
        self.path, self.form = path, form
        self.header, self._header_lines = _read_header(path, form)
        self._raw = RawFile(path)
        self.source = self._raw.source

    def batches(self, columns: Sequence[str], bad: BadRows) -> Iterator[pl.DataFrame]:
        """The named columns as strings ("" where empty), and LINE (UInt32), where each record starts, from 1.

        Rows keep the file's order. A missing column is an error in either mode. At the end, `source` is complete.
        """
        if missing := [name for name in columns if name not in self.header]:
            raise UserError(f"{self.path}, line 1: there is no column {missing[0]}; it has: {', '.join(self.header)}")
        blocks = self._raw.blocks()
        line, skip = 1, self._header_lines
        with _long_fields():
            for number, block in enumerate(blocks):
                text = block.removeprefix(_BOM) if number == 0 else block
                frame = self._plain(text, columns, line, skip)
                if frame is not None:
                    line += text.count(b"\n")
                    yield frame
                else:
                    line = yield from self._records(_Lines(text, blocks), columns, line, skip, bad)
                skip = 0
        self.source = self._raw.source

    def _plain(self, block: bytes, columns: Sequence[str], line: int, skip: int) -> pl.DataFrame | None:
        """Parse a block with one record a line; None if it is not such a block. skip: lines of header."""
        if not _one_record_a_line(block, self.form, len(self.header)):
            return None
        lines = block.count(b"\n") + (not block.endswith(b"\n")) - skip
        if lines <= 0:
            return None
        places = sorted({self.header.index(name) for name in columns})
        try:
            frame = pl.read_csv(
                block,
                has_header=False,
                skip_lines=skip,
                separator=self.form.separator,
                quote_char=None,
                infer_schema=False,
                columns=places,
            )
        except pl.exceptions.PolarsError:
            return None  # polars sees it otherwise
        if frame.height != lines:
            return None
        number = pl.int_range(line + skip, line + skip + lines, dtype=pl.UInt32).alias(LINE)
        fields = (pl.nth(places.index(self.header.index(name))).fill_null("").alias(name) for name in columns)
        return frame.select(*fields, number)

    def _records(
        self, lines: _Lines, columns: Sequence[str], line: int, skip: int, bad: BadRows
    ) -> Generator[pl.DataFrame, None, int]:
        """Parse a block record by record, rejecting those without as many fields of text as the header has; returns
        the line that follows."""
        reader = self.form.records(lines)
        if skip:
            next(reader)
        places, schema = [self.header.index(name) for name in columns], dict.fromkeys(columns, pl.String)
        records = self._good_records(reader, lines, line, bad)
        while batch := list(islice(records, _BATCH)):
            data = {name: [record[place] for _, record in batch] for name, place in zip(columns, places, strict=True)}
            number = pl.Series(LINE, [first for first, _ in batch], pl.UInt32)
            yield pl.DataFrame(data, schema=schema).with_columns(number)
        return line + reader.line_num

    def _good_records(
        self, reader: _Records, lines: _Lines, line: int, bad: BadRows
    ) -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of the records until the lines are at their end; the rest goes to `bad`."""
        path, header = self.path, self.header
        while not lines.at_end:
            first = line + reader.line_num
            lines.record.clear()
            try:
                record = next(reader)
            except csv.Error as error:
                column = _broken_column("".join(lines.record), header)
                if "unexpected end of data" in str(error):
                    raise UserError(
                        f"{path}, line {first}, column {column}: a quotation mark is opened and never closed, so that "
                        "the rest of the file would be lost; close it"
                    ) from error
                found = "after a closing quotation mark stands more text (a quotation mark in a field is written twice)"
                bad.reject(path, first, column, "broken quoting (lines)", found, len(lines.record))
                continue
            if len(record) != len(header):
                column = header[min(len(record), len(header) - 1)]
                found = f"{len(record)} fields where the header has {len(header)}" if record else "the line is empty"
                bad.reject(path, first, column, "ragged line", found)
                continue
            if not lines.is_utf8 and not all(map(_is_text, record)):
                column = next(name for name, value in zip(header, record, strict=True) if not _is_text(value))
                bad.reject(path, first, column, "not UTF-8", "a byte is not UTF-8 (save the file as UTF-8)")
                continue
            yield first, record


def _read_header(path: Path, form: Format) -> tuple[list[str], int]:
    """The column names, without RecBole's types, and the number of lines that they take in the file."""
    block = first_block(path)
    if not block:
        raise UserError(f"{path}, line 1: the file is empty: expected a header with column names")
    text = io.TextIOWrapper(
        io.BytesIO(block.removeprefix(_BOM)), encoding="utf-8", errors="surrogateescape", newline=""
    )
    reader = form.records(text)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{path}, line 1: the header's quotation marks do not match ({error})") from error
    if form.names is not None:
        place = form.names.index("timestamp")
        has_header = len(header) > place and not re.fullmatch(r"[-+]?[0-9.]+", header[place].strip())
        return list(form.names), reader.line_num if has_header else 0
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
    return names, reader.line_num


def _one_record_a_line(block: bytes, form: Format, width: int) -> bool:
    """Whether a block of whole lines is UTF-8 without quoting, its lines end with a newline (after a carriage return or
    not), and every line has as many separators as it should; width: fields of a record."""
    if width < 2 or (form.kind == "csv" and b'"' in block):
        return False
    marks = form.separator.encode() + b"\n"  # without quoting, these come in the same order in every line
    found = block.translate(None, bytes(set(range(256)) - set(marks)))
    record = marks[:1] * (width - 1) + b"\n"
    records, rest = divmod(len(found), width)
    if found != record * records + record[:rest] or rest != (0 if block.endswith(b"\n") else width - 1):
        return False
    return (b"\r" not in block or block.count(b"\r") == block.count(b"\r\n")) and _is_utf8(block)


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_text(value: str) -> bool:
    """Whether a string read with surrogateescape was UTF-8."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _broken_column(text: str, header: Sequence[str]) -> str:
    """The column of a record's first field that no comma follows."""
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
