"""The User LLM's optional inputs (paper table 12)."""

from datetime import UTC, datetime

import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_hllm import build, histories

from models.user_llm import calendar

FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)


@given(st.lists(st.integers(int(FIRST.timestamp()), int(LAST.timestamp())), min_size=1, max_size=20))
def test_calendar_equals_the_standard_library(timestamps):
    dates = [datetime.fromtimestamp(t, UTC) for t in timestamps]
    expected = [[d.year, d.month, d.day, d.hour, d.minute, d.second] for d in dates]
    assert calendar(torch.tensor(timestamps)).tolist() == expected


def test_years_beyond_the_table_are_held_within_it():
    assert calendar(torch.tensor([10**12]))[0, 0] == 2099


def test_inputs_are_summed_and_texts_stay_the_targets():
    sequences = histories()
    items = torch.randn(len(sequences.items), 32)
    model = build(user_inputs=("text", "item_id", "timestamp"))
    user = model.user_llm
    parts = torch.cat(
        [part(x) for part, x in zip(user.time.parts, calendar(sequences.timestamps).unbind(1), strict=True)], 1
    )
    summed = items + user.item_ids.weight[sequences.items] + user.time.mlp(parts)
    plain = build()
    plain.user_llm.backbone.load_state_dict(user.backbone.state_dict())
    torch.testing.assert_close(model.embed_histories(sequences, items), plain.embed_histories(sequences, summed))
    assert model.embed_items(torch.arange(2)).shape == (2, 32)


def test_without_text_the_user_model_reads_ids():
    sequences = histories()
    model = build(user_inputs=("item_id",))
    a, b = (model.embed_histories(sequences, torch.randn(len(sequences.items), 32)) for _ in range(2))
    assert torch.equal(a, b)
