"""Claims: contrasts against scipy's paired test, Holm over all of them, and what is told of each."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import simulated_ranks
from scipy import stats

from benchmark.analysis import rendering
from benchmark.analysis.claims import Claim, ClaimsFile, contrast_text, evaluate_claims, overall, write_claims
from benchmark.analysis.report_records import claims as claims_of_report
from benchmark.analysis.runs import load_run
from benchmark.analysis.views import MINUS
from benchmark.errors import UserError

KEY = ("text", "toy")


def claim(contrast, statement="text beats ids", metric="ndcg@10"):
    test = {"table": KEY[0], "dataset": KEY[1], "contrast": contrast}
    return Claim(claim=statement, paper="table 0", metric=metric, tests=[test])


def gain(method, seed=1):
    ranks = simulated_ranks(method, seed)
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)


@pytest.fixture
def rows(make_run):
    runs = {name: [load_run(make_run(name, seed)) for seed in (1, 2)] for name in ("hllm", "hstu", "sasrec")}
    return {KEY: {name.upper(): own for name, own in runs.items()}}


def test_a_contrast_of_two_is_the_paired_t_test(make_run):
    single = {KEY: {name: [load_run(make_run(name))] for name in ("hllm", "hstu")}}
    (found,) = evaluate_claims([claim({"hllm": 1, "hstu": -1})], single)
    expected = stats.ttest_rel(gain("hllm"), gain("hstu"))
    interval = expected.confidence_interval()
    assert found.estimate == pytest.approx((gain("hllm") - gain("hstu")).mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.p_holm, found.verdict, found.seeds) == (pytest.approx(expected.pvalue), "confirmed over users", 1)
    assert np.isnan(found.p_seeds)


def test_rows_of_the_same_ranks_show_nothing(rows):
    same = {KEY: {**rows[KEY], "copy": rows[KEY]["HLLM"]}}
    (found,) = evaluate_claims([claim({"HLLM": 1, "copy": -1})], same)
    assert (found.estimate, found.low, found.high, found.p_holm, found.verdict) == (0, 0, 0, 1, "not shown")


def test_a_contrast_weighs_users_means_over_seeds(rows):
    (found,) = evaluate_claims([claim({"HLLM": 1, "HSTU": -2, "SASREC": 0.5})], rows)
    mean = {name: (gain(name, 1) + gain(name, 2)) / 2 for name in ("hllm", "hstu", "sasrec")}
    values = mean["hllm"] - 2 * mean["hstu"] + 0.5 * mean["sasrec"]
    assert found.estimate == pytest.approx(values.mean())
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found.seeds == 2


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 3), (1, 0.5)])
def test_a_contrast_over_seeds_is_welchs_test(rows, first, second):
    ours, theirs = (np.array([gain(name, seed).mean() for seed in (1, 2)]) for name in ("hllm", "hstu"))
    (found,) = evaluate_claims([claim({"HLLM": first, "HSTU": -second, "SASREC": 0})], rows)
    assert found.p_seeds == pytest.approx(stats.ttest_ind(first * ours, second * theirs, equal_var=False).pvalue)


def test_verdicts_follow_the_corrected_p_value_and_the_sign(rows):
    claims = [
        claim({"HLLM": 1, "HSTU": -1}, "true"),
        claim({"HSTU": 1, "HLLM": -1}, "false"),
        claim({"SASREC": 1, "HSTU": -1.09}, "unclear"),
    ]
    results = evaluate_claims(claims, rows)
    assert [result.verdict.split()[0] for result in results] == ["confirmed", "contradicted", "not"]
    raw = [result.p_value for result in results]
    assert results[0].p_holm == pytest.approx(3 * raw[0])
    assert overall([results[2].verdict]) == "not confirmed"
    assert overall([results[0].verdict, results[2].verdict]) == "not confirmed: 1 of 2 tests"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_verdict_says_whether_the_seeds_bear_it(rows, sign):
    word = "confirmed" if sign > 0 else "contradicted"
    (found,) = evaluate_claims([claim({"HLLM": sign, "HSTU": -sign})], rows)
    sure, unsure, single = (replace(found, p_seeds=p) for p in (0.049, 0.05, np.nan))
    assert [one.verdict for one in (sure, unsure, single)] == [word, f"{word} over users", f"{word} over users"]
    assert overall([sure.verdict]) == overall([sure.verdict, sure.verdict]) == word
    assert overall([sure.verdict, unsure.verdict]) == f"{word} over users"
    assert replace(sure, p_holm=0.05).verdict == "not shown"


def test_pages_say_every_claim_and_why_one_cannot_be_tested(rows, tmp_path):
    claims = [claim({"HLLM": 1, "HSTU": -0.95}), Claim(claim="it pays", paper="figure 9", not_testable="no money here")]
    shown = write_claims(claims, evaluate_claims(claims, rows), tmp_path)
    page = (tmp_path / "claims.md").read_text()
    for text in ("text beats ids (paper, table 0): confirmed", f"HLLM {MINUS} 0.95 HSTU", "it pays", "no money here"):
        assert text in page
        assert text in shown
    assert (tmp_path / "claims.csv").read_text().count("\n") == 3
    view = claims_of_report(tmp_path / "claims.csv")
    shown_again = rendering.markdown([view])
    assert page == shown_again  # the report reads the same from the file
    assert "text beats ids" in (tmp_path / "claims.html").read_text()


def test_what_cannot_be_weighed_is_told(rows, make_run, tmp_path):
    with pytest.raises(UserError, match=r"table text has no row 'HLM' on toy; it has: HLLM, HSTU, SASREC"):
        evaluate_claims([claim({"HLM": 1})], rows)
    with pytest.raises(UserError, match="has no block on data set toy"):
        evaluate_claims([claim({"HLLM": 1})], {})
    other = load_run(make_run("popularity", record={"dataset_hash": "e" * 64}))
    with pytest.raises(UserError, match="cannot be compared"):
        evaluate_claims([claim({"HLLM": 1, "other": -1})], {KEY: {**rows[KEY], "other": [other]}})
    file = tmp_path / "claims.yaml"
    file.write_text("claims: [{claim: c, paper: p}]")
    with pytest.raises(UserError, match="give either tests or not_testable"):
        ClaimsFile.read(file)
    file.write_text("claims: [{claim: c, paper: p, metric: auc, not_testable: x}]")
    with pytest.raises(UserError, match="metric 'auc' is not known"):
        ClaimsFile.read(file)


def test_contrast_text():
    assert contrast_text({"A": 1, "B": -1, "C": 0.5, "D": -2}) == f"A {MINUS} B + 0.5 C {MINUS} 2 D"
