"""Prepared data sets against a plain Python implementation, value by value and hash by hash."""

import csv
import io
import random
import tempfile
from pathlib import Path

import pytest
from generate import generate
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import prepared, usable_rows

from benchmark.data.dataset import load_dataset, training_events
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition, load_definitions
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
# Ids that sort differently by code point, by UTF-16 and by locale, and some that need quoting.
GOOD_IDS = ["a", "Z", "é", "z", "\uffee", "\U0001f600", "a,b", 'a"b', " a", "1", "10", "9"]
IDS = st.sampled_from(GOOD_IDS) | st.sampled_from(["", " ", "a\nb", "\u3000"])
FEW_IDS = st.sampled_from(GOOD_IDS[:5])
TIMES = st.sampled_from(["1", "2", "3", "-5", "007", "3.0", "+2", "9223372036854775807"])
BAD_TIMES = st.sampled_from(["", "x", "1.5", "1e3", " 1", "9223372036854775808", "2.0.0", "nan", "-", "1_0", "٣"])
TEXTS = st.sampled_from(["", " ", "A title", 'The "best", ever', "two\nlines", "é", "trailing "])


def definition(folder, **settings):
    return DatasetDefinition(name="made", reader="csv", folder=folder, licence="made", **settings)


def write_files(folder, interactions, items, *, order=(0, 1, 2), quoting=csv.QUOTE_MINIMAL, end="\n", last_end=True):
    """interactions: (user, item, timestamp); items: (item, {field: text})."""
    columns = ("user_id", "item_id", "timestamp")
    rows = [[row[i] for i in order] for row in (columns, *interactions)]
    fields = list(items[0][1]) if items else ["title"]
    item_rows = [["item_id", *fields], *([name, *(texts[field] for field in fields)] for name, texts in items)]
    for name, content in (("interactions.csv", rows), ("items.csv", item_rows)):
        text = io.StringIO(newline="")
        csv.writer(text, quoting=quoting, lineterminator=end).writerows(content)
        content = text.getvalue() if last_end else text.getvalue().removesuffix(end)
        (folder / name).write_bytes(content.encode())


def assert_equal(folder, card, expected, protocol):
    dataset = load_dataset(folder)
    assert dataset.card == card
    assert dataset.item_ids() == expected.item_ids
    assert dataset.user_ids() == expected.user_ids
    assert dataset.offsets.tolist() == expected.offsets
    assert dataset.items.tolist() == expected.items
    assert dataset.timestamps.tolist() == expected.timestamps
    assert dataset.split.tolist() == expected.split
    assert dataset.item_texts() == expected.texts
    assert card.split_sha256 == expected.sha256(protocol)
    for name, value in expected.figures.items():
        if name == "cutoffs":
            assert (card.cutoffs and list(card.cutoffs.values())) == (value if protocol == "temporal" else None)
        else:
            assert getattr(card, name) == pytest.approx(value), name
    assert card.items_without_text == sum(not text for text in expected.texts)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_plain_python(data):
    times = TIMES | BAD_TIMES if data.draw(st.booleans(), label="bad times") else TIMES
    ids = IDS if data.draw(st.booleans(), label="bad ids") else FEW_IDS
    interactions = data.draw(st.lists(st.tuples(ids, ids, times), max_size=40))
    texts = st.fixed_dictionaries({"title": TEXTS, "tag": TEXTS})
    items = data.draw(st.lists(st.tuples(ids, texts), max_size=8)) + data.draw(
        st.sampled_from([[], [(name, {"title": name, "tag": ""}) for name in GOOD_IDS]])
    )
    protocol = data.draw(st.sampled_from(["hllm", "meta", "temporal"]))
    missing_text = data.draw(st.sampled_from(["fail", "allow"]))
    kind = data.draw(st.sampled_from(["one_pass", "iterative"]))
    minimum = data.draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    rule = "none" if minimum is None else {"kind": kind, "item_count": minimum[0], "user_count": minimum[1]}
    layout = {
        "order": data.draw(st.permutations(range(3))),
        "quoting": data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "end": data.draw(st.sampled_from(["\n", "\r\n"])),
        "last_end": data.draw(st.booleans()),
    }
    _, _, bad = usable_rows(interactions, items, missing_text)
    expected = prepared(interactions, items, protocol, minimum, missing_text, kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, interactions, items, **layout)
        made = definition(
            folder, filter=rule, missing_text=missing_text, text_fields=["title", "tag"] if items else ["title"]
        )
        if expected is None:
            with pytest.raises(UserError):
                prepare(made, protocol, folder / "out", "drop")
            return
        card = prepare(made, protocol, folder / "out", "drop")
        assert_equal(folder / "out", card, expected, protocol)
        assert {reason: count for reason, count in card.dropped.items() if reason in bad} == bad
        if bad:
            with pytest.raises(UserError, match="line"):
                prepare(made, protocol, folder / "strict", "fail")
            assert not (folder / "strict").exists()
        else:
            assert prepare(made, protocol, folder / "strict", "fail") == card


def test_tied_rows_keep_the_order_of_the_file(tmp_path):
    rows = [("u", f"i{n}", str(n // 4)) for n in range(12)] + [("v", f"i{n}", "7") for n in range(12)]
    items = [(f"i{n}", {"title": "t"}) for n in range(12)]
    hashes = set()
    for seed in range(6):
        shuffled = random.Random(seed).sample(rows, len(rows))
        write_files(tmp_path, shuffled, items)
        card = prepare(definition(tmp_path), "hllm", tmp_path / "out")
        dataset = load_dataset(tmp_path / "out")
        assert_equal(tmp_path / "out", card, prepared(shuffled, items, "hllm"), "hllm")
        names = dataset.item_ids()
        in_file = [item for user, item, _ in shuffled if user == "v"]
        assert [names[i] for i in dataset.items[12:]] == in_file
        assert names[dataset.cases("test").target[1]] == in_file[-1]
        hashes.add(card.split_sha256)
    assert len(hashes) == 6  # another order of tied rows is another split, and the hash says so


def test_tied_rows_in_another_order_are_the_same_rows_in_a_split_of_its_own(tmp_path):
    rows = [("u", f"i{number:02}", str(number // 10)) for number in range(20)]
    write_files(tmp_path, rows, [(item, {"title": item}) for _, item, _ in rows])
    found = {}
    for order in ("file", "reversed", "shuffled"):
        card = prepare(definition(tmp_path, tied_order=order), "meta", tmp_path / order)
        found[order] = load_dataset(tmp_path / order).items.tolist()
        assert [sorted(found[order][:10]), sorted(found[order][10:])] == [[*range(10)], [*range(10, 20)]]
        assert (tmp_path / "file" / "dataset.json").read_text().count(card.split_sha256) == (order == "file")
    assert found["file"] == [*range(20)]
    assert found["reversed"] == [*range(9, -1, -1), *range(19, 9, -1)]
    assert found["shuffled"] not in (found["file"], found["reversed"])


def test_the_order_of_untied_rows_changes_nothing(tmp_path):
    rows = [(f"u{n % 5}", f"i{n % 7}", str(n)) for n in range(60)]
    items = [(f"i{n}", {"title": "t"}) for n in range(7)]
    cards = []
    for order in (rows, rows[::-1], random.Random(1).sample(rows, len(rows))):
        write_files(tmp_path, order, items)
        cards.append(prepare(definition(tmp_path), "hllm", tmp_path / "out").split_sha256)
    assert len(set(cards)) == 1


def test_meta_candidates_are_fixed_before_short_users_are_dropped(tmp_path):
    rows = [("long", "a", "1"), ("long", "b", "2"), ("long", "c", "3"), ("short", "d", "1")]
    items = [(name, {"title": name}) for name in "abcde"]
    write_files(tmp_path, rows, items)
    assert prepare(definition(tmp_path), "meta", tmp_path / "meta").counts.items == 5
    assert prepare(definition(tmp_path), "hllm", tmp_path / "hllm").counts.items == 3
    rule = {"kind": "one_pass", "item_count": 1, "user_count": 1}
    card = prepare(definition(tmp_path, filter=rule), "meta", tmp_path / "filtered")
    assert card.counts.items == 4  # e has no interaction, d only one of a user who is then dropped
    assert card.dropped == {
        "users with fewer than 2 interactions": 1,
        "interactions of users with fewer than 2 interactions": 1,
    }


def test_the_filter_is_one_pass(tmp_path):
    # x is kept by 5 raw rows, of which one belongs to a user who is too short: it ends with 4.
    rows = [(f"u{n}", item, str(t)) for n in range(4) for t, item in enumerate("xabcd")] + [("one", "x", "9")]
    rows += [(f"w{n}", item, str(n)) for item in "abcd" for n in range(1)]
    items = [(name, {"title": name}) for name in "xabcd"]
    write_files(tmp_path, rows, items)
    rule = {"kind": "one_pass", "item_count": 5, "user_count": 5}
    prepare(definition(tmp_path, filter=rule), "hllm", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.user_ids() == ["u0", "u1", "u2", "u3"]  # w0 has four rows only
    assert dataset.items.tolist().count(dataset.item_ids().index("x")) == 4


def test_two_preparations_are_equal_to_the_byte(tmp_path):
    generate(tmp_path / "raw", interactions=20_000, users=1_500, items=900, seed=7)
    names = (
        "items.npy",
        "timestamps.npy",
        "offsets.npy",
        "split.npy",
        "users.parquet",
        "items.parquet",
        "dataset.json",
    )
    contents = []
    for out in ("first", "second"):
        prepare(definition(tmp_path / "raw"), "hllm", tmp_path / out)
        contents.append([(tmp_path / out / name).read_bytes() for name in names])
    assert contents[0] == contents[1]


def test_a_generated_data_set_equals_plain_python(tmp_path):
    generate(tmp_path, interactions=20_000, users=1_500, items=900, seed=3)
    interactions, items = read_csv(tmp_path)
    card = prepare(definition(tmp_path), "meta", tmp_path / "out")
    assert_equal(tmp_path / "out", card, prepared(interactions, items, "meta"), "meta")


def read_csv(folder):
    with (folder / "interactions.csv").open(newline="") as file:
        interactions = [(row["user_id"], row["item_id"], row["timestamp"]) for row in csv.DictReader(file)]
    with (folder / "items.csv").open(newline="") as file:
        items = [(row.pop("item_id"), row) for row in csv.DictReader(file)]
    return interactions, items


REAL = {  # name, protocol: users, items, interactions, tie rate, tied targets, split
    ("ml-100k", "hllm"): (943, 1682, 100_000, 0.75772, 0.440085, "d388c53b674faa87b06e4446533ef438"),
    ("ml-100k", "meta"): (943, 1682, 100_000, 0.75772, 0.440085, "f769088469c8100db60e49a31e1afcba"),
    ("ml-100k", "temporal"): (772, 1655, 86_080, 0.754031, 0, "6cab80055acf78ce0811b1ed285e0439"),
    ("ml-1m", "hllm"): (6040, 3706, 1_000_209, 0.773866, 0.421192, "0fb4109fe7cc11c6def2bcb31896c65e"),
    ("ml-1m", "meta"): (6040, 3883, 1_000_209, 0.773866, 0.421192, "b14ca2c740a1a5e3af0e8f95cb1bf523"),
}


@pytest.mark.parametrize(("name", "protocol"), REAL)
def test_real_data_sets_have_their_counts_and_their_split(tmp_path, name, protocol):
    made = load_definitions(ROOT / "config/datasets.yaml")[name]
    card = prepare(made, protocol, tmp_path)
    users, items, interactions, tie_rate, tied_targets, split = REAL[name, protocol]
    assert (card.counts.users, card.counts.items, card.counts.interactions) == (users, items, interactions)
    assert card.tie_rate == pytest.approx(tie_rate, abs=1e-6)
    assert card.tied_targets == pytest.approx(tied_targets, abs=1e-6)
    assert card.split_sha256[:32] == split  # the same on every platform and with every version of the packages
    assert (card.dropped == {}) is (protocol != "temporal")
    assert card.items_without_text == 0
    assert load_dataset(tmp_path).item_texts(["genres", "title"])[0].keys() == {"genres", "title"}
    if protocol != "meta":
        expected = prepared(*read_atomic(*made.files(), made.text_fields), protocol)
        assert_equal(tmp_path, card, expected, protocol)


def read_atomic(interactions_path, items_path, fields):
    def records(path):
        header, *lines = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
        names = [name.partition(":")[0] for name in header.split("\t")]
        return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]

    interactions = [(r["user_id"], r["item_id"], r["timestamp"]) for r in records(interactions_path)]
    items = [(r["item_id"], {field: r[column] for field, column in fields.items()}) for r in records(items_path)]
    return interactions, items


def test_nothing_is_learned_from_the_time_of_the_targets(tmp_path):
    generate(tmp_path / "raw", interactions=5_000, users=300, items=90, seed=4)
    card = prepare(definition(tmp_path / "raw"), "temporal", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    trained = training_events(dataset.offsets, dataset.split)
    validation, test = dataset.cases("validation"), dataset.cases("test")
    assert dataset.timestamps[trained].max() < card.cutoffs["validation"] <= validation.request_timestamp.min()
    assert validation.request_timestamp.max() < card.cutoffs["test"] <= test.request_timestamp.min()
    assert (len(validation), len(test)) == (card.targets["validation"], card.targets["test"])
    assert (validation.history_end > validation.history_start).all()
    assert (test.history_end > test.history_start).all()


def test_a_temporal_split_needs_times(tmp_path):
    rows = [(user, item, "1") for user in "uv" for item in "abc"]
    write_files(tmp_path, rows, [(name, {"title": name}) for name in "abc"])
    with pytest.raises(UserError, match="finds no training event: validation begins at time 1 and test at 1"):
        prepare(definition(tmp_path), "temporal", tmp_path / "out")
    with pytest.raises(UserError, match="protocol temporal needs times"):
        prepare(definition(tmp_path, event_times=False), "temporal", tmp_path / "out")


def test_other_counts_than_expected_are_an_error(tmp_path):
    made = load_definitions(ROOT / "config/datasets.yaml")["ml-100k"]
    expected = made.expected.model_copy(update={"users": 944, "interactions": 99_999})
    with pytest.raises(
        UserError, match="944 users expected and 943 found, 99999 interactions expected and 100000 found"
    ):
        prepare(made.model_copy(update={"expected": expected}), "hllm", tmp_path)
    assert not (tmp_path / "dataset.json").exists()
    card = prepare(made.model_copy(update={"expected": expected}), "hllm", tmp_path, on_other_counts="accept")
    assert card.count_deviations == ["944 users expected and 943 found", "99999 interactions expected and 100000 found"]
