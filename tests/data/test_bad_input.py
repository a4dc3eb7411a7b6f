"""Every kind of bad input: the message names file, line and column, and what is left out is counted."""

import re

import pytest

from benchmark.data.dataset import load_dataset
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError

GOOD = b"item_id,user_id,timestamp\na,u,1\nb,u,2\na,u,3\nb,u,4\n"
ITEMS = b"item_id,title,tag\na,Alpha,x\nb,Beta,\n"


def made(folder, interactions=GOOD, items=ITEMS, **settings):
    (folder / "interactions.csv").write_bytes(interactions)
    (folder / "items.csv").write_bytes(items)
    return DatasetDefinition(name="made", reader="csv", folder=folder, licence="made", **settings)


def refused(definition, *words, mode="fail"):
    with pytest.raises(UserError) as caught:
        prepare(definition, "hllm", definition.folder / "out", mode)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert not (definition.folder / "out").exists()
    return message


BAD_ROWS = {  # name: file, its bytes, line, column, reason, how many
    "empty user id": ("interactions.csv", GOOD + b"a,,5\n", 6, "user_id", "empty user_id", 1),
    "blank user id": ("interactions.csv", GOOD + b"a,  ,5\n", 6, "user_id", "empty user_id", 1),
    "empty item id": ("interactions.csv", GOOD + b",u,5\n,u,6\n", 6, "item_id", "empty item_id", 2),
    "id of two lines": ("interactions.csv", GOOD + b'a,"u\nu",5\n', 6, "user_id", "line break in user_id", 1),
    "no timestamp": ("interactions.csv", GOOD + b"a,u,\n", 6, "timestamp", "unparsable timestamp", 1),
    "a date": ("interactions.csv", GOOD + b"a,u,2014-01-01\n", 6, "timestamp", "unparsable timestamp", 1),
    "a fraction": ("interactions.csv", GOOD + b"a,u,1.5\n", 6, "timestamp", "unparsable timestamp", 1),
    "too large": ("interactions.csv", GOOD + b"a,u,9223372036854775808\n", 6, "timestamp", "unparsable timestamp", 1),
    "unknown item": (
        "interactions.csv", GOOD + b"c,u,5\n", 6, "item_id",
        "interaction with an item that items.csv does not have", 1,
    ),
    "too few fields": ("interactions.csv", GOOD + b"a,u\nb,u,9\n", 6, "timestamp", "ragged line", 1),
    "too many fields": ("interactions.csv", GOOD + b"a,u,5,6\n", 6, "timestamp", "ragged line", 1),
    "empty line": ("interactions.csv", GOOD + b"\nb,u,9\n", 6, "item_id", "ragged line", 1),
    "balanced raggedness": ("interactions.csv", GOOD + b"a,u\nb,u,5,6\n", 6, "timestamp", "ragged line", 2),
    "not UTF-8": ("interactions.csv", GOOD + b"a,u\xff,5\n", 6, "user_id", "not UTF-8", 1),
    "Latin-1 title": ("items.csv", ITEMS + b"c,Caf\xe9,x\n", 4, "title", "not UTF-8", 1),
    "broken quoting": ("interactions.csv", GOOD + b'a,"u"v,5\n', 6, "user_id", "broken quoting (lines)", 1),
    "swallowed lines": ("items.csv", ITEMS + b'c,"Gamma,x\nd,Delta,"y"\n', 4, "title", "broken quoting (lines)", 2),
    "item repeated": ("items.csv", ITEMS + b"a,Again,x\n", 4, "item_id", "item repeated", 1),
    "item without text": ("items.csv", ITEMS + b"c,, \n", 4, "title", "item without text", 1),
    "item without id": ("items.csv", ITEMS + b",Gamma,\n", 4, "item_id", "empty item_id", 1),
    "after lines in quotes": ("items.csv", ITEMS + b'c,"two\nlines",\n,Gamma,\n', 6, "item_id", "empty item_id", 1),
    "CRLF": ("interactions.csv", GOOD.replace(b"\n", b"\r\n") + b"a,,5\r\n", 6, "user_id", "empty user_id", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_dropped_and_counted(tmp_path, name):
    file, content, line, column, reason, count = BAD_ROWS[name]
    definition = made(tmp_path, **{file.removesuffix(".csv"): content})
    refused(definition, f"{tmp_path / file}, line {line}, column {column}:", "--on-bad-rows drop")
    card = prepare(definition, "hllm", tmp_path / "out", "drop")
    assert card.dropped == {reason: count}
    rest = 1 if b"b,u,9" in content else 0
    assert card.counts.interactions == 4 + rest
    assert card.counts.items == 2


BAD_FILES = {  # name: file, its bytes, words of the message; no mode can read these
    "empty file": ("interactions.csv", b"", ["line 1", "empty"]),
    "empty items": ("items.csv", b"", ["line 1", "empty"]),
    "header only": ("interactions.csv", b"item_id,user_id,timestamp\n", ["no usable rows"]),
    "empty header": ("interactions.csv", b"\na,u,1\n", ["line 1", "header"]),
    "missing column": ("interactions.csv", b"item_id,user_id,time\na,u,1\n", ["line 1", "timestamp", "time"]),
    "one column": ("interactions.csv", b"item_id\na\n", ["line 1", "user_id"]),
    "no title": ("items.csv", b"item_id,tag\na,x\n", ["line 1", "title"]),
    "tabs": ("interactions.csv", GOOD.replace(b",", b"\t"), ["line 1", "user_id"]),
    "repeated column": ("interactions.csv", b"item_id,user_id,timestamp,user_id\n", ["line 1, column 4", "twice"]),
    "unnamed column": ("interactions.csv", b"item_id,user_id,timestamp,\na,u,1,v\n", ["line 1, column 4", "no name"]),
    "header not UTF-8": ("interactions.csv", b"item_id,user_id,timestamp,\xff\n", ["line 1, column 4", "UTF-8"]),
    "quote never closed": ("items.csv", ITEMS + b'c,"Gamma,x\nd,Delta,y\n', ["line 4", "column title", "never closed"]),
    "header's quote": ("items.csv", b'"item_id"x,title\na,b\n', ["line 1", "quotation"]),
    "no good row": ("interactions.csv", b"item_id,user_id,timestamp\n,u,1\n", []),
    "short users only": ("interactions.csv", GOOD[:38] + b"a,v,1\n", ["no user has the 3"]),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["fail", "drop"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_an_error_in_either_mode(tmp_path, name, mode):
    file, content, words = BAD_FILES[name]
    definition = made(tmp_path, **{file.removesuffix(".csv"): content})
    message = refused(definition, *words, mode=mode)
    if name != "short users only":
        assert str(tmp_path / file) in message


def test_a_missing_file_or_folder_is_named(tmp_path):
    definition = made(tmp_path)
    (tmp_path / "items.csv").unlink()
    refused(definition, str(tmp_path / "items.csv"), "made")
    refused(definition.model_copy(update={"interactions": "none.csv"}), "none.csv")
    refused(definition.model_copy(update={"package": "no-such-package"}), "no-such-package")


def test_wrong_protocols_and_modes_are_named(tmp_path):
    definition = made(tmp_path)
    with pytest.raises(UserError, match=re.escape("no protocol 'loo'; the protocols are: hllm, meta, temporal")):
        prepare(definition, "loo", tmp_path / "out")
    with pytest.raises(UserError, match="--on-bad-rows skip"):
        prepare(definition, "hllm", tmp_path / "out", "skip")


def test_items_without_text_can_be_kept_as_the_released_code_does(tmp_path):
    definition = made(tmp_path, GOOD + b"c,u,5\nd,u,6\n", ITEMS + b"c, ,\n", missing_text="allow")
    card = prepare(definition, "hllm", tmp_path / "out")
    assert (card.counts.items, card.items_without_text, card.dropped) == (4, 2, {})
    assert load_dataset(tmp_path / "out").item_texts() == [{"title": "Alpha", "tag": "x"}, {"title": "Beta"}, {}, {}]


def test_no_text_is_needed_where_no_field_is_asked_for(tmp_path):
    definition = made(tmp_path, items=b"item_id\na\nb\n", text_fields=[])
    assert prepare(definition, "hllm", tmp_path / "out").counts.items == 2
    assert load_dataset(tmp_path / "out").item_texts() == [{}, {}]


def test_what_spreadsheets_and_data_frames_write_is_read(tmp_path):
    interactions = b'\xef\xbb\xbf"rating","timestamp","item_id","user_id"\r\n' + b"".join(
        f'"5.0",{time}.0,"{item}","u"\r\n'.encode() for time, item in [(1, "a"), (2, "b"), (3, "a"), (-4, "b")]
    )
    items = b'\xef\xbb\xbftitle,item_id,line\r\n"Alpha, ""A""",a,1\r\n5" disk,b,2\r\n'
    prepare(made(tmp_path, interactions, items, text_fields=["line", "title"]), "hllm", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.timestamps.tolist() == [-4, 1, 2, 3]
    assert dataset.item_texts() == [{"line": "1", "title": 'Alpha, "A"'}, {"line": "2", "title": '5" disk'}]


def test_a_field_may_be_long(tmp_path):
    text = "x" * 300_000
    prepare(made(tmp_path, items=ITEMS + f'c,"{text}",\n'.encode()), "meta", tmp_path / "out")
    assert load_dataset(tmp_path / "out").item_texts(["title"])[2] == {"title": text}


def test_atomic_files_have_no_quoting(tmp_path):
    (tmp_path / "x.inter").write_bytes(
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + b"".join(b'u"\t"a, b\t5\t%d\n' % time for time in range(4))
    )
    (tmp_path / "x.item").write_bytes(b'item_id:token\tname:token_seq\n"a, b\t"The ""Best\n')
    settings = {"interactions": "x.inter", "items": "x.item", "text_fields": {"title": "name"}, "licence": "made"}
    definition = DatasetDefinition(name="made", reader="movielens", folder=tmp_path, **settings)
    prepare(definition, "hllm", tmp_path / "good")
    dataset = load_dataset(tmp_path / "good")
    assert (dataset.user_ids(), dataset.item_ids()) == (['u"'], ['"a, b'])
    assert dataset.item_texts() == [{"title": '"The ""Best'}]
    (tmp_path / "x.inter").write_bytes((tmp_path / "x.inter").read_bytes() + b"u\ta\n")
    refused(definition, f"{tmp_path / 'x.inter'}, line 6, column rating")
