"""The leaderboard of finished and submitted runs, and the checks before a run is taken."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.analysis.leaderboard import boards, make_leaderboard
from benchmark.analysis.runs import load_run
from benchmark.analysis.significance import compare, outcomes
from benchmark.analysis.submission import add_submission, check_submission
from benchmark.errors import UserError
from benchmark.evaluation.metrics import DEFAULT_METRICS, metric_mean, write_metrics
from benchmark.evaluation.shared_cases import keep_ranks
from benchmark.experiments import load_run_file

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "laptop" / "runs"


def test_one_row_a_method_by_ndcg_and_how_far_it_is_behind(make_run, tmp_path):
    for method, seed in (("hstu", 1), ("hstu", 2), ("hllm", 1), ("popularity", 1)):
        make_run(method, seed=seed)
    text = make_leaderboard(tmp_path)
    frame = pd.read_csv(tmp_path / "leaderboard.csv")
    assert list(frame.label) == ["HLLM", "HSTU", "Popularity"]
    assert list(frame.place) == [1, 2, 3]
    assert list(frame.seeds) == [1, 2, 1]
    ranks = {seed: load_run(tmp_path / "runs" / f"toy-hstu-seed{seed}").ranks for seed in (1, 2)}
    assert frame["recall@50"][1] == pytest.approx(np.mean([metric_mean(one, "recall@50") for one in ranks.values()]))
    best = load_run(tmp_path / "runs" / "toy-hllm-seed1").ranks
    expected = compare(outcomes(np.stack(list(ranks.values())), DEFAULT_METRICS), outcomes(best, DEFAULT_METRICS))
    index = DEFAULT_METRICS.index("ndcg@10")
    assert frame.behind_first[1] == pytest.approx(expected.difference[index])
    assert frame.behind_first_ci_low[1] == pytest.approx(expected.low[index])
    assert np.isnan(frame.behind_first[0])
    for name in ("leaderboard.html", "leaderboard.md"):
        assert "Leaderboard, preset" in (tmp_path / name).read_text()
    assert "toy, protocol hllm, split ffffffffffff (600 users)" in text


def test_other_splits_are_other_boards(make_run, tmp_path):
    make_run("hstu")
    make_run("hllm", record={"dataset_hash": "e" * 64})
    make_run("sasrec", settings={"protocol": "meta"})
    assert len(boards(tmp_path)) == 3
    make_leaderboard(tmp_path)
    assert list(pd.read_csv(tmp_path / "leaderboard.csv").place) == [1, 1, 1]


def test_settings_of_one_name_with_most_seeds_are_shown_and_not_the_best(make_run, tmp_path):
    make_run("hstu", seed=1)
    make_run("hstu", seed=2)
    better = make_run("hstu", seed=3, settings={"model": {"width": 512}}, ranks=np.ones(600))
    [board] = boards(tmp_path)
    assert [run.seed for run in board.standings[0].runs] == [1, 2]
    assert board.standings[0].others == 1
    assert "HSTU on toy has 1 more group(s) of settings" in make_leaderboard(tmp_path)
    shutil.rmtree(better)
    assert boards(tmp_path)[0].standings[0].others == 0


def test_seeds_of_a_row_that_starts_from_another_are_one_group(make_run, tmp_path):
    for seed in (1, 2, 3):
        source = make_run("sasrec", seed=seed, settings={"model": {"width": 64 if seed < 3 else 128}})
        make_run("hllm", seed=seed, settings={"starts_from": {"run": source.name, "parts": ["user_llm"]}})
    row = next(row for row in boards(tmp_path)[0].standings if row.runs[0].method == "hllm")
    assert [run.seed for run in row.runs] == [1, 2]
    assert row.others == 1  # the third starts from other settings
    shutil.rmtree(source)
    row = next(row for row in boards(tmp_path)[0].standings if row.runs[0].method == "hllm")
    assert ([run.seed for run in row.runs], row.others) == ([1, 2], 1)  # whatever the missing one was


def test_runs_in_another_precision_are_other_settings(make_run, tmp_path):
    for seed, precision in ((1, "bf16"), (2, "bf16"), (1, "fp32")):
        folder = make_run("hstu", seed=seed, settings={"execution": {"precision": precision, "threads": seed}})
        folder.rename(folder.with_name(f"{folder.name}-{precision}"))
    [standing] = boards(tmp_path)[0].standings
    assert [run.run_id for run in standing.runs] == ["toy-hstu-seed1", "toy-hstu-seed2"]
    assert standing.others == 1


def test_runs_that_hold_other_users_under_the_same_hash_are_refused(make_run, tmp_path):
    make_run("hstu")
    make_run("hllm", users=[f"x{i}" for i in range(600)])
    with pytest.raises(UserError, match="different users or targets"):
        make_leaderboard(tmp_path)
    with pytest.raises(UserError, match="has no finished run"):
        make_leaderboard(tmp_path / "nothing")


@pytest.fixture
def submission(tmp_path):
    """A copy of a run that this project measured."""
    source = next(iter(sorted(REFERENCE.glob("ml-100k-hllm-sasrec-*"))))
    return Path(shutil.copytree(source, tmp_path / source.name))


def changed(folder, name, value):
    record = json.loads((folder / "provenance.json").read_text())
    if value is None:
        del record[name]
    else:
        record[name] = value
    (folder / "provenance.json").write_text(json.dumps(record))


def with_ranks(folder, change):
    table = pq.read_table(folder / "ranks.parquet")
    columns = {name: table[name].to_numpy(zero_copy_only=False).copy() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    write_metrics(folder / "metrics.csv", columns["rank"])


def test_a_good_run_is_taken_once_and_whole(submission, tmp_path):
    checked = check_submission(submission, tmp_path / "data")
    assert checked.failed == ()
    assert "is not prepared here" in checked.unchecked[0]
    for _ in range(2):
        target = add_submission(submission, checked.run_id, tmp_path / "results")
    assert sorted(path.name for path in target.iterdir()) == [
        "metrics.csv", "provenance.json", "ranks.parquet", "run.yaml", "training.csv",
    ]  # fmt: skip
    assert [board.standings[0].source for board in boards(tmp_path / "results")] == ["submitted"]
    changed(submission, "hours", 99.0)
    with pytest.raises(UserError, match="another submission of the same run"):
        add_submission(submission, checked.run_id, tmp_path / "results")


def test_a_kept_run_is_taken_with_what_it_shares(submission, tmp_path):
    kept = tmp_path / "kept" / "runs" / submission.name
    shutil.copytree(submission, kept)
    keep_ranks(submission / "ranks.parquet", kept / "ranks.parquet", "toy")
    target = add_submission(kept, check_submission(kept, tmp_path / "data").run_id, tmp_path / "results")
    assert pq.read_table(target / "ranks.parquet").equals(pq.read_table(submission / "ranks.parquet"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("git_revision", "unknown", "git_revision 'unknown' is no commit"),
        ("git_revision", "0" * 40 + "+changes", "is no commit"),
        ("packages", None, "provenance.json lacks packages"),
        ("seed", 1, "has seed 1 and run.yaml 2020"),
        ("dataset_hash", "abc", "is no SHA-256"),
        ("hours", -1.0, "hours is -1.0, which cannot be"),
    ],
)
def test_a_run_without_its_origin_fails(submission, tmp_path, name, value, message):
    changed(submission, name, value)
    assert any(message in sentence for sentence in check_submission(submission, tmp_path).failed)


@pytest.mark.parametrize(
    ("setting", "value"),
    [(" learning_rate", "0.123"), (" precision", "bf16"), ("method", "hstu"), ("id", "ml-100k-hllm-sasrec-0123456789")],
)
def test_an_id_that_is_not_of_the_runs_own_settings_fails(submission, tmp_path, setting, value):
    text = (submission / "run.yaml").read_text()
    (submission / "run.yaml").write_text(re.sub(rf"^( *{setting}: ).*$", rf"\g<1>{value}", text, flags=re.MULTILINE))
    [sentence] = check_submission(submission, tmp_path).failed
    assert re.search(r"^run.yaml: id \S+ is not \S+, as its own settings give; put back the settings", sentence)


def test_every_kept_run_has_the_id_of_its_settings():
    paths = sorted(REFERENCE.parents[1].glob("**/run.yaml"))
    assert len(paths) > 100
    for path in paths:
        run = load_run_file(path)
        assert run.id == path.parent.name
        assert run.id.endswith(f"-seed{run.seed}-{run.identity()}"), path


def first_places(columns):
    columns["rank"][:] = 1.0
    columns["ties"][:] = 0


def a_third(columns):
    columns["rank"][4] = 7.3


def uneven_ties(columns):
    columns["rank"][5], columns["ties"][5] = 10.5, 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_places, "100.0 % of the users have their target at rank 1 .* no recommender does that"),
        (a_third, r"row 5: rank 7\.3 is no multiple of a half"),
        (uneven_ties, r"row 6: rank 10\.5 does not fit 2 ties"),
        (lambda columns: columns["history_length"].__setitem__(0, -1), "row 1: history_length is negative"),
    ],
)
def test_ranks_that_cannot_be_fail(submission, tmp_path, change, message):
    with_ranks(submission, change)
    assert any(re.search(message, sentence) for sentence in check_submission(submission, tmp_path).failed)


def test_metrics_that_do_not_follow_and_missing_files_are_refused(submission, tmp_path):
    text = (submission / "metrics.csv").read_text()
    (submission / "metrics.csv").write_text(text.replace("mrr,0.0", "mrr,0.1"))
    with pytest.raises(UserError, match="the ranks beside it give"):
        check_submission(submission, tmp_path)
    (submission / "training.csv").unlink()
    with pytest.raises(UserError, match=r"lacks training\.csv; a submission has"):
        check_submission(submission, tmp_path)
