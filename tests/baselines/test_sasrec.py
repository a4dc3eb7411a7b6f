"""SASRec against a plain version that pads on the left with random items and masks them, as the released code does."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from histories import (
    ITEMS,
    SEQUENCE_LENGTH,
    assert_dropout_in_training_only,
    assert_no_leak,
    assert_parity,
    build,
    random_sequences,
    users,
)
from pydantic import TypeAdapter, ValidationError

from baselines.sasrec import SASRec, SASRecSettings
from benchmark.recommender import Catalogue

SETTINGS = SASRecSettings(layers=2, heads=2, width=8, feedforward_multiplier=3)


def left_padded(sequences):
    """(b, L) items with random ones on the left, (b, L) which of them are real."""
    items = torch.randint(ITEMS, (len(sequences), SEQUENCE_LENGTH))
    real = torch.zeros(len(sequences), SEQUENCE_LENGTH, dtype=torch.bool)
    for row, user in enumerate(users(sequences)):
        length = user.stop - user.start
        items[row, SEQUENCE_LENGTH - length :] = sequences.items[user]
        real[row, SEQUENCE_LENGTH - length :] = True
    return items, real


def layer_norm(x, weight, bias, epsilon=1e-12):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + epsilon).sqrt() * weight + bias


def padded_sasrec(weights, sequences):
    items, real = left_padded(sequences)
    batch, length, heads = *items.shape, SETTINGS.heads
    x = weights["item_embedding.weight"][items] + weights["position_embedding.weight"][None, :length]
    x = layer_norm(x, weights["input_norm.weight"], weights["input_norm.bias"])
    visible = torch.ones(length, length).tril().bool() & real[:, None, None, :]
    mask = torch.where(visible, 0.0, -1e9)
    for layer in range(SETTINGS.layers):
        w = {n.removeprefix(f"blocks.{layer}."): p for n, p in weights.items() if n.startswith(f"blocks.{layer}.")}
        matrices, biases = w["query_key_value.weight"].chunk(3), w["query_key_value.bias"].chunk(3)
        q, k, v = (
            (x @ m.T + b).view(batch, length, heads, -1).permute(0, 2, 1, 3)
            for m, b in zip(matrices, biases, strict=True)
        )
        probabilities = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, dim=-1)
        context = (probabilities @ v).permute(0, 2, 1, 3).reshape(batch, length, -1)
        attended = context @ w["attention_output.weight"].T + w["attention_output.bias"]
        x = layer_norm(attended + x, w["attention_norm.weight"], w["attention_norm.bias"])
        inner = x @ w["inner.weight"].T + w["inner.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = layer_norm(
            inner @ w["outer.weight"].T + w["outer.bias"] + x, w["feedforward_norm.weight"], w["feedforward_norm.bias"]
        )
    return x[real]


def test_equals_the_left_padded_version():
    assert_parity(build(SASRec, SETTINGS), padded_sasrec, lambda weights: weights["item_embedding.weight"])


def test_users_do_not_leak():
    assert_no_leak(build(SASRec, SETTINGS))


def test_the_newest_event_has_the_last_position_and_sees_no_later_one():
    model = build(SASRec, SETTINGS)
    sequences = random_sequences([4])
    x = F.embedding(sequences.items, model.item_embedding.weight)
    read = torch.autograd.grad(model.embed_histories(sequences, x)[-1].sum(), model.position_embedding.weight)[0]
    assert read.abs().sum(1).nonzero().flatten().tolist() == [8, 9, 10, 11]
    x = x.detach().requires_grad_()
    for event in range(4):
        (seen,) = torch.autograd.grad(model.embed_histories(sequences, x)[event].square().sum(), x)
        assert not seen[event + 1 :].any()
        assert seen[: event + 1].any(1).all()


def test_dropout_acts_in_training_only():
    settings = SASRecSettings(layers=1, heads=2, width=8, dropout=0.0, attention_dropout=0.0)
    assert_dropout_in_training_only(build(SASRec, replace(settings, dropout=0.5)))
    assert_dropout_in_training_only(build(SASRec, replace(settings, attention_dropout=0.5)))


def test_initial_weights():
    torch.manual_seed(0)
    model = SASRec(Catalogue(3000), 50, SASRecSettings(layers=1, width=128))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif "bias" in name:
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03)


def test_width_must_divide_by_heads():
    with pytest.raises(ValidationError, match="width 10 is not a multiple of heads 4"):
        TypeAdapter(SASRecSettings).validate_python({"width": 10, "heads": 4})
