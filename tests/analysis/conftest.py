"""Finished run folders as training and ranking leave them, made of simulated ranks."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmark.evaluation.metrics import write_metrics

LABELS = {"popularity": "Popularity", "hstu": "HSTU", "sasrec": "SASRec", "hllm": "HLLM"}


def simulated_ranks(method, seed, users=600):
    """Ranks of users who share their difficulty between methods; some end in .5."""
    difficulty = np.random.default_rng(0).normal(4, 2, users)
    shift = {"popularity": 1.5, "hstu": 0.0, "sasrec": -0.1, "hllm": -0.8}[method]
    generator = np.random.default_rng([seed, len(method)])
    ranks = np.exp(np.maximum(difficulty + generator.normal(0, 0.6, users) + shift, 0))
    return np.floor(2 * ranks).clip(2, 3000) / 2


def write_run(root, method="hstu", seed=1, settings=None, record=None, ranks=None, users=None, columns=None):
    """Write a run's folder below root and return it. columns: others than zeros, of ranks.parquet."""
    folder = root / f"toy-{method}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "id": folder.name, "label": LABELS[method], "method": method, "variant": "", "dataset": "toy",
        "protocol": "hllm", "seed": seed,
        "training": {"global_batch": 64, "sequence_length": 50, "negatives": {"count": 256, "sharing": "shared"}},
    }  # fmt: skip
    trained = {
        "git_revision": "abc", "device": "a CPU", "parameters": 1_234_567, "epochs": 7, "steps": 70, "hours": 0.25,
        "dataset_hash": "f" * 64,
    }  # fmt: skip
    if method == "popularity":
        trained = {**trained, "epochs": 0, "parameters": 0, "hours": 0}
        del trained["steps"]
    (folder / "run.yaml").write_text(yaml.safe_dump(run | (settings or {})))
    (folder / "provenance.json").write_text(json.dumps(trained | (record or {})))
    ranks = simulated_ranks(method, seed) if ranks is None else ranks
    users = [f"u{i}" for i in range(len(ranks))] if users is None else users
    zeros = pa.array(np.zeros(len(ranks), np.int32))
    table = pa.table(
        {
            "user_id": users, "target_item": [f"i{i % 50}" for i in range(len(ranks))], "rank": ranks, "ties": zeros,
            "history_length": zeros, "target_frequency": zeros, "hittable": np.ones(len(ranks), bool),
        }
    )  # fmt: skip
    for name, values in (columns or {}).items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int32()))
    pq.write_table(table, folder / "ranks.parquet")
    write_metrics(folder / "metrics.csv", ranks)
    return folder


@pytest.fixture
def make_run(tmp_path):
    return lambda *args, **kwargs: write_run(tmp_path / "runs", *args, **kwargs)
