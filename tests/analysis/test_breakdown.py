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
    assert "| `training.global_batch` | 64 | 512 |" in text
    paper = made.plan("table7", "paper").blocks[0].rows[0].runs[0]
    assert differences(paper, paper) == []
    here = paper.model_copy(update={"seed": 7})
    assert differences(here, paper) == [("seed", 7, 2020)]
