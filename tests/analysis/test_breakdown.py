"""Strata of targets, and the text of deviations, on figures small enough to check by eye."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmark.analysis.breakdown import means, strata
from benchmark.analysis.deviations import deviations, differences, reason
from benchmark.evaluation.metrics import RankTable
from benchmark.experiments import Configuration

ROOT = Path(__file__).parent.parent.parent


def ranks(rank, frequency):
    count = len(rank)
    ids = pa.array([f"u{n}" for n in range(count)])
    zeros = np.zeros(count, np.int32)
    return RankTable(ids, ids, np.array(rank, float), zeros, zeros, np.array(frequency, np.int32), zeros == 0)


def test_strata_hold_every_user_once_and_their_means_are_those_of_their_users():
    table = ranks([1, 20, 2, 20, 20, 3, 20], [0, 0, 1, 5, 6, 90, 100])
    groups = strata(table.target_frequency)
    assert [(g.name, g.size) for g in groups] == [
        ("cold, no event", 2), ("tail, 1 to 5", 2), ("middle, 6 to 90", 2), ("head, over 90", 1)
    ]  # fmt: skip
    assert (np.stack([g.users for g in groups]).sum(0) == 1).all()
    assert [value[0] for value in means(table, groups)] == [0.5, 0.5, 0.5, 0.0]
    assert means(table, groups)[1][1] == 1 / np.log2(3) / 2


def test_a_stratum_without_users_has_no_mean():
    table = ranks([1, 2], [4, 4])
    groups = strata(table.target_frequency)
    assert groups[0].size == 0
    assert np.isnan(means(table, groups)[0]).all()


def test_a_reason_is_that_of_the_setting_or_of_what_holds_it():
    choices = {"training": "small", "training.optimizer": "tuned"}
    assert reason("training.optimizer.learning_rate", choices) == "tuned"
    assert reason("training.epochs", choices) == "small"
    assert reason("model.width", choices) == "not said"


def test_every_deviation_of_the_laptop_preset_has_a_reason():
    made = Configuration(ROOT / "config")
    plans = [made.plan(name, "laptop") for name in made.tables("laptop")]
    text = deviations(made, plans)
    assert "not said" not in text
    longest = max(section.count("\n") for section in text.split("\n## ")[:-1])  # but for the methods
    assert longest < 60, "a table's deviations fit one screen"
    paper = made.plan("table7", "paper").blocks[0].rows[0].runs[0]
    assert differences(paper, paper) == []
    here = paper.model_copy(update={"seed": 7})
    assert differences(here, paper) == [("seed", 7, 2020)]


def test_what_holds_for_every_row_is_told_once_and_settings_by_their_reasons(tmp_path):
    made = Configuration(ROOT / "config")
    (section,) = deviations(made, [made.plan("table8", "laptop")]).split("\n## ")[1:-1]
    every, single = section.split("Other settings in single rows:")
    assert "Without a counterpart on preset paper: *HLLM, first 10 events alone*." in every
    assert "*HSTU* beside *HSTU-1B*" in every
    assert "| dataset ml-100k (pixel8m) |" in every
    assert "global_batch 64 (512)" in every
    assert "global_batch" not in single
    assert "| HSTU | `model`: layers 2 (22), heads 2 (32), width 64 (2048), dropout 0.2 (0.1) |" in single
    assert "| HLLM | `model.item_model` and `model.user_model`: from scratch (hub TinyLlama/" in single


def test_what_holds_for_all_rows_of_a_method_is_told_once():
    made = Configuration(ROOT / "config")
    (section,) = deviations(made, [made.plan("figure3", "laptop")]).split("\n## ")[1:-1]
    assert section.count("num_hidden_layers 2 (22)") == 1
    assert "| HSTU, 50 % of users | `training`: epochs 120 (50), patience 10 (5) |" in section
    assert "Other settings in *HSTU, 12.5 % of users*, *HSTU, 50 % of users*, *HSTU, all of users*:" in section


def test_on_preset_paper_the_choices_are_told():
    made = Configuration(ROOT / "config")
    text = deviations(made, [made.plan(name, "paper") for name in ("table7", "table9", "scaling_item")])
    assert text.count("stops a collapsed run") == 1  # of every table alike
    assert "All as in their sources: *HSTU*, *SASRec*, *HLLM-1B*." in text
    assert "`training`: all | No script of this table was released" in text
    assert "Chosen here in *BERT-Base*, *BERT-Large*:" in text
