"""Click metrics against scikit-learn, user by user, and what is refused of clicks.parquet."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import auc, click_metric, group_auc, read_clicks, user_aucs, write_clicks

CASES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.sampled_from([-700.0, -2.5, -1.0, 0.0, 0.25, 3.0, 800.0])),
    min_size=2, max_size=40,
)  # fmt: skip


def columns(users, labels, logits):
    return {
        "user_id": [f"u{user}" for user in users], "target_item": ["i"] * len(users), "label": labels, "logit": logits,
        "history_length": [3] * len(users), "timestamp": [9] * len(users),
    }  # fmt: skip


@given(CASES)
def test_equal_scikit_learn(cases):
    users, labels, logits = (np.array(x) for x in zip(*cases, strict=True))
    labels = labels.astype(np.int8)
    if len(set(labels)) == 2:
        assert auc(labels, logits) == pytest.approx(roc_auc_score(labels, logits))
    else:
        assert np.isnan(auc(labels, logits))
    total, weights = 0.0, 0
    values, counts = user_aucs(users, labels, logits)
    for user in set(users.tolist()):
        own = users == user
        assert counts[user] == own.sum()
        if len(set(labels[own])) == 2:
            expected = roc_auc_score(labels[own], logits[own])
            assert values[user] == pytest.approx(expected)
            total, weights = total + own.sum() * expected, weights + own.sum()
    if weights:
        assert group_auc(users, labels, logits) == pytest.approx(total / weights)


def test_what_is_written_is_read_and_measured(tmp_path):
    random = np.random.default_rng(0)
    users, labels, logits = random.integers(0, 9, 60), random.integers(0, 2, 60), random.normal(size=60)
    write_clicks(tmp_path / "clicks.parquet", columns(users, labels, logits))
    table = read_clicks(tmp_path / "clicks.parquet")
    assert click_metric(table, "log_loss") == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), abs=1e-6)
    assert click_metric(table, "auc") == pytest.approx(roc_auc_score(labels, logits.astype(np.float32)))
    assert (np.unique(users, return_inverse=True)[1][:, None] == np.unique(users, return_inverse=True)[1]).tolist() == (
        table.users()[:, None] == table.users()
    ).tolist()
    with pytest.raises(UserError, match="write one of auc, group_auc, log_loss"):
        click_metric(table, "ndcg@10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 2]}, "row 2: label 2 and logit 1.0 must be 0 or 1"),
        ({"logit": [0.0, float("nan")]}, "row 2: label 1 and logit nan"),
        ({"label": [1, 1]}, "no case of both labels"),
    ],
)
def test_impossible_values_are_refused(tmp_path, change, message):
    write_clicks(tmp_path / "clicks.parquet", columns([0, 0], [0, 1], [0.0, 1.0]) | change)
    with pytest.raises(UserError, match=message):
        read_clicks(tmp_path / "clicks.parquet")


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "clicks.parquet"
    with pytest.raises(UserError, match="does not exist"):
        read_clicks(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="no complete Parquet file"):
        read_clicks(path)
    pq.write_table(pa.table({"user_id": ["u"], "target_item": ["i"], "label": [1.0]}), path)
    with pytest.raises(UserError, match="column label has type double where int8 was expected"):
        read_clicks(path)
