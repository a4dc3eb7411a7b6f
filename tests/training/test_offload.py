"""Weights, gradients and moments on the host: the same steps as with all on the device, and when that is chosen."""

import logging
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from benchmark.data.batches import TrainingBatch
from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings, OptimizerSettings
from benchmark.processes import Processes
from benchmark.training import engines, item_embedding, offload
from benchmark.training.checkpoint import apart, copy_weights, load_weights, save_weights
from benchmark.training.engines import make_engine, place_to_rank, resolved
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.offload import HostedWeights, OffloadEngine, place
from benchmark.training.precision import WorkingCopies
from benchmark.training.state import States, take_learned
from tests.training.steps import batch_of, build
from tests.training.test_item_embedding import FakeMemory, gradients

CPU, GIGABYTE = torch.device("cpu"), 10**9


def engine_of(kept, *, kind=("hllm", 0.0), device=CPU, model=None, stored=None, **execution):
    """kept: what is offloaded. stored: a state to continue from."""
    settings = ExecutionSettings(
        engine="single", offload=kept, **{"item_chunk": 4, "history_chunk": 2, "compile": "off"} | execution
    )
    model, objective = model or build(*kind), InfoNCE(Temperature())
    if stored is not None:
        take_learned(model, objective, stored)
    optimizer = OptimizerSettings(learning_rate=0.01, weight_decay=0.1)
    made = make_engine(model, objective, optimizer, settings, device, Processes(), 8)
    if stored is not None:
        made.restore(stored)
    made.model.train()
    return made


def take(engine, first, last):
    """Losses of steps first up to, not including, last."""
    losses = []
    for step in range(first, last):
        batch, device = batch_of(step), engine.device
        placed = TrainingBatch(batch.sequences.to(device), batch.targets.to(device), batch.negatives.to(device))
        losses.append(float(engine.step(placed, seed=step).loss))
    return losses


def assert_same_weights(one, other, **tolerance):
    for (name, a), b in zip(one.weights().items(), other.weights().values(), strict=True):
        torch.testing.assert_close(b, a, msg=name, **tolerance or {"rtol": 0, "atol": 0})


@pytest.mark.parametrize("kind", [("hllm", 0.0), ("hllm", 0.3), ("sasrec", 0.3)])
def test_the_steps_are_those_of_the_plain_engine(kind):
    """In several chunks of items and of histories; with dropout, HLLM's layers are recomputed in the backward pass."""
    plain, hosted = engine_of("none", kind=kind), engine_of("optimizer", kind=kind)
    assert isinstance(hosted, OffloadEngine)
    assert take(hosted, 0, 3) == take(plain, 0, 3)
    assert_same_weights(plain, hosted)


def test_in_bfloat16_the_gradients_are_added_up_in_float32(monkeypatch):
    """As with working copies whose weights are beside them; a gradient crosses in pieces and is added in blocks."""
    monkeypatch.setattr(offload, "_BLOCK", 50)
    plain, hosted = (engine_of(kept, precision="bf16") for kept in ("none", "optimizer"))
    plain.precision._copies = WorkingCopies(plain.model.heavy_layers(), torch.bfloat16)
    assert take(hosted, 0, 3) == take(plain, 0, 3)
    assert_same_weights(plain, hosted)
    with hosted.precision():
        assert all(p.dtype == torch.bfloat16 for layer in hosted.model.heavy_layers() for p in layer.parameters())


@pytest.mark.parametrize("kept", [("none", "optimizer"), ("optimizer", "none")], ids=" then ".join)
def test_a_run_that_was_stopped_continues_with_the_other(kept, tmp_path):
    undisturbed, stopped = engine_of("none"), engine_of(kept[0])
    expected = take(undisturbed, 0, 4)
    take(stopped, 0, 2)
    states = States(tmp_path, Processes())
    states.save(2, {}, stopped.fragments())
    with ExitStack() as files:
        continued = engine_of(kept[1], stored=states.newest(pytest.fail, files))
    assert take(continued, 2, 4) == expected[2:]
    assert_same_weights(undisturbed, continued)


def test_weights_are_written_without_a_second_copy_of_them(tmp_path):
    """But for those that lie in the same memory, of which a file must hold each."""
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "again": whole, "part": torch.arange(9.0)[3:], "turned": torch.ones(2, 3).T}
    own = apart(tensors)
    assert own["whole"].data_ptr() == whole.data_ptr()
    assert own["again"].data_ptr() != whole.data_ptr()
    save_weights(tmp_path / "w", tensors)
    copy_weights(tmp_path / "w", tmp_path / "copy")
    read = load_weights(tmp_path / "copy")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_step_that_exceeds_the_memory_leaves_nothing_behind(caplog):
    """Its gradients may still be on their way when it is repeated in smaller pieces."""
    hosted, plain = engine_of("optimizer", history_chunk=4), engine_of("none")
    losses = hosted._losses

    def exceeded(parts, items):
        losses(parts, items)
        hosted._losses = losses
        raise torch.OutOfMemoryError("CUDA out of memory")

    hosted._losses = exceeded
    assert take(hosted, 0, 2) == take(plain, 0, 2)
    assert hosted.history_chunk == 2
    assert_same_weights(plain, hosted)


def test_what_goes_wrong_while_gradients_are_added_ends_the_step(monkeypatch):
    hosted = engine_of("optimizer")
    monkeypatch.setattr(HostedWeights, "_add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take(hosted, 0, 1)


def test_heavy_weights_stay_on_the_host_and_all_else_moves():
    model = build("hllm", 0.0)
    heavy = {id(p) for layer in model.heavy_layers() for p in layer.parameters()}
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    place(model, torch.device("meta"), hosted=True)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, value) in before.items():
        if id(parameter) in heavy:
            assert after[name] is parameter
            assert torch.equal(parameter, value)
        else:
            assert after[name].device.type == "meta"
    assert model.tokens.device.type == "meta"
    place(model, torch.device("meta"), hosted=False)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("room", [20, 1000])
def test_chunks_are_few_where_each_costs_an_exchange(monkeypatch, room):
    """The first one keeps its graph, and each is as large as the room that its graph may take."""
    loss, expected, _, _ = gradients(monkeypatch)
    monkeypatch.setattr(item_embedding.ItemEmbedder, "few_chunks", True)
    few_loss, got, calls, embedder = gradients(monkeypatch, room)
    assert few_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    with_graph = sum(grad for _, grad in calls) - 1  # one looks whether there is a gradient
    assert with_graph - len(embedder.memory.graphs) == 1
    assert isinstance(embedder.memory, FakeMemory)
    assert all(graph <= max(12, 0.85 * room) + 7 for graph in embedder.memory.graphs)


def on_gpu(monkeypatch, gigabytes, host=10_000 * GIGABYTE):
    """Memory of a GPU and of the host."""
    monkeypatch.setattr(engines, "_memory", lambda device: int(gigabytes * GIGABYTE))
    monkeypatch.setattr(engines, "available_memory", lambda: host)


class Large(nn.Module):
    """13 billion weights in heavy layers and half a billion word vectors, on no device."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.words, self.layer = nn.Embedding(125_696, 4096), nn.Linear(13_000_000, 1000, bias=False)

    def heavy_layers(self):
        return [self.layer]


def test_the_host_is_used_where_the_gpu_alone_is_too_small(monkeypatch):
    def chosen(gigabytes, count=1, **execution):
        settings = ExecutionSettings(**{"precision": "bf16"} | execution)
        on_gpu(monkeypatch, gigabytes)
        found = resolved(settings, Large(), CPU, Processes(0, count))
        return found.engine, found.offload

    assert chosen(400) == ("single", "none")
    assert chosen(80) == ("single", "optimizer")
    assert chosen(80, precision="fp32") == ("zero3", "all")  # copies of 4 bytes do not fit
    assert chosen(400, offload="optimizer") == ("single", "optimizer")
    assert chosen(80, 2) == ("zero3", "optimizer")
    assert chosen(400, engine="single", offload="optimizer") == ("single", "optimizer")


def test_neither_gpu_nor_host_is_one_sentence(monkeypatch, caplog):
    """Where the host is named, it is tried: some hosts get their memory only when it is used."""
    on_gpu(monkeypatch, 80, host=130 * GIGABYTE)
    says = r"13.0 billion weights.* need 208 GB of the host, which has 12\d GB left; use more GPUs"
    with pytest.raises(UserError, match=f"the GPU's memory does not suffice, and {says}"):
        resolved(ExecutionSettings(precision="bf16"), Large(), CPU, Processes())
    on_gpu(monkeypatch, 80, host=10)
    engine_of("optimizer")
    assert "goes on because execution.offload says so, but 0.0 billion weights" in caplog.text


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_is_too_large_for_the_gpu_ranks_from_the_host(monkeypatch, bf16):
    items, model = torch.arange(5), build("hllm", 0.0)
    plain = place_to_rank(model, CPU, bf16=bf16)
    with torch.no_grad(), plain():
        expected = model.embed_items(items)
    on_gpu(monkeypatch, 1e-6)
    hosted = place_to_rank(model, CPU, bf16=bf16)
    assert isinstance(hosted._copies, HostedWeights)
    with torch.no_grad(), hosted():
        assert torch.equal(model.embed_items(items), expected)
        assert model.heavy_layers()[0].mlp.up_proj.weight.dtype == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize(("engine", "kept"), [("ddp", "optimizer"), ("single", "all"), ("ddp", "all")])
def test_engines_say_what_they_cannot_keep_on_the_host(engine, kept):
    settings = ExecutionSettings(engine=engine, offload=kept)
    with pytest.raises(UserError, match=rf"execution.offload: {kept} with engine {engine} is not possible: single .*"):
        resolved(settings, build("sasrec", 0.0), CPU, Processes())


def test_the_engine_says_where_it_keeps_what(caplog):
    with caplog.at_level(logging.INFO):
        engine_of("optimizer")
    assert "kept on the host, updated by 1 of its" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_on_a_gpu_the_steps_are_those_of_the_plain_engine(precision, tolerance, compile, monkeypatch):
    """By items chunked as memory allows, with pieces that come round often."""
    monkeypatch.setattr(offload, "_PIECE", 64)
    more = {"device": torch.device("cuda", 0), "precision": precision, "compile": compile, "item_chunk": None}
    plain, hosted = (engine_of(kept, **more) for kept in ("none", "optimizer"))
    heavy = {id(p) for layer in hosted.model.heavy_layers() for p in layer.parameters()}
    assert all((p.device.type == "cpu") == (id(p) in heavy) for p in hosted.model.parameters())
    assert take(hosted, 0, 4) == pytest.approx(take(plain, 0, 4), abs=tolerance)
    assert_same_weights(plain, hosted, atol=0.05 if precision == "bf16" else 2e-4, rtol=1e-4)
    assert hosted.seconds["sums"] > 0
