"""What results/reference shows is what its ranks give, to the byte, and how runs get there."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmark.analysis.reference import keep_table, rebuild
from benchmark.errors import UserError
from benchmark.evaluation.shared_cases import whole_file
from benchmark.experiments import Configuration

KEPT = Path(__file__).parent.parent / "results" / "reference"


def test_every_table_is_computed_from_the_kept_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(KEPT.parents[1])  # tables name files of published numbers from here
    again = tmp_path / "reference"
    for folder in (*KEPT.glob("*/runs"), *KEPT.glob("*/cases")):
        shutil.copytree(folder, again / folder.relative_to(KEPT))
    assert len(list(rebuild(Configuration(Path("config")), again))) >= 2
    rebuilt = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    folders = [runs.parent for runs in KEPT.glob("*/runs")]
    kept = sorted(path.relative_to(KEPT) for folder in folders for path in folder.rglob("*") if path.is_file())
    assert rebuilt == kept
    for path in rebuilt:
        assert (again / path).read_bytes() == (KEPT / path).read_bytes(), path


def test_the_runs_of_a_table_are_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(KEPT.parents[1])
    configuration, finished, kept = Configuration(Path("config")), tmp_path / "finished", tmp_path / "kept"
    runs = [run.id for run in configuration.plan("meta_ml1m", "gpu").runs()]
    shutil.copytree(KEPT / "gpu" / "cases", finished / "gpu" / "cases")
    for run_id in runs:
        shutil.copytree(KEPT / "gpu" / "runs" / run_id, finished / "gpu" / "runs" / run_id)
        (finished / "gpu" / "runs" / run_id / "model.safetensors").write_bytes(b"weights")
    aside = (finished / "gpu" / "runs" / runs[-1]).rename(tmp_path / "aside")
    with pytest.raises(UserError, match=f"{runs[-1]} is no finished run"):
        keep_table(configuration, "meta_ml1m", "gpu", finished, kept)
    assert not kept.exists()
    aside.rename(finished / "gpu" / "runs" / runs[-1])
    curve = finished / "gpu" / "runs" / runs[1] / "training.csv"
    content = curve.read_bytes()
    curve.unlink()
    with pytest.raises(UserError, match=r"training.csv does not exist"):
        keep_table(configuration, "meta_ml1m", "gpu", finished, kept)
    curve.write_bytes(content)
    ranks = finished / "gpu" / "runs" / runs[1] / "ranks.parquet"
    content = ranks.read_bytes()
    table = pq.read_table(pa.BufferReader(whole_file(ranks)))
    longer = pc.add(table["history_length"], pa.scalar(1, pa.int32()))
    pq.write_table(table.set_column(table.column_names.index("history_length"), "history_length", longer), ranks)
    with pytest.raises(UserError, match="has other users, test items or histories"):
        keep_table(configuration, "meta_ml1m", "gpu", finished, kept)
    ranks.write_bytes(content)
    assert not kept.exists()
    assert keep_table(configuration, "meta_ml1m", "gpu", finished, kept) == runs
    assert keep_table(configuration, "meta_ml1m", "gpu", finished, kept) == []
    files = [path.relative_to(kept) for path in kept.rglob("*") if path.is_file()]
    splits = sorted(path.name for path in (kept / "gpu" / "cases").iterdir())
    assert splits == ["ml-1m-meta.parquet", "ml-1m-ties-reversed-meta.parquet", "ml-1m-ties-shuffled-meta.parquet"]
    assert len(files) == 3 + 5 * len(runs)
    for file in files:
        assert (kept / file).read_bytes() == (KEPT / file).read_bytes(), file


def test_a_folder_without_kept_runs_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no folder of a preset"):
            list(rebuild(Configuration(KEPT.parents[1] / "config"), folder))
