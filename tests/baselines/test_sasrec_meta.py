"""Meta's SASRec against a plain right-padded version made of PyTorch's own multi-head attention and convolutions."""

import pytest
import torch
import torch.nn.functional as F
from histories import (
    SEQUENCE_LENGTH,
    assert_causal,
    assert_dropout_in_training_only,
    assert_no_leak,
    assert_parity,
    build,
    random_sequences,
    users,
)

from baselines.sasrec_meta import MetaSASRec, MetaSASRecSettings
from benchmark.recommender import Catalogue

SPARE = 11  # columns that Meta's code adds on the right of the longest history


def padded_sasrec(settings, weights, sequences):
    length = SEQUENCE_LENGTH + SPARE
    items = torch.zeros(len(sequences), length, dtype=torch.long)
    real = torch.zeros(len(sequences), length, 1)
    for row, user in enumerate(users(sequences)):
        items[row, : user.stop - user.start] = sequences.items[user]
        real[row, : user.stop - user.start] = 1
    positions = F.pad(weights["position_embedding.weight"], (0, 0, 0, SPARE))
    x = (weights["item_embedding.weight"][items] * settings.width**0.5 + positions) * real
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(settings.layers):
        w = {n.removeprefix(f"blocks.{layer}."): p for n, p in weights.items() if n.startswith(f"blocks.{layer}.")}
        query = F.layer_norm(x, (settings.width,), eps=1e-8)
        attended, _ = F.multi_head_attention_forward(
            query.transpose(0, 1),
            x.transpose(0, 1),
            x.transpose(0, 1),
            settings.width,
            settings.heads,
            torch.cat([w["query.weight"], w["key_value.weight"]]),
            torch.cat([w["query.bias"], w["key_value.bias"]]),
            None,
            None,
            False,
            0.0,
            w["attention_output.weight"],
            w["attention_output.bias"],
            training=False,
            attn_mask=later,
        )
        y = F.layer_norm(query + attended.transpose(0, 1), (settings.width,), eps=1e-8)
        inner = F.conv1d(y.mT, w["inner.weight"].unsqueeze(-1), w["inner.bias"])
        inner = F.relu(inner) if settings.activation == "relu" else F.gelu(inner)
        x = (F.conv1d(inner, w["outer.weight"].unsqueeze(-1), w["outer.bias"]).mT + y) * real
    return x[real.squeeze(-1).bool()]


@pytest.mark.parametrize(
    "settings",
    [
        MetaSASRecSettings(layers=2, heads=1, width=10),
        MetaSASRecSettings(layers=3, heads=4, width=8, feedforward_width=20, activation="gelu"),
    ],
)
def test_equals_the_right_padded_version(settings):
    assert_parity(
        build(MetaSASRec, settings),
        lambda weights, sequences: padded_sasrec(settings, weights, sequences),
        lambda weights: weights["item_embedding.weight"],
    )


def test_users_do_not_leak_and_later_events_do_not_matter():
    model = build(MetaSASRec, MetaSASRecSettings(heads=2, width=8))
    assert_no_leak(model)
    assert_causal(model)


def test_positions_count_from_the_oldest_event():
    model = build(MetaSASRec, MetaSASRecSettings(heads=2, width=8))
    sequences = random_sequences([4])
    out = model.embed_histories(sequences, model.embed_items(sequences.items))
    (read,) = torch.autograd.grad(out[-1].sum(), model.position_embedding.weight)
    assert read.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_dropout_acts_in_training_only():
    for layers in (0, 2):  # on the input, and inside the blocks
        assert_dropout_in_training_only(build(MetaSASRec, MetaSASRecSettings(layers=layers, heads=2, width=8)))


def test_initial_weights():
    torch.manual_seed(0)
    width = 128
    model = MetaSASRec(Catalogue(3000), 200, MetaSASRecSettings(layers=1, width=width))
    truncated = 0.8796  # standard deviation of a standard normal cut at 2
    expected = {
        "item_embedding.weight": 0.02 * truncated,
        "position_embedding.weight": width**-0.5 * truncated,
        "blocks.0.query.weight": (2 / (4 * width)) ** 0.5,
        "blocks.0.key_value.weight": (2 / (4 * width)) ** 0.5,
        "blocks.0.attention_output.weight": (2 / (2 * width)) ** 0.5,
        "blocks.0.inner.weight": (2 / (2 * width)) ** 0.5,
        "blocks.0.outer.weight": (2 / (2 * width)) ** 0.5,
    }
    parameters = dict(model.named_parameters())
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.03), name
    for name in ("query", "key_value", "attention_output"):
        assert not parameters[f"blocks.0.{name}.bias"].any()
    assert parameters["blocks.0.inner.bias"].abs().max() <= width**-0.5
