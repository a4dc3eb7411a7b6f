"""Comparisons: what is matched and refused, the statistics against scipy, and the verdicts."""

import csv
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from comparing import CONFIG, compared
from scipy import stats
from typer.testing import CliRunner

from benchmark.analysis.compare import Compared, Comparer, Interval, Verdict, judged
from benchmark.analysis.compare_matching import match_sources
from benchmark.analysis.compare_sources import Entry, Identity, Measured, RunFolders, read_source
from benchmark.analysis.compare_views import answer, exit_status, write_comparison
from benchmark.analysis.runs import load_run
from benchmark.analysis.significance import compare, outcomes
from benchmark.analysis.tables import TableBlock, TableRow, TableSpec, evaluate_table, write_table
from benchmark.cli import app
from benchmark.errors import UserError
from benchmark.evaluation.metrics import DEFAULT_METRICS, metric_mean, metric_values


@pytest.fixture
def table(make_run, tmp_path):
    """Makes <tmp>/<name>/table7.csv of simulated runs, which lie somewhere else; returns its path."""

    def make(name="one", methods=("hstu", "sasrec"), seeds=(1,)):
        rows = []
        for method in methods:
            runs = tuple(load_run(make_run(method, seed=seed)) for seed in seeds)
            rows.append(TableRow(runs[0].label, runs))
        block = TableBlock("toy", "Toy", tuple(rows), rows[0].label)
        write_table(evaluate_table(TableSpec("table7", "T", ("recall@10",)), [block]), tmp_path / name)
        return tmp_path / name / "table7.csv"

    return make


def edited(path, change, name="edited"):
    """The CSV with change(row) applied to every row, in a folder of its own."""
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    for row in rows:
        change(row)
    target = path.parent.parent / name / path.name
    target.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(target, index=False)
    return target


def set_to(value, method="hstu", metric="recall@10", column="value"):
    def change(row):
        if row["method"] == method and row["metric"] == metric:
            row[column] = value

    return change


def verdicts(results):
    return {(result.first.of.method, result.first.of.metric): result.verdict for result in results}


def test_equal_results_are_reproduced(table):
    _, results = compared(table(), table("two"))
    assert len(results) == 2 * len(DEFAULT_METRICS)
    assert set(verdicts(results).values()) == {Verdict.REPRODUCED}
    assert exit_status(results) == 0
    assert answer(results) == "yes: all 18 numbers are reproduced"


def test_a_number_edited_by_hand_is_flagged_and_no_other(table):
    path = table()
    value = float(pd.read_csv(path).query("method == 'hstu' and metric == 'recall@10'").value.iloc[0])
    _, results = compared(edited(path, set_to(1.01 * value)), path)
    found = verdicts(results)
    assert found.pop(("hstu", "recall@10")) == Verdict.DEVIATES
    assert set(found.values()) == {Verdict.REPRODUCED}
    assert exit_status(results) == 3
    assert answer(results).startswith("no: 1 of 18 numbers deviates")
    _, results = compared(edited(path, set_to(1.003 * value)), path)
    assert verdicts(results)["hstu", "recall@10"] == Verdict.NOISE  # 0.3 % is within the 0.4 % of the authors
    assert exit_status(results) == 0


def test_a_number_that_its_own_ranks_or_interval_contradict_deviates(table, make_run, tmp_path):
    path = table()
    run = load_run(make_run("hstu"))
    beside = edited(path, set_to(run_value := metric_mean(run.ranks, "recall@10") + 0.001), name=".")
    assert beside.parent.resolve() == tmp_path  # where runs/ is
    _, results = compared(beside, path)
    found = next(result for result in results if result.contradicted)
    assert f"says {run_value:.6g}, and the ranks of its run give" in found.reason
    assert found.verdict == Verdict.DEVIATES
    _, results = compared(edited(path, set_to(0.99)), path)
    assert "outside of its own interval" in next(result.reason for result in results if result.contradicted)


def scaled(row):
    for column in ("value", "ci_low", "ci_high"):
        row[column] = repr(100 * float(row[column]))


def test_percentages_are_recognised_and_named(table):
    path = table()
    matching, results = compared(edited(path, scaled), path)
    assert set(verdicts(results).values()) == {Verdict.REPRODUCED}
    assert "should be in fractions and is in percent" in matching.first.notes[0]


def test_small_percentages_are_recognised_by_their_counterparts(tmp_path):
    (tmp_path / "a.csv").write_text("method,recall@10,ndcg@10\nA,0.00588,0.00372\n")
    (tmp_path / "b.csv").write_text("method,recall@10,ndcg@10\nA,0.588,0.372\n")
    matching, results = compared(tmp_path / "b.csv", tmp_path / "a.csv")
    assert set(verdicts(results).values()) == {Verdict.REPRODUCED}
    assert "recognised as in" in " ".join(matching.first.notes + matching.second.notes)


def test_one_percentage_among_fractions_is_refused_by_name(table):
    path = table()
    _, results = compared(edited(path, set_to(20.5)), path)
    refused = [result for result in results if result.verdict == Verdict.REFUSED]
    assert [result.first.of.metric for result in refused] == ["recall@10"]
    assert "fraction against percent" in refused[0].reason
    assert exit_status(results) == 4


def test_other_splits_and_protocols_are_refused_by_row(table, make_run):
    path = table()
    other = edited(path, set_to("e" * 64, metric="mrr", column="dataset_hash"))
    _, results = compared(other, path)
    assert [r.first.of.metric for r in results if r.verdict == Verdict.REFUSED] == ["mrr"]
    assert (
        next(r.reason for r in results if r.verdict == Verdict.REFUSED)
        == "other split: eeeeeeeeeeee against ffffffffffff"
    )
    _, results = compared(edited(path, lambda row: row.update(dataset_hash="e" * 64)), path)
    assert answer(results) == "it cannot be told: no number can be compared"
    one = make_run("hstu")
    two = make_run("hstu", seed=2, settings={"protocol": "meta"})
    _, results = compared(one, two)
    assert {result.reason for result in results} == {"other protocol: hllm against meta"}


def test_ranks_of_the_same_users_are_compared_in_pairs(make_run):
    first, second = make_run("hstu", seed=1), make_run("hstu", seed=2)
    _, results = compared(first, second, noise=0)
    ranks = [load_run(folder).ranks for folder in (first, second)]
    metrics = tuple(sorted(DEFAULT_METRICS))
    expected = compare(*(outcomes(one, metrics) for one in ranks))
    tests = stats.ttest_rel(*(metric_values(one, metrics) for one in ranks))
    for result in results:
        index = metrics.index(result.first.of.metric)
        assert (result.low, result.high) == (expected.low[index], expected.high[index])
        assert result.p_value == pytest.approx(tests.pvalue[index], rel=1e-9)
        assert (result.test, result.basis) == ("paired t", "600 users, paired")
        assert (result.verdict == Verdict.REPRODUCED) == (result.low <= 0 <= result.high)


def test_seeds_on_both_sides_count_where_they_vary_more_than_users(make_run, tmp_path):
    for number, (name, shift) in enumerate(itertools.product(("a", "b"), (0.8, 1.0, 1.25))):
        ranks = np.ceil(np.random.default_rng(7).lognormal(4, 2, 600) * shift)  # seeds that shift all users together
        make_run("hstu", seed=number, ranks=ranks).rename(tmp_path / f"{name}{number}")
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / f"{name}{number}").rename(tmp_path / name / f"{name}{number}")
    _, results = compared(tmp_path / "a", tmp_path / "b")
    result = next(result for result in results if result.first.of.metric == "recall@10")
    assert (result.test, result.basis) == ("Welch's t", "3 and 3 seeds")
    assert result.p_value == pytest.approx(1)


def test_two_files_without_ranks_have_no_test(table):
    path = table(seeds=(1,))
    _, results = compared(edited(path, set_to(0.2)), path)
    assert {(result.test, result.basis) for result in results} == {("none", "none")}
    assert all(np.isnan(result.p_value) for result in results)


def number(value, rounding=0.0, **of):
    return Entry(Identity("recall@10", **of), (Measured(value, "1"),), rounding)


@pytest.mark.parametrize(
    ("value", "bounds", "rounding", "verdict"),
    [
        (0.1031, (-0.001, 0.007), 0, Verdict.REPRODUCED),
        (0.1031, (0.001, 0.005), 0, Verdict.DEVIATES),
        (0.1031, (0.001, 0.005), 0.0012, Verdict.REPRODUCED),  # what printing rounded away reaches 0
        (0.1003, (0.0001, 0.0005), 0, Verdict.NOISE),
        (0.1003, None, 0, Verdict.NOISE),
        (0.10042, None, 0, Verdict.DEVIATES),
        (0.10042, None, 0.00005, Verdict.NOISE),
        (0.1031, None, 0, Verdict.DEVIATES),
        (0.10004, None, 0.00005, Verdict.REPRODUCED),
    ],
)
def test_the_verdict_follows_the_interval_then_the_authors_noise(value, bounds, rounding, verdict):
    result = Compared(number(value), number(0.1), value, 0.1)
    narrow = [Interval(value - 0.1, value - 0.1, "seeds")] if bounds else []
    intervals = [Interval(*bounds, "users"), *narrow] if bounds else []  # the wider one counts
    assert judged(result, intervals, rounding, 0.004).verdict == verdict


def test_rows_that_fit_equally_well_are_refused_until_one_is_chosen(tmp_path):
    (tmp_path / "a.csv").write_text("method,dataset,recall@10\nHSTU,ML-1M,0.33\n")
    (tmp_path / "b.csv").write_text(
        "method,dataset,reported,recall@10\nHSTU,ml-1m,last,0.33\nHSTU,ml-1m,best,0.34\nSASRec,ml-1m,best,0.3\n"
    )
    matching, results = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    assert "2 rows of b.csv fit (reported=last; reported=best): choose one with --where-b" in results[0].reason
    _, results = compared(tmp_path / "a.csv", tmp_path / "b.csv", where_b={"reported": "best"})
    assert results[0].reference == 0.34
    assert matching.only_second == ("SASRec on ml-1m",)


def test_settings_that_differ_are_named(table, tmp_path):
    path = table()  # 256 negatives
    (tmp_path / "p.csv").write_text("method,dataset,negatives,R@10,N@10\nSASRec,toy,512,20.10,-\n")
    mapping = tmp_path / "p.yaml"
    mapping.write_text(
        "{description: p, layout: wide, columns: {label: method, dataset: dataset, negatives: negatives}}"
    )
    runs = RunFolders()
    first, second = read_source(path, runs, CONFIG), read_source(tmp_path / "p.csv", runs, CONFIG, layout=str(mapping))
    matching = match_sources(first, second, {}, CONFIG)
    results = Comparer(matching.matches, runs).results()
    assert [result.first.of.metric for result in results] == ["recall@10"]
    text = write_comparison(matching, results, [], "", tmp_path / "comparison", 0.004)
    assert "Other settings: SASRec on toy: negatives 256 against 512." in text


def test_methods_are_matched_by_label_with_others_and_by_name_among_ours(table, tmp_path):
    path = table()  # our method hstu has the label "HSTU (with bias)"; HSTU elsewhere is another method
    other = edited(path, lambda row: row.update(method="hstu-hllm") if row["method"] == "hstu" else None)
    assert {key[0] for key in verdicts(compared(path, other)[1])} == {"sasrec"}
    (tmp_path / "p.csv").write_text("method,dataset,R@10\nSASRec (2018),toy,20\nHSTU,toy,20\n")
    matching, _ = compared(path, tmp_path / "p.csv", same={"SASRec": "SASRec (2018)"})
    assert [(m.first.of.method, m.second.name) for m in matching.matches] == [("sasrec", "SASRec (2018)")]
    assert matching.only_second == ("HSTU on toy",)
    (tmp_path / "q.csv").write_text("method,dataset,R@10\nHSTU,other,20\n")
    with pytest.raises(
        UserError, match=r"first has HSTU \(with bias\) on toy, SASRec on toy, the second HSTU on other"
    ):
        compared(path, tmp_path / "q.csv")


def test_a_source_without_names_must_be_told_which_it_is(table, tmp_path):
    (tmp_path / "result.json").write_text('{"test_result": {"recall@10": 0.2}}')
    with pytest.raises(UserError, match=r"does not say which method its numbers are of.*--where-b label=NAME"):
        compared(table(), tmp_path / "result.json")
    _, results = compared(
        table(), tmp_path / "result.json", where_b={"label": "SASRec", "dataset": "toy", "protocol": "hllm"}
    )
    assert [result.first.name for result in results] == ["SASRec"]


def test_our_table_finds_its_published_rows():
    reference = CONFIG.parent / "results"
    _, results = compared(
        reference / "reference/gpu/meta_ml1m.csv", reference / "published/meta_code_same_split_ml1m.csv"
    )
    frame = pd.read_csv(reference / "reference/gpu/meta_ml1m.csv").dropna(subset="published")
    expected = frame.groupby(["method", "parameters", "metric"]).agg({"value": "mean", "published": "mean"})
    pairs = sorted((result.value, result.reference) for result in results)
    np.testing.assert_allclose(pairs, sorted(zip(expected.value, expected.published, strict=True)))
    assert all(result.reason == "within the interval" for result in results)


def test_the_answer_comes_first_in_every_file(table, tmp_path):
    path = table()
    matching, results = compared(edited(path, set_to(0.15)), path)
    text = write_comparison(matching, results, [], "", tmp_path / "out" / "comparison", 0.004)
    first = "Does A reproduce B? No: 1 of 18 numbers deviates, 17 are reproduced"
    assert text.startswith(first)
    assert (tmp_path / "out" / "comparison.md").read_text().startswith(f"## {first}")
    assert f"<h1>{first}</h1>" in (tmp_path / "out" / "comparison.html").read_text()
    assert text.index("What deviates") < text.index("Every number")
    frame = pd.read_csv(tmp_path / "out" / "comparison.csv")
    np.testing.assert_allclose(frame.value - frame.counterpart_value, frame.difference, atol=1e-12)
    assert list(frame.query("verdict == 'deviates'").metric) == ["recall@10"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda row: None, 0),
        (set_to(0.15), 3),
        (lambda row: row.update(dataset_hash="e" * 64), 4),
    ],
)
def test_the_exit_status_says_whether_anything_deviates(table, tmp_path, monkeypatch, change, status):
    monkeypatch.chdir(CONFIG.parent)
    path = table()
    arguments = ["compare", str(edited(path, change)), str(path), "--out", str(tmp_path / "comparison")]
    assert CliRunner().invoke(app, arguments).exit_code == status
    assert (tmp_path / "comparison.csv").is_file()  # written whatever the verdict
