"""PixelRec's files as they are published: more columns, line breaks and quotes in texts, missing values, nulls."""

from pathlib import Path

import pytest

from benchmark.data.dataset import load_dataset
from benchmark.data.preparation import prepare
from benchmark.data.sources import load_definitions

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "raw-samples"
HEADER = (
    "item_id,view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,barrage_number,title,tag,"
    "description\n"
)
ITEMS = HEADER + (
    'i1,1.0,2.0,3.0,4.0,5.0,6.0,7.0,"Two\nlines, a ""quote""",Pets,\n'
    "i2,,,,,,,,,,\n"
    'i3,1.0,2.0,3.0,4.0,5.0,6.0,7.0,,Food,"a\0null"\n'
)


def pixelrec(folder, interactions, items):
    (folder / "interaction").mkdir()
    (folder / "item_info").mkdir()
    (folder / "interaction" / "Pixel200K.csv").write_text(interactions)
    (folder / "item_info" / "Pixel200K.csv").write_text(items)
    definition = load_definitions(ROOT / "config/datasets.yaml")["pixel200k"]
    return definition.model_copy(update={"folder": folder, "expected": None, "sources": None})


def test_texts_of_several_lines_and_items_without_a_record(tmp_path):
    rows = [f"i{item},u{user},{time}" for user in (1, 2) for time, item in enumerate((1, 2, 3, 9))]
    definition = pixelrec(tmp_path, "\n".join(["item_id,user_id,timestamp", *rows]), ITEMS)
    card = prepare(definition, "hllm", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.item_ids() == ["i1", "i2", "i3", "i9"]
    assert dataset.item_texts() == [
        {"title": 'Two\nlines, a "quote"', "tag": "Pets"},
        {},
        {"tag": "Food", "description": "a\0null"},
        {},
    ]
    assert (card.items_without_text, card.dropped) == (2, {})


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real records are not here")
def test_real_records(tmp_path):
    interactions = (SAMPLES / "pixelrec.sample.interaction.csv").read_text().strip().split("\n")
    rows = [f"{line.rsplit(',', 1)[0].split(',')[0]},u1,{time}" for time, line in enumerate(interactions[1:] * 2)]
    items = (SAMPLES / "pixelrec.sample.item_info.csv").read_text()
    definition = pixelrec(tmp_path, "\n".join([interactions[0], *rows]), items)
    prepare(definition, "meta", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    texts = dict(zip(dataset.item_ids(), dataset.item_texts(), strict=True))
    assert texts["i192714"]["description"] == "Should I brush it off?"
