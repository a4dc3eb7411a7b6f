"""HSTU against plain padded versions: on the left as the released HLLM code does, on the right as Meta's does."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from histories import (
    ITEMS,
    LENGTHS,
    SEQUENCE_LENGTH,
    assert_causal,
    assert_dropout_in_training_only,
    assert_no_leak,
    assert_parity,
    build,
    random_sequences,
    users,
)
from hypothesis import given
from hypothesis import strategies as st

from baselines.hstu import HSTU, HSTUSettings, _Lookup, bucket_edges, time_buckets
from benchmark.recommender import Catalogue, PackedSequences

RELEASED = HSTUSettings(layers=2, heads=2, width=8)
RELEASED_FACTORISED = HSTUSettings(layers=1, heads=2, width=8, item_width=5, query_width=3, value_width=6)
META = HSTUSettings(
    layers=2,
    heads=2,
    width=10,
    query_width=4,
    value_width=5,
    input_dropout=True,
    scale_items=True,
    positions="from_oldest",
    relative_bias=True,
    spare_length=11,
    position_init="xavier",
)


def item_table(weights):
    table = weights["item_embedding.weight"]
    return table @ weights["item_projection.weight"].T if "item_projection.weight" in weights else table


def transduce(settings, w, x, visible, bias=0.0):
    """One unit on a padded (b, n, width) batch; visible: (b or 1, 1, n, n) 0 or 1."""
    batch, length, heads = *x.shape[:2], settings.heads
    dqk = settings.query_width or settings.width // heads
    dv = settings.value_width or settings.width // heads
    mixed = F.silu(F.layer_norm(x, x.shape[-1:], eps=1e-6) @ w["uvqk"])
    u, v, q, k = mixed.split([dv * heads, dv * heads, dqk * heads, dqk * heads], dim=-1)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.view(batch, length, heads, dqk), k.view(batch, length, heads, dqk))
    scores = F.silu(scores + bias) / length * visible
    attended = torch.einsum("bhnm,bmhd->bnhd", scores, v.view(batch, length, heads, dv)).reshape(batch, length, -1)
    gated = u * F.layer_norm(attended, attended.shape[-1:], eps=1e-6)
    return gated @ w["output.weight"].T + w["output.bias"] + x


def of_layer(weights, layer):
    return {n.removeprefix(f"blocks.{layer}."): p for n, p in weights.items() if n.startswith(f"blocks.{layer}.")}


def left_padded_hstu(settings, weights, sequences):
    length = SEQUENCE_LENGTH
    items = torch.randint(ITEMS, (len(sequences), length))
    real = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, user in enumerate(users(sequences)):
        items[row, length - (user.stop - user.start) :] = sequences.items[user]
        real[row, length - (user.stop - user.start) :] = True
    x = item_table(weights)[items] + weights["position_embedding.weight"]
    visible = real[:, None, None, :] * torch.ones(length, length).tril()
    for layer in range(settings.layers):
        x = transduce(settings, of_layer(weights, layer), x, visible)
    return x[real]


def right_padded_hstu(settings, weights, sequences):
    """The target's time stands in the column after the newest event, zeros after it."""
    length = SEQUENCE_LENGTH + settings.spare_length
    items = torch.zeros(len(sequences), length, dtype=torch.long)
    times = torch.zeros(len(sequences), length + 1, dtype=torch.long)
    real = torch.zeros(len(sequences), length, 1)
    for row, user in enumerate(users(sequences)):
        count = user.stop - user.start
        items[row, :count] = sequences.items[user]
        real[row, :count] = 1
        times[row, : count + 1] = torch.cat([sequences.timestamps[user], sequences.next_timestamps[user][-1:]])
    x = (item_table(weights)[items] * settings.width**0.5 + weights["position_embedding.weight"]) * real
    difference = times[:, 1:, None] - times[:, None, :-1]
    bucket = (torch.log(difference.abs().clamp(min=1)) / 0.301).long().clamp(0, 128)
    distance = torch.tensor([[max(i - j, 0) for j in range(length)] for i in range(length)])
    for layer in range(settings.layers):
        w = of_layer(weights, layer)
        bias = w["relative_bias.by_time"][bucket] + w["relative_bias.by_distance"][distance]
        x = transduce(settings, w, x, torch.ones(length, length).tril(), bias[:, None]) * real
    return x[real.squeeze(-1).bool()]


@pytest.mark.parametrize("settings", [RELEASED, RELEASED_FACTORISED])
def test_released_setting_equals_the_left_padded_version(settings):
    assert_parity(build(HSTU, settings), lambda w, sequences: left_padded_hstu(settings, w, sequences), item_table)


def test_meta_setting_equals_the_right_padded_version():
    assert_parity(build(HSTU, META), lambda w, sequences: right_padded_hstu(META, w, sequences), item_table)


def test_users_do_not_leak():
    assert_no_leak(build(HSTU, RELEASED))
    assert_no_leak(build(HSTU, META))


def test_later_events_do_not_matter():
    assert_causal(build(HSTU, META))


@pytest.mark.parametrize("settings", [RELEASED, META])
def test_an_output_reads_its_own_and_earlier_events(settings):
    model, sequences = build(HSTU, settings), random_sequences([5])
    x = model.embed_items(sequences.items).detach().requires_grad_()
    for event in range(5):
        (seen,) = torch.autograd.grad(model.embed_histories(sequences, x)[event].square().sum(), x)
        assert seen.any(1).tolist() == [True] * (event + 1) + [False] * (4 - event)


@pytest.mark.parametrize(("settings", "rows"), [(RELEASED, [8, 9, 10, 11]), (META, [0, 1, 2, 3])])
def test_positions_of_a_history_of_four_in_room_for_twelve(settings, rows):
    model, sequences = build(HSTU, settings), random_sequences([4])
    out = model.embed_histories(sequences, model.embed_items(sequences.items))
    (read,) = torch.autograd.grad(out[-1].square().sum(), model.position_embedding.weight)
    assert read.abs().sum(1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0, 0),
        (1, 0),
        (-1, 0),
        (2, 2),  # ln 2 / 0.301 = 2.30
        (60, 13),  # 13.60
        (-60, 13),
        (3600, 27),  # 27.20
        (86_400, 37),  # 37.76
        (31_536_000, 57),  # a year: 57.36
        (10**17, 128),  # 130.05, beyond the last
        (2**63 - 1, 128),
    ],
)
def test_worked_time_buckets(seconds, bucket):
    assert time_buckets(torch.tensor([[seconds]]), bucket_edges()).tolist() == [[bucket]]


@given(st.integers(-(10**12), 10**12))
def test_time_buckets_are_floors_of_logarithms(seconds):
    expected = math.floor(math.log(max(abs(seconds), 1)) / 0.301)
    assert time_buckets(torch.tensor(seconds), bucket_edges()).item() == expected


def test_the_time_of_the_request_matters_to_the_last_output_only():
    model, sequences = build(HSTU, META), random_sequences([6])
    moved = sequences.next_timestamps.clone()
    moved[-1] += 3 * 10**8
    later = PackedSequences(sequences.items, sequences.timestamps, moved, sequences.offsets, 6)
    before, after = (model.embed_histories(s, model.embed_items(s.items)) for s in (sequences, later))
    torch.testing.assert_close(before[:-1], after[:-1])
    assert not torch.allclose(before[-1], after[-1])


def test_the_divisor_is_the_length_that_a_user_could_have():
    """The same history in twice the room: attention, before its norm, is half as large."""
    sequences, attended = random_sequences([4, 3]), []
    for room in (10, 20):
        torch.manual_seed(0)
        model = HSTU(Catalogue(ITEMS), room, HSTUSettings(layers=1, heads=2, width=8))
        block, layout = model.blocks[0], model._layout(sequences)
        attended.append(block._attend(torch.linspace(-1, 1, 7 * 24).view(7, 24), layout))
    torch.testing.assert_close(attended[0], 2 * attended[1])


def test_lookup_and_its_gradient_are_those_of_plain_indexing():
    torch.manual_seed(0)
    table = torch.randn(9, dtype=torch.float64, requires_grad=True)
    index, upstream = torch.randint(9, (3, 5, 5)), torch.randn(3, 5, 5, dtype=torch.float64)
    got, want = _Lookup.apply(table, index), table[index]
    assert torch.equal(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, table, upstream), torch.autograd.grad(want, table, upstream))


@pytest.mark.parametrize("settings", [RELEASED, META])
def test_dropout_acts_in_training_only(settings):
    assert_dropout_in_training_only(build(HSTU, settings))


def test_input_dropout_is_metas_alone():
    assert_dropout_in_training_only(build(HSTU, replace(META, layers=0)))
    model, sequences = build(HSTU, replace(RELEASED, layers=0)).train(), random_sequences(LENGTHS)
    items = model.embed_items(sequences.items)
    positions = model.position_embedding.weight[SEQUENCE_LENGTH - 1 - sequences.positions_from_end]
    assert torch.equal(model.embed_histories(sequences, items), items + positions)


def test_initial_weights():
    torch.manual_seed(0)
    truncated = 0.8796  # standard deviation of a standard normal cut at 2
    settings = HSTUSettings(layers=1, heads=2, width=64, relative_bias=True, spare_length=11, position_init="xavier")
    model = HSTU(Catalogue(3000), 200, settings)
    assert model.item_embedding.weight.std().item() == pytest.approx(0.02 * truncated, rel=0.03)
    assert model.position_embedding.weight.shape == (211, 64)
    assert model.position_embedding.weight.std().item() == pytest.approx((2 / (211 + 64)) ** 0.5, rel=0.03)
    assert model.blocks[0].uvqk.shape == (64, 256)
    assert model.blocks[0].uvqk.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.blocks[0].output.weight.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.03)
    assert model.blocks[0].relative_bias.by_time.shape == (129,)
    assert model.blocks[0].relative_bias.by_distance.std().item() == pytest.approx(0.02, rel=0.2)
    released = HSTU(Catalogue(3000), 200, HSTUSettings(layers=1, heads=2, width=64))
    assert released.position_embedding.weight.std().item() == pytest.approx(0.02 * truncated, rel=0.03)
    assert released.blocks[0].relative_bias is None


def test_heads_need_widths():
    with pytest.raises(ValueError, match="set query_width and value_width"):
        HSTUSettings(width=10, heads=4)
    HSTUSettings(width=10, heads=4, query_width=3, value_width=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [RELEASED, META])
def test_cuda_equals_cpu(settings):
    model, sequences = build(HSTU, settings), random_sequences(LENGTHS)
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        out = model.embed_histories(sequences.to(device), model.embed_items(sequences.items.to(device)))
        outputs.append(out.cpu())
        gradients.append([g.cpu() for g in torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
