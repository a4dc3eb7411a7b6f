"""A table of click predictions: its numbers from its runs' files, and what it refuses."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from benchmark.analysis.click_tables import is_click_table, make_click_table
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import write_clicks

PUBLISHED = "sequence_length,auc\n200,0.7429\n"


def write_run(folder, name, logits, label, users, split="a" * 64, seed=1):
    run = folder / "runs" / f"{name}-{seed}"
    run.mkdir(parents=True)
    settings = {
        "id": f"{name}-{seed}", "method": name, "seed": seed, "evaluation": {"sequence_length": 20},
        "training": {"click": {"test_share": 0.1}, "negatives": {"count": 5}, "global_batch": 8, "sequence_length": 20},
        "execution": {"threads": 2},
    }  # fmt: skip
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    (run / "provenance.json").write_text(
        json.dumps({"dataset_hash": split, "parameters": 1234, "device": "a CPU", "epochs": 2, "hours": 0.1})
    )
    sharing = ["none", "state"] if name == "late" else ["none"]
    lines = [
        f"{count},{how},3,20,{count * 2.0},{2.0 if how == 'none' else 0.5}" for count in (1, 10) for how in sharing
    ]
    header = "candidates,sharing,requests,history_length,milliseconds,milliseconds_per_candidate"
    (run / "serving.csv").write_text("\n".join([header, *lines]) + "\n")
    columns = {
        "user_id": [f"u{user}" for user in users], "target_item": ["i"] * len(users), "label": label, "logit": logits,
        "history_length": [3] * len(users), "timestamp": [9] * len(users),
    }  # fmt: skip
    write_clicks(run / "clicks.parquet", columns)


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    users, label = np.repeat(np.arange(60), 5), random.integers(0, 2, 300).astype(np.int8)
    return users, label, label + random.normal(size=300), 0.2 * label + random.normal(size=300)


def plan(tmp_path, metrics=("auc", "group_auc", "log_loss"), rows=("late", "early"), seeds=(1,), published=None):
    (tmp_path / "published.csv").write_text(PUBLISHED)
    planned = [
        SimpleNamespace(
            label=name, runs=[SimpleNamespace(id=f"{name}-{seed}") for seed in seeds],
            row=SimpleNamespace(variant="", published=published if name == "early" else None),
        )
        for name in rows
    ]  # fmt: skip
    block = SimpleNamespace(title="Generated", dataset="generated", reference=rows[0])
    file = SimpleNamespace(metrics=list(metrics), title="Clicks", published=str(tmp_path / "published.csv"))
    return SimpleNamespace(name="clicks", file=file, blocks=[SimpleNamespace(block=block, rows=planned)])


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_every_number_follows_from_the_runs(tmp_path, data):
    users, label, good, poor = data
    write_run(tmp_path, "late", good, label, users)
    write_run(tmp_path, "early", poor, label, users)
    text = make_click_table(plan(tmp_path, published={"sequence_length": "200"}), tmp_path)
    values = {(row["method"], row["metric"]): row for row in rows_of(tmp_path / "clicks.csv")}
    for name, logits in (("late", good), ("early", poor)):
        row = values[name, "auc"]
        assert float(row["value"]) == pytest.approx(roc_auc_score(label, logits.astype(np.float32)))
        assert float(row["ci_low"]) < float(row["value"]) < float(row["ci_high"])
        assert row["users"] == "60"
    assert values["early", "auc"]["published"] == "0.7429"
    assert float(values["late", "ms_per_candidate_shared@10"]["value"]) == 0.5
    assert float(values["late", "ms_per_candidate@10"]["value"]) == 2.0
    pairs = {row["metric"]: row for row in rows_of(tmp_path / "clicks_pairs.csv")}
    assert set(pairs) == {"auc", "group_auc", "log_loss"}
    assert float(pairs["auc"]["difference"]) == pytest.approx(
        roc_auc_score(label, poor.astype(np.float32)) - roc_auc_score(label, good.astype(np.float32))
    )
    assert float(pairs["auc"]["p_holm"]) >= float(pairs["auc"]["p_value"])
    page = (tmp_path / "clicks.md").read_text()
    assert "0.500 (2.000)" in page  # late: shared, and in brackets not
    assert "at hand, on a CPU, 2 threads" in page
    assert f"{roc_auc_score(label, poor.astype(np.float32)):.4f}‡" in page
    assert "0.7429" in page
    assert "300 cases of 60 users" in text


def test_seeds_are_one_row(tmp_path, data):
    users, label, good, poor = data
    for seed, shift in ((1, 0.0), (2, 0.5)):
        write_run(tmp_path, "late", good + shift * poor, label, users, seed=seed)
        write_run(tmp_path, "early", poor - shift * good, label, users, seed=seed)
    make_click_table(plan(tmp_path, seeds=(1, 2)), tmp_path)
    values = [float(row["value"]) for row in rows_of(tmp_path / "clicks.csv")
              if (row["method"], row["metric"]) == ("late", "auc")]  # fmt: skip
    assert len(values) == 2
    assert f"{np.mean(values):.4f}" in (tmp_path / "clicks.md").read_text()


def test_what_cannot_be_compared_is_refused(tmp_path, data):
    users, label, good, poor = data
    write_run(tmp_path, "late", good, label, users)
    with pytest.raises(UserError, match=r"early-1 is no finished run: it lacks run\.yaml"):
        make_click_table(plan(tmp_path), tmp_path)
    write_run(tmp_path, "early", poor, label, users, split="b" * 64)
    with pytest.raises(UserError, match="cannot be compared: the hash of the first one's data set is aaaaaaaaaaaa"):
        make_click_table(plan(tmp_path), tmp_path)
    write_run(tmp_path, "other", poor, 1 - label, users)
    with pytest.raises(UserError, match="predicted different cases"):
        make_click_table(plan(tmp_path, rows=("late", "other")), tmp_path)
    with pytest.raises(UserError, match=r"metric 'ndcg@10' is not known for clicks"):
        make_click_table(plan(tmp_path, metrics=("auc", "ndcg@10")), tmp_path)


def test_tables_of_ranks_are_not_tables_of_clicks():
    assert is_click_table(["auc"])
    assert not is_click_table(["recall@10", "ndcg@10"])
