"""Reading results of others: every published table against pandas, RecBole's and eSASRec's files, own mappings."""

import math
from pathlib import Path

import pandas as pd
import pytest

from benchmark.analysis.compare_formats import metric_name, read_format, read_rows, recognised
from benchmark.analysis.compare_sources import RunFolders, read_source
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG, PUBLISHED = ROOT / "config", ROOT / "results" / "published"
ESASREC = """comment,cls,dataset_name,val_scheme,fit_time,recall@10,hit_rate@10,ndcg@10,ndcg@10_debiased_0,model_params
sasrec,SASRecModel,ml_20m,leave_one_out,407,0.3127,0.3127,0.1829,0.004,"{""cls"": ""SASRecModel"", ""n_blocks"": 4}"
ligr,SASRecModel,ml_20m,time_split,63,0.0469,0.2974,0.0650,0.016,"{""cls"": ""SASRecModel"", ""n_blocks"": 4}"
"""
RECBOLE = {
    "printed": "{'best_valid_score': 0.08, 'best_valid_result': OrderedDict([('recall@10', 0.25), ('mrr@10', 0.08)]), "
    "'test_result': OrderedDict([('recall@10', 0.2216), ('mrr@10', np.float64(0.0705)), ('hit@10', 0.2216)])}",
    "json": '{"model": "SASRec", "dataset": "ml-100k", "best_valid_result": {"recall@10": 0.25},\n'
    ' "test_result": {"hit@10": 0.2216, "recall@10": 0.2216, "mrr@10": 7.05e-2}}',
    "log": "18 May 13:54 INFO  \x1b[1;33mbest valid \x1b[0m: OrderedDict([('recall@10', 0.25), ('mrr@10', 0.08)])\n"
    "18 May 13:54 INFO  \x1b[1;33mtest result\x1b[0m: OrderedDict([('recall@10', 0.2216), ('mrr@10', 0.0705)])\n",
}


def source(path, **options):
    return read_source(path, RunFolders(), CONFIG, **options)


def numbers(path, **options):
    return {(entry.name, entry.of.metric): entry.value for entry in source(path, **options).entries}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("recall@10", "recall@10"), ("R@50", "recall@50"), ("HR@5", "recall@5"), ("Hit_Rate@10", "recall@10"),
        ("N@200", "ndcg@200"), ("NDCG_10", "ndcg@10"), ("MRR", "mrr"), ("mrr@10", "mrr@10"), ("AUC", "auc"),
        ("negatives", None), ("n", None), ("recall", None), ("recall@0", None), ("ndcg@10_debiased_0", None),
    ],
)  # fmt: skip
def test_metrics_are_recognised_as_people_write_them(text, name):
    assert metric_name(text) == name


TABLES = sorted(path for path in PUBLISHED.glob("*.csv") if path.stem != "training_cost")  # it has no metrics


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_published_number_is_read_as_pandas_reads_it(path):
    frame = pd.read_csv(path)
    counts = ["users", "items", "interactions"] if "datasets" in path.stem else []
    columns = counts or [name for name in frame.columns if name.startswith(("recall", "ndcg", "auc"))]
    scale = 1 if counts or "auc" in columns else 100
    found = sorted((entry.of.metric, entry.value) for entry in source(path).entries)
    cells = [(name, value / scale) for name in columns for value in frame[name].dropna()]
    assert [name for name, _ in found] == [name for name, _ in sorted(cells)]
    assert [value for _, value in found] == pytest.approx([value for _, value in sorted(cells)], rel=1e-12)
    assert all(entry.of.label and entry.of.dataset and len(entry.values) == 1 for entry in source(path).entries)


def test_rows_that_the_paper_quotes_are_of_another_protocol():
    protocols = {(e.name, e.of.dataset): e.of.protocol for e in source(PUBLISHED / "table7_comparison.csv").entries}
    assert protocols["SASRec (2018)", "Books"] == "quoted"
    assert protocols["SASRec", "Books"] == protocols["HLLM-1B", "Pixel8M"] == "hllm"
    assert {entry.of.protocol for entry in source(PUBLISHED / "hstu_repository.csv").entries} == {"meta"}


def test_printed_numbers_are_as_precise_as_their_column():
    entries = source(PUBLISHED / "table7_comparison.csv").entries
    rounding = {(entry.of.dataset, entry.of.metric): entry.rounding for entry in entries}
    assert rounding["Books", "recall@10"] == pytest.approx(0.5e-4)  # percentages with two decimals
    assert rounding["Pixel8M", "recall@10"] == pytest.approx(0.5e-5)


@pytest.mark.parametrize("kind", RECBOLE)
def test_recboles_test_result_is_read(tmp_path, kind):
    path = tmp_path / f"result.{kind}"
    path.write_text(RECBOLE[kind])
    found = numbers(path)
    assert {metric: value for (_, metric), value in found.items()} == {"recall@10": 0.2216, "mrr@10": 0.0705}
    if kind == "json":
        entry = source(path).entries[0]
        assert (entry.of.label, entry.of.dataset, entry.of.protocol) == ("SASRec", "ml-100k", "recbole")


def test_what_the_format_assumes_gives_way_to_what_the_user_says(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(RECBOLE["json"])
    assert source(path, where={"protocol": "hllm"}).entries[0].of.protocol == "hllm"
    with pytest.raises(UserError, match="has no number with dataset=ml-1m"):
        source(path, where={"dataset": "ml-1m"})  # stated by the file itself


def test_text_that_looks_like_code_is_not_run(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("{'test_result': __import__('os').system('touch ran')}")
    with pytest.raises(UserError, match="no metrics follow its test result"):
        source(path)
    path.write_text(RECBOLE["log"] * 2)
    with pytest.raises(UserError, match="has 2 test results and must have one"):
        source(path)


def test_esasrecs_reports_are_read(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text(ESASREC)
    entries = {(e.name, e.of.metric): e for e in source(path, layout="esasrec").entries}
    assert {key: entry.value for key, entry in entries.items()} == {
        ("sasrec", "recall@10"): 0.3127, ("sasrec", "ndcg@10"): 0.1829, ("ligr", "recall@10"): 0.0469,
        ("ligr", "ndcg@10"): 0.0650,
    }  # fmt: skip
    assert entries["sasrec", "ndcg@10"].of.protocol == ""
    assert entries["ligr", "ndcg@10"].of.protocol == "time split"  # several targets a user


def test_a_mapping_of_ones_own(tmp_path):
    table, mapping = tmp_path / "mine.csv", tmp_path / "mine.yaml"
    table.write_text("Modell;Satz;Treffer (10);Bemerkung\nSASRec;ML-1M;29.6;x\n")
    mapping.write_text(
        "{description: mine, layout: wide, delimiter: ';', unit: percent, columns: {label: Modell, dataset: Satz}, "
        "metrics: {'Treffer (10)': recall@10}, constants: {protocol: meta}}"
    )
    entry = source(table, layout=str(mapping)).entries[0]
    assert (entry.of.label, entry.of.protocol, entry.of.details) == ("SASRec", "meta", (("Bemerkung", "x"),))
    assert entry.value == pytest.approx(0.296)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no column is a metric"),
        ("a.csv", "method,speed\nA,3\n", "no column is a metric"),
        ("a.csv", "method,R@10,HR@10\nA,0.1,0.1\n", "columns R@10 and HR@10 both mean recall@10"),
        ("a.csv", "method,R@10\n", "has no row"),
        ("a.csv", "method,R@10\nA,0.1,7\n", "line 2 has more entries"),
        ("a.csv", "method,R@10\nA,much\n", "line 2: recall@10 is 'much', and must be a number"),
        ("a.csv", "method,R@10\nA,-0.1\n", "neither a fraction nor a percentage"),
        ("a.csv", "method,R@10\nA,0.1\nA,0.2\n", "line 2 and .*line 3 are both A, recall@10"),
        ("a.csv", 'method,R@10\n"' + "A" * 200_000, "is no CSV after line 1: field larger than field limit"),
        ("a.txt", "nothing", "has 0 test results"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        source(tmp_path / name)
    assert name in str(caught.value)


def test_the_ready_formats_are_valid_and_described():
    for path in sorted((CONFIG / "formats").glob("*.yaml")):
        assert read_format(path.stem, Path("any.csv"), CONFIG / "formats").description
    assert recognised(ROOT / "results" / "reference" / "laptop" / "table7.csv") == "results"
    layout = read_format("published", PUBLISHED / "table1_datasets.csv", CONFIG / "formats")
    assert layout.unit == "count"
    assert not math.isnan(float(read_rows(PUBLISHED / "table1_datasets.csv", layout)[0].numbers["users"]))
