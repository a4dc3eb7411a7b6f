"""The fast parser reads a file as the exact one does, or leaves it to that one."""

import csv
import io
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmark.data import delimited
from benchmark.data.delimited import LINE, BadRows, Format, read_table
from benchmark.errors import UserError

HEADERS = {"csv": b"a,b\n", "atomic": b"a:token\tb:float\n"}
PIECES = {"csv": [b"1", b"x", b",", b"\n", b"\r\n", b"\r", b'"', b"\xc3\xa9", b"\xff", b"#", b" ", b"\0", b"\t"]}
PIECES["atomic"] = [b"\t" if piece == b"," else piece for piece in PIECES["csv"]]
ROWS = [b"1,2\n", b"x,\n", b",\n", b"1,2\r\n", b",2"]


def outcome(path, form, fast):
    """Rows, counts and whether polars read them, or the message of the error."""
    plain = delimited._read_plain
    used = []

    def watched(*arguments):
        frame = plain(*arguments) if fast else None
        used.append(frame is not None)
        return frame

    delimited._read_plain = watched
    try:
        bad = BadRows("drop")
        frame, source = read_table(path, form, ["b", "a"], bad)
        return (frame.rows(), frame.columns, dict(bad.dropped), source), any(used)
    except UserError as error:
        return str(error), any(used)
    finally:
        delimited._read_plain = plain


@settings(max_examples=400, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["csv", "atomic"]))
def test_fast_and_exact_parser_agree(data, kind):
    piece = st.sampled_from(PIECES[kind])
    row = st.sampled_from([r.replace(b",", b"\t") if kind == "atomic" else r for r in ROWS])
    content = b"".join(data.draw(st.lists(row | row | row | piece, max_size=12)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(HEADERS[kind] + content)
        (fast, _), (exact, _) = (outcome(path, Format(kind), choice) for choice in (True, False))
    assert fast == exact


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


def test_bytes_are_counted_across_blocks(tmp_path, monkeypatch):
    path = tmp_path / "file.csv"
    content = b"a,b\r\n" + "é,ü\r\n".encode() * 20
    path.write_bytes(content)
    whole = delimited._inspect(path, Format("csv"), 2)
    assert (whole.lines, whole.is_utf8, whole.one_record_a_line) == (21, True, True)
    for size in range(1, 12):
        monkeypatch.setattr(delimited, "_BLOCK", size)
        assert delimited._inspect(path, Format("csv"), 2) == whole
