"""A finished table read back: nothing is lost, and nothing that its runs do not bear out is believed."""

import shutil

import numpy as np
import pytest
from report_material import ROOT, configuration, edit_csv, evaluated, write_report_folder

from benchmark.analysis import rendering, views
from benchmark.analysis.report_inputs import read_table, saved_tables
from benchmark.analysis.tables import write_table
from benchmark.errors import UserError


def shown(result):
    return rendering.markdown([views.methods_view(result), views.pairs_view(result)])


def test_a_table_read_back_shows_what_it_showed_when_it_was_made(tmp_path):
    made = evaluated(tmp_path, name="mine")
    write_table(made, tmp_path)
    read = read_table(tmp_path, "mine", configuration(), "laptop")
    assert shown(read.result) == shown(made)
    assert [row.row.label for row in read.result.blocks[0].rows] == [row.row.label for row in made.blocks[0].rows]
    assert [len(block.rows) for block in read.result.blocks] == [4, 1]
    assert read.details["toy-hllm-seed1"].curve["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("preset", "name"), [("laptop", "table7"), ("gpu", "meta_ml1m")])
def test_the_kept_tables_read_back_as_their_own_markdown(preset, name):
    folder = ROOT / "results" / "reference" / preset
    read = read_table(folder, name, configuration(), preset)
    assert shown(read.result) == (folder / f"{name}.md").read_text()


def test_the_label_of_a_row_with_the_references_values_is_the_one_it_ran_under(tmp_path):
    made = evaluated(tmp_path, seeds=(1,), name="mine")
    same = tmp_path / "runs" / "toy-hllm-seed1" / "ranks.parquet"
    for name in ("ranks.parquet", "metrics.csv"):
        shutil.copy(tmp_path / "runs" / "toy-hstu-seed1" / name, same.with_name(name))
    made = evaluated_again(made, tmp_path)
    write_table(made, tmp_path)
    rows = read_table(tmp_path, "mine", configuration(), "laptop").result.blocks[0].rows
    assert [row.row.label for row in rows] == [row.row.label for row in made.blocks[0].rows]
    assert [row.comparison is None for row in rows] == [row.comparison is None for row in made.blocks[0].rows]


def evaluated_again(made, root):
    from dataclasses import replace

    from benchmark.analysis.runs import load_run
    from benchmark.analysis.tables import evaluate_table

    def again(block):
        rows = (
            replace(row, runs=tuple(load_run(root / "runs" / run.run_id) for run in row.runs)) for row in block.rows
        )
        return replace(block, rows=tuple(rows))

    return evaluate_table(made.spec, [again(block.block) for block in made.blocks])


def test_what_does_not_agree_with_the_ranks_is_refused(tmp_path):
    folder = write_report_folder(tmp_path)

    def larger(row):
        if row["metric"] == "ndcg@10" and row["run_id"] == "toy-sasrec-seed2":
            row["value"] = str(float(row["value"]) + 1e-6)

    edit_csv(folder / "mine.csv", larger)
    with pytest.raises(UserError, match=r"mine\.csv: ndcg@10 of toy-sasrec-seed2 is .*, and its ranks give .*make the"):
        read_table(folder, "mine", configuration(), "laptop")


def test_comparisons_that_are_missing_or_of_other_values_are_refused(tmp_path):
    folder = write_report_folder(tmp_path)

    def other(row):
        row["reference_value"] = row["value"]

    pairs = (folder / "mine_pairs.csv").read_text()
    edit_csv(folder / "mine_pairs.csv", other)
    with pytest.raises(UserError, match="values of the rows on toy are not those of its pairs"):
        read_table(folder, "mine", configuration(), "laptop")
    lines = pairs.splitlines()
    (folder / "mine_pairs.csv").write_text(
        "\n".join([lines[0], *(line for line in lines if ",SASRec," in line)]) + "\n"
    )
    with pytest.raises(UserError, match=r"has 4 rows on toy, and its pairs are of 2; make the table again"):
        read_table(folder, "mine", configuration(), "laptop")
    (folder / "mine_pairs.csv").unlink()
    with pytest.raises(UserError, match=r"mine_pairs\.csv is missing or not text; make the table again"):
        read_table(folder, "mine", configuration(), "laptop")


def test_tables_are_found_by_their_content_and_in_the_order_people_count(tmp_path):
    folder = write_report_folder(tmp_path)
    for name in ("table10", "table9"):
        shutil.copy(folder / "mine.csv", folder / f"{name}.csv")
        edit_csv(folder / f"{name}.csv", lambda row, name=name: row.update(table=name))
    shutil.copy(folder / "mine.csv", folder / "copy.csv")  # says that it is another table
    (folder / "leaderboard.csv").write_text("method,value\nHLLM,1\n")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "binary.csv").write_bytes(np.arange(200, dtype=np.uint8).tobytes())
    assert saved_tables(folder) == ["mine", "table9", "table10"]
