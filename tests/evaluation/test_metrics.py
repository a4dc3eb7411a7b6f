"""Metrics against their definitions in plain Python and against RecBole's; the files of ranks and metrics."""

import math
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.errors import UserError
from benchmark.evaluation.metrics import (
    DEFAULT_METRICS,
    Metric,
    metric_mean,
    metric_values,
    read_metrics,
    read_ranks,
    write_metrics,
)


def plain_value(name: str, rank: float) -> float:
    if name == "mrr":
        return 1 / rank
    kind, _, cutoff = name.partition("@")
    if rank > int(cutoff):
        return 0.0
    return 1.0 if kind == "recall" else 1 / math.log2(rank + 1)


half_ranks = st.lists(st.integers(2, 2000).map(lambda n: n / 2), min_size=1, max_size=50)


@given(half_ranks)
def test_values_are_those_of_the_definitions(ranks):
    values = metric_values(np.array(ranks), DEFAULT_METRICS)
    assert values.shape == (len(ranks), len(DEFAULT_METRICS))
    for row, rank in zip(values, ranks, strict=True):
        assert row == pytest.approx([plain_value(name, rank) for name in DEFAULT_METRICS], abs=1e-15)


def test_a_target_that_ties_across_the_cutoff_is_no_hit():
    ranks = np.array([10.0, 10.5, 11.0])
    assert Metric.parse("recall@10").values(ranks).tolist() == [1, 0, 0]
    assert metric_mean(ranks, "recall@10") == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["recall", "recall@0", "recall@x", "Recall@10", "hit@10", "ndcg@-1", "mrr@10", ""])
def test_an_unknown_metric_is_refused(name):
    with pytest.raises(UserError, match="recall@K or ndcg@K"):
        Metric.parse(name)


@pytest.fixture
def recbole_metrics(monkeypatch):
    """RecBole's metrics module; its package asks for ray, which only its hyper-parameter search uses."""
    for name in ("ray", "ray.tune"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["ray"].tune = sys.modules["ray.tune"]
    dropped_by_numpy = {"float": float, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    for name, kind in dropped_by_numpy.items():
        monkeypatch.setattr(np, name, kind, raising=False)
    return pytest.importorskip("recbole.evaluator.metrics")


def test_metrics_equal_recboles_on_the_same_ranks(recbole_metrics):
    import torch

    deepest, users = 1000, 400
    ranks = np.random.default_rng(3).geometric(0.01, users).clip(1, deepest)
    hits = torch.zeros(users, deepest + 1, dtype=torch.int32)
    hits[torch.arange(users), torch.from_numpy(ranks) - 1] = 1
    hits[:, deepest] = 1  # the number of relevant items, as RecBole hands it over
    found = {}
    settings = {"metric_decimal_place": 15, "topk": [5, 10, 50, 200, deepest]}
    for kind in (recbole_metrics.Recall, recbole_metrics.NDCG, recbole_metrics.MRR):
        found |= kind(settings).calculate_metric({"rec.topk": hits})
    for name in DEFAULT_METRICS:
        theirs = found[f"mrr@{deepest}" if name == "mrr" else name]
        assert metric_mean(ranks.astype(float), name) == pytest.approx(theirs, abs=1e-12), name


def test_metrics_file_round_trip(tmp_path):
    ranks = np.random.default_rng(0).integers(1, 300, 1000).astype(float)
    write_metrics(tmp_path / "metrics.csv", ranks)
    means, users = read_metrics(tmp_path / "metrics.csv")
    assert users == 1000
    assert means == {name: metric_mean(ranks, name) for name in DEFAULT_METRICS}
    frame = pd.read_csv(tmp_path / "metrics.csv", float_precision="round_trip")
    assert list(frame.columns) == ["metric", "value", "users"]
    assert dict(zip(frame.metric, frame.value, strict=True)) == means
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric,value\nmrr,1\n", "line 1"),
        ("", "line 1"),
        ("metric,value,users\nmrr,x,3\n", "line 2"),
        ("metric,value,users\nmrr,0.5\n", "line 2"),
        ("metric,value,users\nmrr,0.5,3\nrecall@5,0.5,4\n", "same number of users"),
        ("metric,value,users\nmrr,0.5,3\nmrr,0.5,3\n", "each metric once"),
    ],
)
def test_a_garbled_metrics_file_is_named(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_metrics(path)
    assert str(path) in str(error.value)


def ranks_table(**changes):
    columns = {
        "user_id": pa.array(["a", "b", "ü"]),
        "target_item": pa.array(["x", "y", "x"]),
        "rank": pa.array([1.0, 2.5, 7.0]),
        "ties": pa.array([0, 1, 0], pa.int32()),
        "history_length": pa.array([3, 4, 5], pa.int32()),
        "target_frequency": pa.array([0, 2, 9], pa.int32()),
        "hittable": pa.array([True, True, False]),
    }
    columns |= changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


def test_ranks_are_read_back(tmp_path):
    pq.write_table(ranks_table(), tmp_path / "ranks.parquet", row_group_size=2)
    table = read_ranks(tmp_path / "ranks.parquet")
    assert len(table) == 3
    assert table.user_id.to_pylist() == ["a", "b", "ü"]
    assert table.rank.tolist() == [1.0, 2.5, 7.0]
    assert table.hittable.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": None}, "column rank is missing"),
        ({"rank": pa.array([1, 2, 3])}, "column rank has type int64 where double"),
        ({"rank": pa.array([1.0, None, 2.0])}, "column rank has 1 empty"),
        ({"rank": pa.array([1.0, 0.5, 2.0])}, "row 2: rank 0.5"),
        ({"rank": pa.array([1.0, 1.0, math.nan])}, "row 3: rank nan"),
        ({"rank": pa.array([math.inf, 1.0, 1.0])}, "row 1: rank inf"),
        ({"user_id": pa.array(["a", "b", "a"])}, "more than one row"),
        ({"hittable": pa.array([1, 1, 0])}, "column hittable has type int64"),
    ],
)
def test_a_ranks_file_of_another_form_is_named(tmp_path, changes, message):
    path = tmp_path / "ranks.parquet"
    pq.write_table(ranks_table(**changes), path)
    with pytest.raises(UserError, match=message) as error:
        read_ranks(path)
    assert str(path) in str(error.value)


def test_missing_empty_and_cut_ranks_files_are_named(tmp_path):
    path = tmp_path / "ranks.parquet"
    with pytest.raises(UserError, match="does not exist"):
        read_ranks(path)
    pq.write_table(ranks_table().slice(0, 0), path)
    with pytest.raises(UserError, match="no row"):
        read_ranks(path)
    pq.write_table(ranks_table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="no complete Parquet file"):
        read_ranks(path)


def test_metrics_of_no_user_are_refused(tmp_path):
    with pytest.raises(UserError, match="no rank"):
        write_metrics(tmp_path / "metrics.csv", np.empty(0))
