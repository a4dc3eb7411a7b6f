"""Table 1 and figure 5 from prepared data sets, against counts and lengths by hand."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from benchmark.analysis.dataset_table import PUBLISHED, make_dataset_table, read_published
from benchmark.analysis.text_statistics import make_text_statistics
from benchmark.data.preparation import prepare
from benchmark.data.preset_data import PresetData, load_preset_data, preset_data
from benchmark.data.sources import DatasetDefinition, load_definitions
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
ITEMS = {"a": "Alpha", "b": "Beta", "c": "Alpha", "d": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a data set called as one that has published counts."""
    folder = tmp_path_factory.mktemp("data")
    rows = [f"{item},u{user},{user}{time}" for user in (1, 2) for time, item in enumerate(ITEMS)]
    (folder / "interactions.csv").write_text("\n".join(["item_id,user_id,timestamp", *rows]))
    (folder / "items.csv").write_text("\n".join(["item_id,title", *(f"{key},{text}" for key, text in ITEMS.items())]))
    definition = DatasetDefinition(
        name="pixel200k", reader="csv", folder=folder, licence="made", missing_text="allow",
        expected={"users": 3, "items": 4, "interactions": 8},
    )  # fmt: skip
    prepare(definition, "hllm", folder / "pixel200k" / "hllm", on_other_counts="accept")
    prepare(definition, "meta", folder / "pixel200k" / "meta", on_other_counts="accept")
    return folder


def test_ours_stands_beside_what_was_published(data, tmp_path):
    text = make_dataset_table(PresetData(datasets={"pixel200k": ["hllm", "meta"]}), data, tmp_path)
    assert "as published" in text
    assert "3,965,656" in text
    assert "pixel200k, hllm: accepted: 3 users expected and 2 found." in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table1.csv").read_text())))
    users = next(row for row in rows if (row["protocol"], row["statistic"]) == ("meta", "users"))
    assert (users["value"], users["published"], users["difference"]) == ("2", "200000", "-199998")
    assert {path.name for path in tmp_path.iterdir()} == {f"table1.{kind}" for kind in ("csv", "md", "tex", "html")}


def test_published_counts_are_found_and_are_those_that_definitions_expect(tmp_path):
    published, definitions = read_published(ROOT / PUBLISHED), load_definitions(ROOT / "config/datasets.yaml")
    for name, counts in published.items():
        expected = definitions[name].expected
        padding = 1 if "amazon" in name else 0  # the paper counts it as a user and as an item
        assert counts == {
            "users": expected.users + padding,
            "items": expected.items + padding,
            "interactions": expected.interactions,
        }
    (tmp_path / "other.csv").write_text("dataset,users\nBooks,5\n")
    with pytest.raises(UserError, match=r"other\.csv does not hold the published counts"):
        read_published(tmp_path / "other.csv")


def test_text_statistics_by_hand(data, tmp_path):
    preset = PresetData(
        datasets={"pixel200k": ["hllm"]}, tokenizers={"own": {"source": "train", "vocabulary_size": 300}}
    )
    assert "own" in make_text_statistics(preset, data, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "text_statistics.csv").read_text())))
    found = {(row["tokenizer"], row["statistic"]): float(row["value"]) for row in rows}
    assert found["", "items"] == 4
    assert found["", "items_without_title"] == found["", "items_without_text"] == 1
    assert found["", "items_with_repeated_text"] == 2
    assert found["", "characters_mean"] == np.mean([5, 4, 5, 0])
    assert found["own", "tokens_p1"] == 1  # no text: BOS alone
    assert found["own", "truncated"] == 0
    assert (tmp_path / "figure5.png").stat().st_size > 1000
    assert "median" in (tmp_path / "figure5.svg").read_text()


def test_presets_name_data_sets_that_exist(tmp_path):
    root = ROOT
    definitions = load_definitions(root / "config/datasets.yaml")
    for preset in load_preset_data(root / "config/data.yaml").values():
        assert set(preset.datasets) <= set(definitions)
    with pytest.raises(UserError, match="has no entry for preset 'big'; it has: laptop"):
        preset_data(root / "config/data.yaml", "big")
