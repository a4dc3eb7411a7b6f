"""Comparisons of gains over a reference, against the ranks."""

import pytest
from comparing import CONFIG, compared

from benchmark.analysis.compare import Comparer, Verdict
from benchmark.analysis.compare_gains import compare_gains
from benchmark.analysis.compare_matching import match_sources
from benchmark.analysis.compare_sources import RunFolders, read_source
from benchmark.analysis.runs import load_run
from benchmark.analysis.significance import compare, outcomes
from benchmark.errors import UserError


def test_gains_over_a_reference_follow_from_the_ranks(make_run, tmp_path):
    for method in ("hstu", "sasrec"):
        make_run(method)
    (tmp_path / "p.csv").write_text("method,dataset,recall@10,ndcg@10\nHSTU,toy,20.00,10.00\nSASRec,toy,30.00,11.00\n")
    runs = RunFolders()
    sources = [read_source(path, runs, CONFIG) for path in (tmp_path / "runs", tmp_path / "p.csv")]
    matching = match_sources(*sources, {}, CONFIG)
    comparer = Comparer(matching.matches, runs)
    gains = {gain.first.of.metric: gain for gain in compare_gains(matching.matches, "HSTU", comparer, 0.004)}
    assert set(gains) == {"recall@10", "ndcg@10"}
    ranks = [load_run(tmp_path / "runs" / f"toy-{method}-seed1").ranks for method in ("sasrec", "hstu")]
    expected = compare(*(outcomes(one, comparer.metrics) for one in ranks))
    index, gain = comparer.metrics.index("recall@10"), gains["recall@10"]
    assert gain.value == pytest.approx(expected.relative[index])
    assert gain.reference == pytest.approx(0.5)
    slack = 1.5 * (0.00005 / 0.3 + 0.00005 / 0.2)
    assert gain.low == pytest.approx(expected.relative_low[index] - 0.5 - slack)
    assert gain.verdict == Verdict.DEVIATES
    assert gains["ndcg@10"].verdict == Verdict.REPRODUCED
    with pytest.raises(UserError, match="--reference BERT is no comparable method of both"):
        compare_gains(matching.matches, "BERT", comparer, 0.004)


def test_the_reference_of_gains_is_a_label_before_it_is_a_methods_name(make_run, tmp_path):
    for method in ("hllm", "hstu"):
        make_run(method, settings={"method": "hstu"})  # two rows of one method
    (tmp_path / "p.csv").write_text("method,dataset,ndcg@10\nHLLM,toy,20.00\nHSTU,toy,10.00\n")
    matching, _ = compared(tmp_path / "runs", tmp_path / "p.csv")
    comparer = Comparer(matching.matches, RunFolders())
    for name, other in (("HSTU", "HLLM"), ("HLLM", "HSTU")):
        assert [gain.first.name for gain in compare_gains(matching.matches, name, comparer, 0.004)] == [other]
