"""Histories that are recorded and repeated: the losses, gradients and weights of running every batch anew."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_engine import Averager
from torch import nn

from baselines.hstu import HSTU, HSTUSettings
from baselines.sasrec import SASRec, SASRecSettings
from benchmark.data.batches import TrainingBatch
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.engine import Engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.one_negative import OneNegative
from benchmark.training.recorded import RecordedHistories

ITEMS, LONGEST = 20, 6
CPU = torch.device("cpu")


class Repeats:
    """As CUDA's graphs do: what the work is given and what it gives stay in place, and its Python code runs once."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, work):
        state = torch.get_rng_state()
        results = work()
        torch.set_rng_state(state)
        self.recorded += 1

        def replay():
            self.replayed += 1
            for name, value in work().items():
                results[name].copy_(value)

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
@pytest.mark.parametrize("make", [sasrec, hstu, Averager])
def test_a_cuda_graph_trains_as_the_plain_step(monkeypatch, make):
    monkeypatch.setattr("benchmark.training.recorded._LEAST_STEP", 8)
    device, losses = torch.device("cuda"), []
    for length in (None, LONGEST):
        torch.manual_seed(0)
        model, objective = make().to(device), InfoNCE(Temperature()).to(device)
        parameters = [*model.parameters(), *objective.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=True)
        engine = Engine(
            model, objective, optimizer, device=device, bf16=False, compiled=True, sequence_length=length
        )  # fmt: skip
        given = [
            replace(x, sequences=x.sequences.to(device), targets=x.targets.to(device), negatives=x.negatives.to(device))
            for x in batches(0)
        ]
        losses.append([float(engine.step(batch, seed=1).loss) for batch in given])
        if length:
            assert engine.recorded is not None
            assert not engine.recorded.off
            assert any(place.replay for place in engine.recorded._places.values())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert isinstance(model, nn.Module)
