"""Chunks of like size, graphs kept or recomputed, float32 weights behind bfloat16 copies: the same gradients."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender, item_chunks
from benchmark.training import item_embedding
from benchmark.training.item_embedding import ItemEmbedder
from benchmark.training.precision import WorkingCopies

CPU = torch.device("cpu")


class Texts(SequentialRecommender):
    """An item is the mean of as many rows of a table as its size says, through a layer with dropout."""

    def __init__(self, dropout=0.0, frozen=False):
        super().__init__()
        self.table, self.layer = nn.Embedding(40, 8), nn.Linear(8, 8)
        self.dropout, self.calls = nn.Dropout(dropout), []
        self.requires_grad_(not frozen)

    def item_sizes(self, items):
        return 1 + items.cpu() % 7

    def embed_items(self, items):
        self.calls.append((len(items), torch.is_grad_enabled()))
        rows = [self.table.weight[i : i + 1 + i % 7].mean(0) for i in items.tolist()]
        return self.dropout(self.layer(torch.stack(rows)).tanh())

    def embed_histories(self, sequences, items):
        return items


class FakeMemory:
    """Room for the graphs of items of a total size."""

    def __init__(self, room):
        self.room, self.measured, self.graphs = room, True, []

    def units(self):
        return self.room

    def note_graph(self, size, allocated_before):
        self.graphs.append(size)

    def after_embedding(self):
        pass

    def before_backward(self):
        pass


ITEMS = torch.tensor([0, 3, 4, 5, 6, 9, 11, 12, 13, 20, 27, 30])


class Others(Processes):
    """Processes of which another one needs at least so many chunks."""

    def most(self, numbers):
        return [max(self.count, number) for number in numbers]


def gradients(monkeypatch, room=None, chunk=None, dropout=0.0, largest=12, in_step_with=None):
    torch.manual_seed(0)
    model = Texts(dropout)
    embedder = ItemEmbedder(model, CPU, nullcontext, chunk)
    if room is not None:
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(item_embedding, "_LARGEST_CHUNK", largest)
        monkeypatch.setattr(item_embedding, "_FIRST_CHUNK", largest)
        embedder.memory = FakeMemory(room)
    embedder.in_step_with = in_step_with
    torch.manual_seed(5)
    embedded = embedder.embed(ITEMS)
    loss = (F.normalize(embedded, dim=1) @ torch.linspace(-1, 1, 8)).square().sum()
    loss.backward()
    embedder.backward()
    return float(loss), [p.grad for p in model.parameters()], model.calls, embedder


@pytest.mark.parametrize("room", [0, 20, 1000], ids=["all recomputed", "some", "all kept"])
def test_kept_and_recomputed_chunks_give_the_gradients_of_one_piece(monkeypatch, room):
    loss, expected, _, _ = gradients(monkeypatch)
    chunked_loss, got, calls, embedder = gradients(monkeypatch, room)
    assert chunked_loss == pytest.approx(loss, abs=1e-6)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    total = int((1 + ITEMS % 7).sum())
    recomputed = sum(embedder.memory.graphs)
    assert max(0, total - room) <= recomputed <= max(0, total - room) + 7  # no item is larger
    assert max(size for size, _ in calls) < len(ITEMS)


@pytest.mark.parametrize("most", [1, 9, len(ITEMS)])
def test_processes_with_spread_weights_embed_in_equally_many_chunks(monkeypatch, most):
    """Of 61 units, 12 at once and none kept: one process alone would take 6 chunks."""
    loss, expected, _, _ = gradients(monkeypatch)
    chunked_loss, got, calls, _ = gradients(monkeypatch, room=1000, in_step_with=Others(0, most))
    assert [gradient for _, gradient in calls[1:]] == max(6, most) * [False] + max(6, most) * [True]
    assert chunked_loss == pytest.approx(loss, abs=1e-6)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", [{"room": 0}, {"room": 20}, {"chunk": 5}])
def test_dropout_is_replayed(monkeypatch, way):
    """The gradient of a weight against a finite difference of the loss, with the same masks."""
    grads = gradients(monkeypatch, dropout=0.5, **way)[1]
    small = 1e-2
    original = Texts.__init__

    def nudged(self, *args, **kwargs):
        original(self, *args, **kwargs)
        with torch.no_grad():
            self.layer.weight[1, 2] += nudged.by

    monkeypatch.setattr(Texts, "__init__", nudged)
    nudged.by = small
    above = gradients(monkeypatch, dropout=0.5, **way)[0]
    nudged.by = -small
    below = gradients(monkeypatch, dropout=0.5, **way)[0]
    assert grads[1][1, 2].item() == pytest.approx((above - below) / (2 * small), rel=2e-2, abs=1e-3)


def test_a_frozen_item_model_runs_once_without_gradient(monkeypatch):
    model = Texts(frozen=True)
    embedder = ItemEmbedder(model, CPU, nullcontext, 5)
    embedded = embedder.embed(ITEMS)
    assert not embedded.requires_grad
    assert [grad for _, grad in model.calls[1:]] == [False] * 3
    embedder.backward()
    assert len(model.calls) == 4
    torch.testing.assert_close(embedded, model.embed_items(ITEMS))


def test_less_memory_after_it_has_run_out(monkeypatch):
    embedder = ItemEmbedder(Texts(), CPU, nullcontext, None)
    assert not embedder.shrink()
    embedder.memory = FakeMemory(100)
    embedder.memory.caution = 1.0
    assert embedder.shrink()
    assert embedder.memory.caution == 0.5
    while embedder.shrink():
        pass
    assert embedder.memory.caution > 0.05


class Table(SequentialRecommender):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def item_table(self):
        return self.table.weight

    def embed_items(self, items):
        return self.table(items)

    def embed_histories(self, sequences, items):
        return items


def test_a_table_is_taken_whole_when_a_step_asks_for_as_many_rows():
    embedder = ItemEmbedder(Table(), CPU, nullcontext, None)
    few, whole = embedder.distinct(torch.tensor([4, 4, 1]))
    assert (few.tolist(), whole) == ([1, 4], False)
    torch.testing.assert_close(embedder.embed(few), embedder.model.table.weight[few])
    every, whole = embedder.distinct(torch.tensor([4] * 10))
    assert (every.tolist(), whole) == (list(range(10)), True)
    assert embedder.embed(every) is embedder.model.table.weight


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 8))
def test_chunks_are_of_like_size(sizes, count):
    sizes = torch.tensor(sizes)
    chunks = item_chunks(sizes, count)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(sizes)))
    fair = int(sizes.sum()) / count
    assert all(int(sizes[chunk].sum()) <= fair + int(sizes.max()) for chunk in chunks)
    assert len(chunks) <= count


def test_working_copies_stand_in_and_hand_their_gradients_over():
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(5, 6)
    rounded = copy.deepcopy(layer).bfloat16()
    copies = WorkingCopies([layer], torch.bfloat16)
    with copies.in_place():
        out = layer(x.bfloat16())
        out.float().square().sum().backward()
        layer(x.bfloat16()).float().square().sum().backward()
    expected = rounded(x.bfloat16())
    expected.float().square().sum().backward()
    assert torch.equal(out, expected)
    for weight, other in zip(layer.parameters(), rounded.parameters(), strict=True):
        assert weight.dtype == weight.grad.dtype == torch.float32
        torch.testing.assert_close(weight.grad, 2 * other.grad.float())

    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()  # the copies follow the weights
    with torch.no_grad():
        layer[0].bias.zero_()
        with copies.in_place():
            got = layer(x.bfloat16())
        torch.testing.assert_close(got, copy.deepcopy(layer).bfloat16()(x.bfloat16()))


def test_weights_that_are_recomputed_elsewhere_or_not_float32_have_no_copies():
    layer = nn.Linear(2, 2)
    layer.gradient_checkpointing = True
    half = nn.Linear(2, 2).bfloat16()
    copies = WorkingCopies([layer, half], torch.bfloat16)
    with copies.in_place():
        assert layer.weight.dtype == torch.float32
        assert half.weight is half._parameters["weight"]
    assert not copies._copies
