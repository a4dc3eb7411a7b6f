"""The fast parser reads a file as the exact one does, or leaves it to that one."""

import csv
import gzip
import hashlib
import io
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmark.data import delimited, raw_files
from benchmark.data.delimited import LINE, BadRows, DelimitedFile, Format
from benchmark.errors import UserError

HEADERS = {"csv": b"a,b\n", "atomic": b"a:token\tb:float\n"}
PIECES = {"csv": [b"1", b"x", b",", b"\n", b"\r\n", b"\r", b'"', b"\xc3\xa9", b"\xff", b"#", b" ", b"\0", b"\t"]}
PIECES["atomic"] = [b"\t" if piece == b"," else piece for piece in PIECES["csv"]]
ROWS = [b"1,2\n", b"x,\n", b",\n", b"1,2\r\n", b",2"]


def read_table(path, form, columns, bad):
    file = DelimitedFile(path, form)
    frames = list(file.batches(columns, bad))
    empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String) | {LINE: pl.UInt32})
    return pl.concat([empty, *frames]), file.source


def outcome(path, form, fast):
    """Rows, counts and whether polars read any of them, or the message of the error."""
    plain = DelimitedFile._plain
    used = []

    def watched(*arguments):
        frame = plain(*arguments) if fast else None
        used.append(frame is not None)
        return frame

    DelimitedFile._plain = watched
    try:
        bad = BadRows("drop")
        frame, source = read_table(path, form, ["b", "a"], bad)
        return (frame.rows(), frame.columns, dict(bad.dropped), source), any(used)
    except UserError as error:
        return str(error), any(used)
    finally:
        DelimitedFile._plain = plain


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(), kind=st.sampled_from(["csv", "atomic"]), size=st.sampled_from([1, 7, 1 << 20]), packed=st.booleans()
)
def test_fast_and_exact_parser_agree(data, kind, size, packed):
    """Whatever the size of the blocks, each of which takes the parser that it can, packed or not."""
    piece = st.sampled_from(PIECES[kind])
    row = st.sampled_from([r.replace(b",", b"\t") if kind == "atomic" else r for r in ROWS])
    content = b"".join(data.draw(st.lists(row | row | row | piece, max_size=12)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(gzip.compress(HEADERS[kind] + content) if packed else HEADERS[kind] + content)
        whole, _ = outcome(path, Format(kind), False)
        raw_files.BLOCK = size
        try:
            (fast, _), (exact, _) = (outcome(path, Format(kind), choice) for choice in (True, False))
        finally:
            raw_files.BLOCK = 1 << 23
    assert fast == exact == whole


def test_plain_files_take_the_fast_parser(tmp_path):
    path = tmp_path / "[p]lain.csv"
    (tmp_path / "plain.csv").write_bytes(b"b,c,a\n5,,6\n7,8,\n")  # polars could take the other name for a pattern
    for content in (b"b,c,a\n1,,2\n3,4,", b"\xef\xbb\xbfb,c,a\r\n1,,2\r\n3,4,\r\n"):
        path.write_bytes(content)
        (rows, columns, dropped, source), fast = outcome(path, Format("csv"), True)
        assert fast
        assert (columns, rows, dropped) == (["b", "a", LINE], [("1", "2", 2), ("3", "", 3)], {})
        assert source.bytes == len(content)


FIELD = st.text(st.sampled_from('ab,"\n\ré '), max_size=5)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(FIELD, FIELD), max_size=8), end=st.sampled_from(["\n", "\r\n"]))
@example(rows=[("\n", '"'), ("", "\r")], end="\n")
def test_what_a_csv_writer_writes_is_read_back(rows, end):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(text.getvalue().encode())
        frame, _ = read_table(path, Format("csv"), ["a", "b"], BadRows("fail"))
    assert frame.select("a", "b").rows() == rows


def test_lines_are_counted_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BATCH", 3)
    path = tmp_path / "file.csv"
    path.write_bytes(b'a,b\n"1\n2",x\n' + b"".join(b"%d,y\n" % n for n in range(10)))
    frame, _ = read_table(path, Format("csv"), ["a"], BadRows("fail"))
    assert frame.rows() == [("1\n2", 2)] + [(str(n), n + 4) for n in range(10)]


def test_a_quoted_record_in_a_large_file_takes_the_slow_parser_for_its_block_alone(tmp_path, monkeypatch):
    path = tmp_path / "file.csv"
    rows = [f"{n},é{n}" for n in range(300)]
    rows[150] = '150,"two\nlines, ""quoted"""'
    path.write_text("\n".join(["a,b", *rows]))
    monkeypatch.setattr(raw_files, "BLOCK", 100)
    taken = []
    plain = DelimitedFile._plain
    monkeypatch.setattr(DelimitedFile, "_plain", lambda *a: taken.append(plain(*a) is not None) or plain(*a))
    frame, source = read_table(path, Format("csv"), ["a", "b"], BadRows("fail"))
    assert frame["b"].to_list() == [f"é{n}" if n != 150 else 'two\nlines, "quoted"' for n in range(300)]
    assert frame[LINE].to_list() == [n + 2 + (n > 150) for n in range(300)]
    assert (taken.count(False), len(taken) > 20) == (1, True)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("header", ["", "user,item,rating,timestamp\n", "user_id,asin,overall,unixReviewTime\n"])
def test_a_file_with_or_without_its_header(tmp_path, header):
    path = tmp_path / "ratings.csv"
    path.write_text(header + "u,0001,5.0,1369699200\nv,0002,1.0,-5\n")
    form = Format("csv", ("user_id", "item_id", "rating", "timestamp"))
    frame, _ = read_table(path, form, ["item_id", "timestamp"], BadRows("fail"))
    first = 2 if header else 1
    assert frame.rows() == [("0001", "1369699200", first), ("0002", "-5", first + 1)]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_gzip_file_is_told(tmp_path, damage):
    path = tmp_path / "file.csv.gz"
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    packed = packed[:-12] if damage == "cut" else packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    path.write_bytes(packed)
    with pytest.raises(UserError, match="is damaged or cut short"):
        read_table(path, Format("csv"), ["a"], BadRows("drop"))
