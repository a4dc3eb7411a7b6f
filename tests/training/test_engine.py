"""One step: in pieces as in one piece, in any item chunk, with the loss computed by hand."""

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed

from benchmark.data.batches import TrainingBatch
from benchmark.recommender import PackedSequences, SequentialRecommender
from benchmark.training.engine import Engine, mean_cosine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.precision import compile_errors, compile_layers


class Averager(SequentialRecommender):
    """Item vectors through a linear layer (with dropout, to see it replayed); the next item is a layer of this one."""

    def __init__(self, items=20, width=6, dropout=0.0):
        super().__init__()
        self.table, self.encode = nn.Embedding(items, width), nn.Linear(width, width)
        self.step, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)

    def embed_items(self, items):
        return self.dropout(self.encode(self.table(items)).tanh())

    def embed_histories(self, sequences, items):
        return self.step(items)


def one_batch(per_position=False):
    generator = torch.Generator().manual_seed(5)
    items = torch.randint(0, 20, (10,), generator=generator)
    sequences = PackedSequences(items, items, items, torch.tensor([0, 3, 10]), 7)
    shapes = (10,), ((10, 8) if per_position else (8,))
    targets, negatives = (torch.randint(0, 20, shape, generator=generator) for shape in shapes)
    return TrainingBatch(sequences, targets, negatives)


def after_one_step(chunk, history_chunk=None, per_position=False):
    torch.manual_seed(0)
    model, objective = Averager(), InfoNCE(Temperature())
    parameters = [*model.parameters(), *objective.parameters()]
    engine = Engine(
        model, objective, torch.optim.SGD(parameters, lr=0.0), device=torch.device("cpu"), bf16=False,
        item_chunk=chunk, history_chunk=history_chunk,
    )  # fmt: skip
    figures = engine.step(one_batch(per_position))
    return float(figures.loss), [p.grad.clone() for p in parameters]


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize(("chunk", "history_chunk"), [(1, None), (4, 1), (None, 1), (100, 100)])
def test_chunks_give_the_loss_and_gradients_of_one_piece(chunk, history_chunk, per_position):
    loss, gradients = after_one_step(None, per_position=per_position)
    chunked_loss, chunked = after_one_step(chunk, history_chunk, per_position)
    assert chunked_loss == pytest.approx(loss, abs=1e-6)
    for a, b in zip(gradients, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_dropout_is_the_same_in_both_passes_over_a_chunk():
    """With other masks in the second pass, the gradients would not be those of the loss: a finite difference tells."""
    torch.manual_seed(0)
    model, objective = Averager(dropout=0.5).double(), InfoNCE(Temperature()).double()
    model.comparable = lambda x: F.normalize(x, dim=-1)  # the base class computes in float32, too coarse here
    weight = model.encode.weight
    engine = Engine(
        model, objective, torch.optim.SGD(model.parameters(), lr=0.0), device=torch.device("cpu"), bf16=False,
        item_chunk=4,
    )  # fmt: skip

    def loss():
        torch.manual_seed(9)
        return float(engine.step(one_batch()).loss)

    loss()
    gradient, small = weight.grad[1, 2].item(), 1e-6
    weight.data[1, 2] += small
    above = loss()
    weight.data[1, 2] -= 2 * small
    assert gradient == pytest.approx((above - loss()) / (2 * small), rel=1e-4)


def test_the_loss_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model, batch = Averager(), one_batch()
    scale = torch.tensor(1 / 0.07)
    vectors = F.normalize(model.embed_items(torch.arange(20)), dim=-1)
    predicted = F.normalize(model.step(model.embed_items(batch.sequences.items)), dim=-1)
    losses = []
    for p, target in zip(predicted, batch.targets, strict=True):
        kept = [n for n in batch.negatives if vectors[n] @ vectors[target] <= 0.99]
        logits = torch.stack([p @ vectors[target], *(p @ vectors[n] for n in kept)]) * scale
        losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    assert after_one_step(None)[0] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    pairs = [F.cosine_similarity(vectors[i], vectors[j], dim=0) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(vectors).item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    assert mean_cosine(vectors[:1]).item() == pytest.approx(0, abs=1e-6)


class OwnLinear(nn.Linear):  # torch.compile leaves torch's own modules alone
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Compiled(Averager):
    def __init__(self):
        super().__init__()
        for layer in self.heavy_layers():
            layer.__class__ = OwnLinear

    def heavy_layers(self):
        return [self.step, self.encode]


def _fails(*_, **__):
    raise BackendCompilerFailed(_fails, AssertionError("no kernel"), inspect.currentframe())


def _fails_backward(graph, inputs, **_):
    return aot_autograd(fw_compiler=lambda inner, _: make_boxed_func(inner), bw_compiler=_fails)(graph, inputs)


def _fails_with_tiles(graph, inputs, options=None):
    return graph.forward if options else _fails()


@pytest.mark.parametrize(
    ("backend", "failures"), [(_fails, 2), (_fails_backward, 2), (_fails_with_tiles, 1)], ids=lambda x: str(x)[:20]
)
def test_a_step_is_repeated_with_fewer_kernels_made_where_some_cannot_be(monkeypatch, caplog, backend, failures):
    monkeypatch.setattr("benchmark.training.engine.compile_layers", partial(compile_layers, backend=backend))
    expected, gradients = after_one_step(None)
    torch.manual_seed(0)
    model, objective = Compiled(), InfoNCE(Temperature())
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    engine = Engine(model, objective, optimizer, device=torch.device("cpu"), bf16=False)
    compile_layers(model, backend)
    engine._compile_errors = compile_errors()  # as with compiled=True, which would make the objective's kernels too
    losses = [float(engine.step(one_batch()).loss) for _ in range(2)]
    assert losses == pytest.approx([expected] * 2, abs=1e-6)
    for a, b in zip(gradients, (p.grad for p in parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    told = [record.message for record in caplog.records if "torch.compile has failed" in record.message]
    assert len(told) == failures
    assert all("no kernel" in each for each in told)
