"""Reading finished runs, and what is said of those that are missing, garbled or of another split."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmark.analysis.runs import check_comparable, load_run
from benchmark.errors import UserError


def test_a_run_is_read_back(make_run):
    ranks = np.array([1.0, 2.5, 40.0])
    run = load_run(make_run("sasrec", seed=3, ranks=ranks))
    assert run.ranks.tolist() == ranks.tolist()
    assert (run.run_id, run.label, run.method, run.seed) == ("toy-sasrec-seed3", "SASRec", "sasrec", 3)
    assert (run.negatives, run.global_batch, run.sequence_length) == (256, 64, 50)
    assert (run.parameters, run.epochs, run.hours, run.device) == (1_234_567, 7, 0.25, "a CPU")
    assert (run.dataset, run.protocol, run.dataset_hash) == ("toy", "hllm", "f" * 64)
    assert run.users == 3


def test_settings_of_the_trainer_are_left_out_where_it_trained_nothing(make_run):
    popularity = load_run(make_run("popularity"))
    assert (popularity.negatives, popularity.global_batch, popularity.sequence_length) == (None, None, None)
    untrained = load_run(make_run("hllm", settings={"training": None}))
    assert (untrained.negatives, untrained.global_batch) == (None, None)
    folder = make_run("sasrec")
    record = json.loads((folder / "provenance.json").read_text())
    del record["steps"]  # a method that trains itself has no steps of the trainer
    (folder / "provenance.json").write_text(json.dumps(record))
    alone = load_run(folder)
    assert (alone.negatives, alone.global_batch, alone.sequence_length) == (None, None, 50)


@pytest.mark.parametrize("name", ["run.yaml", "provenance.json", "metrics.csv", "ranks.parquet"])
def test_a_missing_file_is_named(make_run, name):
    folder = make_run()
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder.name} is no finished run: it lacks {name}"):
        load_run(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "a: [", "run.yaml is not valid YAML"),
        ("run.yaml", "- a", "run.yaml must hold a mapping"),
        ("run.yaml", "id: a\nmethod: b\n", "run.yaml: label is missing"),
        ("provenance.json", "{", "provenance.json is not valid JSON"),
        ("provenance.json", "[]", "provenance.json must hold an object"),
        ("provenance.json", "{}", "provenance.json: dataset_hash is missing"),
        ("provenance.json", '{"hours": "long", "dataset_hash": "f"}', "hours is 'long', and must be of type float"),
        ("ranks.parquet", "PAR1", "ranks.parquet is no complete Parquet file"),
        ("metrics.csv", "metric,value,users\nrecall@x,0.5,600\n", "recall@x"),
    ],
)
def test_a_garbled_file_is_named(make_run, name, text, message):
    folder = make_run()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_run(folder)


def test_a_wrong_type_in_run_yaml_is_named(make_run):
    with pytest.raises(UserError, match="seed is 'one', and must be of type int"):
        load_run(make_run(settings={"seed": "one"}))


def test_metrics_that_do_not_follow_from_the_ranks_are_refused(make_run):
    folder = make_run()
    lines = (folder / "metrics.csv").read_text().splitlines()
    name, value, users = lines[2].split(",")
    (folder / "metrics.csv").write_text("\n".join([*lines[:2], f"{name},{float(value) + 0.001},{users}", *lines[3:]]))
    with pytest.raises(UserError, match=r"recall@10 is .*the ranks beside it give"):
        load_run(folder)
    (folder / "metrics.csv").write_text("\n".join(lines).replace(",600", ",599"))
    with pytest.raises(UserError, match=r"over 599 users and ranks\.parquet has 600"):
        load_run(folder)


def test_runs_on_different_splits_are_refused(make_run):
    first, second = load_run(make_run("hstu")), load_run(make_run("sasrec", record={"dataset_hash": "e" * 64}))
    check_comparable([first, first])
    with pytest.raises(UserError, match="toy-hstu-seed1 and toy-sasrec-seed1 cannot be compared: the hash"):
        check_comparable([first, second])


def test_runs_of_different_users_or_targets_are_refused(make_run):
    ranks = np.array([1.0, 2.0, 3.0])
    first = load_run(make_run("hstu", ranks=ranks, users=["a", "bc", "d"]))
    others = load_run(make_run("sasrec", ranks=ranks, users=["ab", "c", "d"]))
    with pytest.raises(UserError, match="different users or targets"):
        check_comparable([first, others])
    folder = make_run("hllm", ranks=ranks, users=["a", "bc", "d"])
    check_comparable([first, load_run(folder)])
    table = pq.read_table(folder / "ranks.parquet")
    changed = table.set_column(1, "target_item", pa.array(["i0", "i1", "i7"]))
    pq.write_table(changed, folder / "ranks.parquet")
    with pytest.raises(UserError, match="different users or targets"):
        check_comparable([first, load_run(folder)])


def test_row_groups_and_string_width_do_not_matter(make_run):
    folder = make_run()
    before = load_run(folder)
    table = pq.read_table(folder / "ranks.parquet")
    wide = table.set_column(0, "user_id", table["user_id"].cast(pa.large_string()))
    pq.write_table(wide, folder / "ranks.parquet", row_group_size=77)
    assert load_run(folder).cases_sha256 == before.cases_sha256


def test_keys_that_are_not_read_do_no_harm(make_run):
    folder = make_run(settings={"execution": {"device": "cpu"}})
    assert "execution" in yaml.safe_load((folder / "run.yaml").read_text())
    load_run(folder)
