"""Amazon's metadata: literals read as Python reads them and never evaluated, JSON, duplicates, dirt and damage."""

import ast
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmark.data import literals
from benchmark.data.dataset import load_dataset
from benchmark.data.literals import literal_fields
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition

SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "raw-samples"
KEYS = ("asin", "title", "description")
TEXTS = st.text(st.sampled_from("ab'\"\\\n\t{}[],: é\x07\u2028"), max_size=8)
SCALARS = TEXTS | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.none()
VALUES = SCALARS | st.lists(SCALARS | st.lists(TEXTS, max_size=2), max_size=3)
VALUES |= st.dictionaries(TEXTS, SCALARS | st.lists(TEXTS, max_size=2), max_size=2)
VALUES |= st.lists(st.dictionaries(TEXTS, TEXTS, max_size=1), max_size=1)
RECORDS = st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=5)


def as_python_reads(line):
    try:
        record = ast.literal_eval(line.decode().strip(" \t\r"))
    except (ValueError, SyntaxError):
        return None
    return {key: record[key] for key in KEYS if key in record} if isinstance(record, dict) else None


def read(line):
    try:
        record = literal_fields(KEYS)(line)
    except ValueError:
        return None
    return {key: record[key] for key in KEYS if key in record}


@settings(max_examples=300, deadline=None)
@given(record=RECORDS, form=st.sampled_from([repr, ascii]), data=st.data())
@example(record={"asin": 1, "x": "\\x4"}, form=repr, data=None)
def test_a_line_is_read_as_python_reads_it(record, form, data):
    line = form(record).encode()
    assert read(line) == as_python_reads(line)
    if data is None:
        return
    place = data.draw(st.integers(0, len(line)))  # one byte more, less or other: often malformed, and then for both
    new = data.draw(st.sampled_from([b"", b"'", b'"', b"\\", b",", b"}", b"0", b"\\x4", b"\\N", b"e", b"1", b" "]))
    changed = line[:place] + new + line[place + data.draw(st.integers(0, 1)) :]
    try:
        changed.decode()
    except UnicodeDecodeError:
        return
    assert read(changed) == as_python_reads(changed)


@pytest.mark.parametrize(
    "line",
    [b"__import__('os').getcwd()", b"{'asin': open('x')}", b"[1]", b"", b"{" * 9_000, b"{'asin': 'x'", b"\xff", b"{}}"],
    ids=range(8),
)
def test_what_is_no_literal_record_is_refused(line):
    with pytest.raises(ValueError, match=r"literal|record|decode|codec"):
        literal_fields(KEYS)(line)


def test_usual_lines_take_the_fast_way(monkeypatch):
    monkeypatch.setattr(literals, "_whole", None)
    line = {"asin": "0001", "title": "It's \"x\"\n", "related": {"also_bought": ["1", "2"]}, "price": 5.98,
            "salesRank": {"Books": 3}, "categories": [["Books", "é"]], "description": "plain"}  # fmt: skip
    assert literal_fields(KEYS)(ascii(line).encode()) == {key: line[key] for key in KEYS}


def made(folder, lines, records="python", **settings):
    rows = [f"u{user},{item},5.0,{time}" for user in range(3) for time, item in enumerate(["01", "02", "03", "04"])]
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n")
    with gzip.open(folder / "meta.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    return DatasetDefinition(
        name="made", reader="amazon", folder=folder, interactions="ratings.csv", items="meta.json.gz", licence="made",
        header=("user_id", "item_id", "rating", "timestamp"), item_key="asin", records=records,
        text_fields=["title", "description"], missing_text="allow",
        filter={"kind": "one_pass", "item_count": 1, "user_count": 1}, **settings,
    )  # fmt: skip


def test_dirt_duplicates_and_malformed_lines(tmp_path, caplog):
    lines = [
        repr({"asin": "01", "title": "War &amp; Peace &#39;69", "description": "a\x07b\nc"}),
        repr({"asin": "02"}),
        repr({"asin": "02", "title": "The record with a text counts"}),
        repr({"asin": "02", "title": "and not a later one"}),
        repr({"asin": "99", "title": "nobody rated it"}),
        *["{'asin': '03', 'title': 'cut"] * 12,
        repr({"title": "no id"}),
        "{'asin': '04', 'title': '\\ud83d\\ude00', 'description': '  '}",
    ]
    card = prepare(made(tmp_path, lines, clean_text=True), "hllm", tmp_path / "out")
    assert load_dataset(tmp_path / "out").item_texts() == [
        {"title": "War & Peace '69", "description": "a b\nc"},
        {"title": "The record with a text counts"},
        {},
        {"title": "😀"},
    ]
    assert card.dropped == {"item repeated": 2, "malformed metadata lines": 13}
    assert card.text_changes == {
        "title: HTML entities decoded": 1,
        "description: control characters made spaces": 1,
    }
    shown = [record.getMessage() for record in caplog.records if "meta.json.gz, line" in record.getMessage()]
    assert len(shown) == 10
    assert "line 6: it is no Python literal" in shown[0]
    as_it_is = prepare(made(tmp_path, lines), "hllm", tmp_path / "raw")
    assert load_dataset(tmp_path / "raw").item_texts()[0]["title"] == "War &amp; Peace &#39;69"
    assert as_it_is.split_sha256 == card.split_sha256


def test_json_records_with_lists_and_times_in_milliseconds(tmp_path):
    lines = [json.dumps({"asin": f"0{n}", "title": f"T{n}", "description": ["one", "", "two"]}) for n in range(1, 5)]
    prepare(made(tmp_path, [*lines, "[1]"], "json", timestamp_unit="ms"), "hllm", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.item_texts()[0] == {"title": "T1", "description": "one two"}
    assert dataset.timestamps.max() == 0


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real records are not here")
def test_real_records():
    lines = (SAMPLES / "meta.sample.pyliteral").read_bytes().splitlines()
    assert len(lines) >= 5
    for line in lines:
        assert read(line) == as_python_reads(line)
        assert read(line)["asin"]
