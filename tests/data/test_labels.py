"""Labels of interactions: aligned with the events, hashed apart from the split, and strict about what they read."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.data.dataset import load_dataset
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition, load_definitions
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
BINARY = {"column": "rating"}
LABEL = {"column": "rating", "positive_from": 3.5}


def made(folder, ratings, label=None):
    rows = [f"{user},{'abcd'[time]},{-time},{next(ratings)}" for user in "vu" for time in range(4)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,rating", *rows]))
    (folder / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\nd,D\n")
    return DatasetDefinition(name="made", reader="csv", folder=folder, licence="made", label=label)


def test_labels_follow_their_events_and_leave_the_split_alone(tmp_path):
    values = ["5", "3.5", "3.49", "1e1", "-1", "0", "4.0", "3"]  # v's four, then u's, both from the last to the first
    labelled = prepare(made(tmp_path, iter(values), LABEL), "hllm", tmp_path / "out")
    assert load_dataset(tmp_path / "out").labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 1]
    expected = hashlib.sha256(b"hllm-bench labels 1\n" + bytes([0, 1, 0, 0, 1, 0, 1, 1])).hexdigest()
    assert (labelled.labels.sha256, labelled.labels.positive, labelled.labels.positive_from) == (expected, 0.5, 3.5)
    without = prepare(made(tmp_path, iter(values)), "hllm", tmp_path / "out")
    assert (without.labels, load_dataset(tmp_path / "out").labels) == (None, None)
    assert without.split_sha256 == labelled.split_sha256


def test_a_column_of_zeros_and_ones_needs_no_threshold(tmp_path):
    definition = made(tmp_path, iter(["0", "1", "1.0", "0", "0", "0", "1", "0"]), {"column": "rating"})
    prepare(definition, "hllm", tmp_path / "out")
    assert load_dataset(tmp_path / "out").labels.tolist() == [0, 1, 0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("value", "label"),
    [("", LABEL), ("nan", LABEL), ("five", LABEL), ("inf", LABEL), ("5", BINARY), ("0.5", BINARY)],
)
def test_what_is_no_label_is_a_bad_row(tmp_path, value, label):
    definition = made(tmp_path, iter(["1", value, *"111111"]), label)
    with pytest.raises(UserError, match=re.escape(f"line 3, column rating: rating {value!r} is not")):
        prepare(definition, "hllm", tmp_path / "out")
    assert prepare(definition, "hllm", tmp_path / "out", "drop").dropped == {"unparsable label": 1}


def test_a_label_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no column stars; it has: user_id"):
        prepare(made(tmp_path, iter("11111111"), {"column": "stars"}), "hllm", tmp_path / "out")


def test_damaged_labels_are_refused(tmp_path):
    folder = tmp_path / "made" / "hllm"
    prepare(made(tmp_path, iter("55555555"), LABEL), "hllm", folder)
    np.save(folder / "labels.npy", np.zeros(7, np.int8))
    with pytest.raises(UserError, match=r"labels\.npy"):
        load_dataset(folder)


@pytest.mark.parametrize(("name", "positive"), [("ml-100k", 55_375), ("ml-1m", 575_281)])
def test_movielens_ratings_of_four_and_five_are_positive(tmp_path, name, positive):
    definition = load_definitions(ROOT / "config/datasets.yaml")[name]
    prepare(definition, "hllm", tmp_path)
    dataset = load_dataset(tmp_path)
    lines = definition.files()[0].read_bytes().decode().split("\n")[1:]
    ratings = {
        tuple(fields[:2]): float(fields[2]) for fields in (line.rstrip("\r").split("\t") for line in lines if line)
    }
    users, items = dataset.user_ids(), dataset.item_ids()
    pairs = zip(np.repeat(np.arange(len(users)), np.diff(dataset.offsets)), dataset.items, strict=True)
    assert dataset.labels.tolist() == [ratings[users[user], items[item]] >= 4 for user, item in pairs]
    assert int(dataset.labels.sum()) == positive
