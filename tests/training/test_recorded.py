"""Histories that are recorded and repeated: the losses, gradients and weights of running every batch anew."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_engine import Averager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.hstu import HSTU, HSTUSettings
from baselines.sasrec import SASRec, SASRecSettings
from benchmark import attention
from benchmark.data.batches import TrainingBatch
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.engine import Engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.one_negative import OneNegative
from benchmark.training.recorded import RecordedHistories

ITEMS, LONGEST = 20, 6
CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """The operations that run within it, those of backward passes among them."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, result))
        return result


class Repeats:
    """As CUDA's graphs do: the operations alone are done again, on tensors that stay where they are, with whatever
    numbers Python gave them; no Python code of the work is."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, work):
        state = torch.get_rng_state()
        with Tape() as tape:
            results = work()
        torch.set_rng_state(state)
        self.recorded += 1

        @torch.no_grad()
        def replay():
            self.replayed += 1
            for function, arguments, options, result in tape.operations:
                again = function(*arguments, **options)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)

        return results, replay

    def watched(self):
        return nullcontext()

    def memory(self):
        return 0


class Waits(Repeats):
    def watched(self):
        raise RuntimeError("called a synchronizing CUDA operation")


class FromTable(Averager):
    """Rows of a table, all of which a step takes if it asks for as many."""

    def embed_items(self, items):
        return self.table(items)

    def item_table(self):
        return self.table.weight


def batches(per_position, count=16):
    """Windows of other lengths in every batch; one fills every slot."""
    generator = torch.Generator().manual_seed(5)
    for number in range(count):
        lengths = torch.full((4,), LONGEST) if number == 4 else torch.randint(1, LONGEST + 1, (4,), generator=generator)
        total = int(lengths.sum())
        items, targets = torch.randint(ITEMS, (2, total), generator=generator)
        times = torch.randint(10**6, (total,), generator=generator)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        sequences = PackedSequences(items, times, times + 9, offsets, int(lengths.max()))
        shape = (total, per_position) if per_position else (5,)
        yield TrainingBatch(sequences, targets, torch.randint(ITEMS, shape, generator=generator))


def run(make, objective, given, recorder=None, chunk=None):
    torch.manual_seed(0)
    model = make()
    parameters = [*model.parameters(), *objective.parameters()]
    # AdamW would make steps of gradients that are 0 but for rounding, as those of SASRec's key biases.
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    engine = Engine(model, objective, optimizer, device=CPU, bf16=False, item_chunk=chunk)
    if recorder:
        engine.recorded = RecordedHistories(
            engine._loss, objective, engine.parameters(), engine.precision, LONGEST, CPU, recorder
        )
    figures = [engine.step(batch, seed=number) for number, batch in enumerate(given)]
    return [{"loss": float(x.loss), **{k: float(v) for k, v in x.figures.items()}} for x in figures], parameters, engine


def hstu():
    settings = HSTUSettings(layers=2, heads=2, width=8, dropout=0, relative_bias=True, positions="from_oldest")
    return HSTU(Catalogue(ITEMS), LONGEST, settings)


def sasrec():
    return SASRec(Catalogue(ITEMS), LONGEST, SASRecSettings(heads=2, width=8, dropout=0, attention_dropout=0))


@pytest.mark.parametrize(
    ("make", "objective", "per_position", "chunk"),
    [
        (Averager, InfoNCE(Temperature()), 0, None),
        (Averager, InfoNCE(Temperature()), 0, 3),
        (FromTable, InfoNCE(Temperature(), "id"), 4, None),
        (sasrec, InfoNCE(Temperature()), 4, None),
        (sasrec, OneNegative("bce"), 1, None),
        (hstu, InfoNCE(Temperature(), "both"), 0, None),
    ],
    ids=["item model", "in chunks", "table", "sasrec", "one negative", "hstu"],
)
def test_replayed_steps_train_as_steps_that_are_run(monkeypatch, make, objective, per_position, chunk):
    def as_on_cuda(q, k, v, offsets, causal, scale, dropout):
        return attention._padded_attention(q, k, v, offsets, LONGEST, causal, scale, dropout)

    monkeypatch.setattr(attention, "_attention_by_length", as_on_cuda)
    monkeypatch.setattr("benchmark.training.recorded._LEAST_STEP", 8)
    given = list(batches(per_position))
    state = {name: x.clone() for name, x in objective.state_dict().items()}
    expected, weights, _ = run(make, objective, given, chunk=chunk)
    weights = [weight.detach().clone() for weight in weights]
    objective.load_state_dict(state)
    recorder = Repeats()
    got, replayed, _ = run(make, objective, given, recorder, chunk)
    assert 2 <= recorder.recorded < recorder.replayed
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for one, other in zip(replayed, weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_step_whose_shape_has_been_seen_is_not_run_again():
    recorder, given = Repeats(), [next(batches(0))] * 5
    _, _, engine = run(Averager, InfoNCE(Temperature()), given, recorder)
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    assert not engine.recorded.off


def test_dropout_follows_from_the_seed_whether_a_step_is_replayed_or_not():
    class Dropped(FromTable):
        def __init__(self):
            super().__init__(dropout=0.5)

        def embed_histories(self, sequences, items):
            return self.step(self.dropout(items))

    batch = next(batches(0))
    torch.manual_seed(0)
    model, objective = Dropped(), InfoNCE(Temperature())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, objective, optimizer, device=CPU, bf16=False)
    engine.recorded = RecordedHistories(
        engine._loss, objective, engine.parameters(), engine.precision, LONGEST, CPU, Repeats()
    )
    losses = [float(engine.step(batch, seed=seed).loss) for seed in (7, 8, 7, 8, 9)]
    assert losses[:2] == losses[2:4]
    assert len(set(losses)) == 3


def test_what_waits_for_the_device_is_run_as_it_is_from_then_on(caplog):
    caplog.set_level("INFO")
    given = list(batches(0))
    expected, _, _ = run(Averager, InfoNCE(Temperature()), given)
    recorder = Waits()
    got, _, engine = run(Averager, InfoNCE(Temperature()), given, recorder)
    assert engine.recorded.off
    assert recorder.recorded == 0
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert [r.message for r in caplog.records].count(
        "histories are not run as a CUDA graph: the method or its objective waits for the GPU"
    ) == 1


def test_recordings_that_would_hold_too_much_memory_are_given_up(caplog):
    class Large(Repeats):
        def memory(self):
            return self.recorded << 32

    caplog.set_level("INFO")
    given = [next(batches(0))] * 4
    expected, _, _ = run(Averager, InfoNCE(Temperature()), given)
    recorder = Large()
    got, _, engine = run(Averager, InfoNCE(Temperature()), given, recorder)
    assert engine.recorded.off
    assert (recorder.recorded, recorder.replayed) == (1, 0)
    assert got[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-5)
    assert "it would hold 4096 MiB" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("make", "per_position", "compiled"),
    [(sasrec, 4, False), (hstu, 0, False), (Averager, 0, False), (sasrec, 70, True)],
    ids=["sasrec", "hstu", "item model", "compiled"],
)
def test_a_cuda_graph_trains_as_the_plain_step(monkeypatch, make, per_position, compiled):
    monkeypatch.setattr("benchmark.training.recorded._LEAST_STEP", 8)
    device = torch.device("cuda")

    def steps(recorded):
        torch.manual_seed(0)
        model, objective = make().to(device), InfoNCE(Temperature()).to(device)
        optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1, momentum=0.9)
        engine = Engine(model, objective, optimizer, device=device, bf16=False, compiled=compiled)
        if recorded:
            engine.recorded = RecordedHistories(
                engine._loss, objective, engine.parameters(), engine.precision, LONGEST, device
            )
        given = [
            replace(x, sequences=x.sequences.to(device), targets=x.targets.to(device), negatives=x.negatives.to(device))
            for x in batches(per_position)
        ]
        losses = [float(engine.step(batch, seed=1).loss) for batch in given]
        return losses, [x.detach().clone() for x in engine.parameters()], engine

    losses, weights, engine = steps(recorded=True)
    assert not engine.recorded.off
    assert sum(place.replay is not None for place in engine.recorded._places.values()) >= 2
    expected, plain, _ = steps(recorded=False)
    assert losses == pytest.approx(expected, rel=1e-4)
    for one, other in zip(weights, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_draws_the_dropout_of_its_seed():
    device, batch = torch.device("cuda"), next(batches(0))
    batch = replace(
        batch, sequences=batch.sequences.to(device), targets=batch.targets.to(device),
        negatives=batch.negatives.to(device),
    )  # fmt: skip
    torch.manual_seed(0)
    model = SASRec(Catalogue(ITEMS), LONGEST, SASRecSettings(heads=2, width=8, dropout=0.5)).to(device)
    objective = InfoNCE(Temperature()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, objective, optimizer, device=device, bf16=False)
    engine.recorded = RecordedHistories(engine._loss, objective, engine.parameters(), engine.precision, LONGEST, device)
    losses = [float(engine.step(batch, seed=seed).loss) for seed in (7, 8, 7, 8, 9)]  # from the third on, replayed
    assert losses[:2] == pytest.approx(losses[2:4], rel=1e-5)
    assert len({round(x, 4) for x in losses}) == 3
