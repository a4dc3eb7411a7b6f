"""What runs on a split share is kept once, and ranks read the same as before."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.errors import UserError
from benchmark.evaluation.metrics import read_ranks
from benchmark.evaluation.shared_cases import keep_ranks, whole_file


def written(path, ranks, **changes):
    users = len(ranks)
    columns = {
        "user_id": pa.array([f"u{user}" for user in range(users)]),
        "target_item": pa.array([f"i{user % 3}" for user in range(users)]),
        "rank": pa.array(ranks, pa.float64()),
        "ties": pa.array([int(2 * rank) % 2 for rank in ranks], pa.int32()),
        "history_length": pa.array(range(users), pa.int32()),
        "target_frequency": pa.array([user % 3 for user in range(users)], pa.int32()),
        "hittable": pa.array([rank < 50 for rank in ranks]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | changes), path)
    return path


def same(first, second):
    numbers = ("rank", "ties", "history_length", "target_frequency", "hittable")
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in numbers)
    assert first.user_id.equals(second.user_id)
    assert first.target_item.equals(second.target_item)


@given(st.lists(st.lists(st.integers(2, 200), min_size=4, max_size=4), min_size=1, max_size=3))
def test_ranks_read_the_same_and_cases_are_kept_once(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("kept")
    for number, twice in enumerate(runs):
        source = written(folder / "finished" / str(number) / "ranks.parquet", [rank / 2 for rank in twice])
        target = folder / "runs" / str(number) / "ranks.parquet"
        keep_ranks(source, target, "toy-hllm")
        same(read_ranks(target), read_ranks(source))
        keep_ranks(target, target, "toy-hllm")  # what is kept can be kept again
        same(read_ranks(target), read_ranks(source))
        (folder / "copy.parquet").write_bytes(whole_file(target))
        same(read_ranks(folder / "copy.parquet"), read_ranks(source))
        assert whole_file(source) == source.read_bytes()
        assert pq.read_schema(target).names == ["rank", "ties", "hittable"]
    assert [path.name for path in (folder / "cases").iterdir()] == ["toy-hllm.parquet"]


@pytest.fixture
def kept(tmp_path):
    source = written(tmp_path / "finished" / "ranks.parquet", [1.0, 2.5, 60.0])
    keep_ranks(source, tmp_path / "runs" / "a" / "ranks.parquet", "toy-hllm")
    return tmp_path


def test_other_cases_are_refused_and_nothing_is_written(kept):
    before = (kept / "cases" / "toy-hllm.parquet").read_bytes()
    other = written(kept / "other" / "ranks.parquet", [1.0, 2.5, 60.0], target_item=pa.array(["i0", "i1", "i9"]))
    with pytest.raises(UserError, match=r"has other users, test items or histories than .*toy-hllm\.parquet"):
        keep_ranks(other, kept / "runs" / "b" / "ranks.parquet", "toy-hllm")
    assert (kept / "cases" / "toy-hllm.parquet").read_bytes() == before
    assert not (kept / "runs" / "b").exists()


def test_cases_that_are_missing_or_others_are_named(kept, monkeypatch):
    monkeypatch.chdir(kept / "runs")
    assert len(read_ranks(Path("a/ranks.parquet"))) == 3
    cases = kept / "cases" / "toy-hllm.parquet"
    written(cases, [1.0, 2.5, 60.0])
    with pytest.raises(UserError, match=r"toy-hllm.parquet is not the file that .*ranks.parquet was written with"):
        read_ranks(kept / "runs" / "a" / "ranks.parquet")
    cases.unlink()
    with pytest.raises(UserError, match=r"cases/toy-hllm.parquet does not exist; .*ranks.parquet needs it"):
        read_ranks(kept / "runs" / "a" / "ranks.parquet")
