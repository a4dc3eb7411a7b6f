"""Comparisons of folders of runs: rows of one name are told apart by what differs."""

import numpy as np
import pandas as pd
import pytest
from comparing import compared

from benchmark.analysis.compare import Comparer
from benchmark.analysis.compare_gains import compare_gains
from benchmark.analysis.compare_sources import RunFolders
from benchmark.analysis.compare_views import write_comparison
from benchmark.errors import UserError
from benchmark.evaluation.metrics import metric_mean


def test_a_folder_with_several_settings_of_a_method_is_compared_by_setting(make_run, tmp_path):
    means = {}
    for epochs, seed in ((3, 1), (3, 2), (10, 1), (10, 2), (10, 4)):
        folder = make_run(
            "hstu", seed=seed, settings={"training": {"epochs": epochs}}, ranks=np.full(600, float(epochs))
        )
        folder.rename(folder.with_name(f"hstu-{epochs}-{seed}"))
        means[epochs] = metric_mean(np.full(600, float(epochs)), "ndcg@10")
    make_run("sasrec")
    (tmp_path / "p.csv").write_text("method,dataset,ndcg@10\nHSTU,toy,50.00\nSASRec,toy,30.00\n")
    matching, results = compared(tmp_path / "runs", tmp_path / "p.csv")
    values = {result.first.settings: (result.value, len(result.first.values)) for result in results}
    assert values[("training.epochs=3",)] == (pytest.approx(means[3]), 2)
    assert values[("training.epochs=10",)] == (pytest.approx(means[10]), 3)
    assert set(values) == {("training.epochs=3",), ("training.epochs=10",), ()}  # SASRec has one setting
    text = write_comparison(matching, results, [], "", tmp_path / "comparison", 0.004)
    for title in ("HSTU on toy, training.epochs=3", "HSTU on toy, training.epochs=10", "SASRec on toy"):
        assert len([line for line in text.splitlines() if line.startswith(title)]) >= 2
    assert set(pd.read_csv(tmp_path / "comparison.csv").settings.dropna()) == {
        "training.epochs=3",
        "training.epochs=10",
    }
    _, chosen = compared(tmp_path / "runs", tmp_path / "p.csv", where_a={"training.epochs": "3"})
    assert [result.value for result in chosen] == [pytest.approx(means[3])]
    _, turned = compared(tmp_path / "p.csv", tmp_path / "runs")
    reasons = {result.first.name: result.reason for result in turned}
    assert "training.epochs=10" in reasons["HSTU"]
    assert "choose one with --where-b" in reasons["HSTU"]
    _, same = compared(tmp_path / "runs", tmp_path / "runs")
    assert {result.reason for result in same} == {"equal"}
    with pytest.raises(UserError, match=r"--reference HSTU is more than one row on toy \(training.epochs="):
        compare_gains(matching.matches, "HSTU", Comparer(matching.matches, RunFolders()), 0.004)


def test_rows_of_one_label_in_a_folder_are_told_apart_by_protocol(make_run, tmp_path):
    make_run("hstu", seed=1)
    make_run("hstu", seed=2, settings={"protocol": "meta"})
    make_run("sasrec")
    (tmp_path / "p.csv").write_text("method,dataset,ndcg@10\nHSTU,toy,50.00\nSASRec,toy,30.00\n")
    matching, results = compared(tmp_path / "runs", tmp_path / "p.csv")
    text = write_comparison(matching, results, [], "", tmp_path / "comparison", 0.004)
    for title in ("HSTU on toy, protocol=hllm", "HSTU on toy, protocol=meta", "SASRec on toy"):
        assert len([line for line in text.splitlines() if line.startswith(title)]) >= 2
    assert "SASRec on toy, protocol" not in text
    _, same = compared(tmp_path / "runs", tmp_path / "runs")
    assert {result.reason for result in same} == {"equal"}
