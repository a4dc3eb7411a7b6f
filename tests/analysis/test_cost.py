"""What a plan reckons: operations and memory by hand, weights against models that are really made, and the verb."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.analysis.cost import (
    DataFacts,
    ModelSize,
    estimated_lengths,
    gpu_hours,
    load_assumptions,
    measured_utilisation,
    work_of,
)
from benchmark.commands.plan import data_facts, model_size, plan
from benchmark.data.batches import Negatives, TrainingBatches
from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.experiments import Configuration, ExecutionSettings
from benchmark.experiments.engine_choice import EngineChoice, Weights
from benchmark.processes import Processes
from benchmark.recommender import Catalogue
from benchmark.training import engines, registry
from tests.training.interactions import prepared
from tests.training.test_trainer import a_run

ROOT = Path(__file__).parent.parent.parent


def test_the_work_of_an_epoch_by_hand():
    run = a_run(sequence_length=3, global_batch=2, negatives={"count": 5}, epochs=7)
    facts = DataFacts(users=3, items=1000, lengths=np.array([4, 8, 1]), weight=1.0, tokens=10, measured=True)
    work = work_of(run, facts, ModelSize(Weights(300), item=100, history=200, width=8))
    # Windows of 4 events: one, two and none, each of 3 inputs and a target; two steps of at most two windows.
    assert (work.steps, work.positions) == (2, 9)
    distinct = 1000 * (1 - np.exp(-5 / 1000))
    assert work.item_tokens == pytest.approx(10 * (9 + 3 + 2 * distinct))
    assert work.training == pytest.approx(6 * 100 * work.item_tokens + 6 * 200 * 9 + 6 * 9 * 5 * 8)
    read = 4 + 6 + 1  # evaluation reads 6 events at most
    assert work.evaluation == pytest.approx(2 * 100 * 1000 * 10 + 2 * 200 * read + 2 * 3 * 1000 * 8)
    whole = 7 * work.training + 8 * work.evaluation  # a validation after each epoch, and the test
    assert gpu_hours(run, work, 1, 1e3, 0) == pytest.approx(whole / 1e3 / 3600)
    assert gpu_hours(run, work, 4, 1e9, 0.5) == pytest.approx(4 * 7 * 2 * 0.5 / 3600)


def test_steps_and_events_are_those_that_the_trainer_takes(tmp_path):
    dataset = load_dataset(prepared(tmp_path, users=60))
    run = a_run()
    facts = DataFacts(60, dataset.item_count, np.asarray(dataset.split[:, 0], np.int64), 1.0, 0, measured=True)
    batches = TrainingBatches(
        dataset, sequence_length=6, windows="all", global_batch=8, negatives=Negatives(20, "shared"), seed=3
    )
    work = work_of(run, facts, ModelSize(Weights(1), 0, 1, 1))
    assert work.steps == batches.steps_per_epoch
    assert work.positions == sum(batches.batch(s).sequences.items.numel() for s in range(batches.steps_per_epoch))


def test_negatives_in_the_batch_are_its_windows_whatever_the_count():
    facts = DataFacts(users=3, items=1000, lengths=np.array([4, 8, 1]), weight=1.0, tokens=10, measured=True)
    size = ModelSize(Weights(300), item=100, history=200, width=8)
    for count in (1, 512):
        run = a_run(sequence_length=3, global_batch=3, negatives={"count": count, "sharing": "in_batch"})
        work = work_of(run, facts, size)
        assert (work.steps, work.positions) == (1, 9)  # three windows
        assert work.item_tokens == pytest.approx(10 * (9 + 3))  # each window's last target is embedded once
        assert work.training == pytest.approx(6 * 100 * work.item_tokens + 6 * 200 * 9 + 6 * 9 * 3 * 8)


class Sized(nn.Module):
    """As many weights as asked for, on no device."""

    def __init__(self, weights):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Embedding(1, weights.learned_layers)
            self.words = nn.Embedding(1, weights.learned - weights.learned_layers)

    def heavy_layers(self):
        return [self.layer]


@pytest.mark.parametrize(
    ("gpus", "gibibytes", "engine"),
    [
        (1, "31.8", "single, offload optimizer (193.0 GiB on the host)"),
        (2, "25.1", "zero3, offload optimizer (250.8 GiB on the host)"),
        (5, "10.0", "zero3, offload optimizer (250.8 GiB on the host)"),
        (7, "43.0", "zero3"),  # 24 bytes a weight: 16 would do for 5 GPUs
    ],
)
def test_a_plan_tells_the_engine_that_training_takes(monkeypatch, capsys, tmp_path, gpus, gibibytes, engine):
    monkeypatch.chdir(ROOT)
    plan("table7", preset="paper", gpu="H100", gpus=gpus, price=None, effect=5.0, data=tmp_path)
    line = next(line for line in capsys.readouterr().out.splitlines() if "HLLM-7B" in line)
    assert re.search(rf" {gibibytes} GiB +{re.escape(engine)}  ", line)
    run = next(r for r in Configuration(ROOT / "config").plan("table7", "paper").runs() if r.method == "hllm-7b")
    weights = model_size(run, DataFacts(10, 50, np.full(10, 20), 1.0, 10, measured=True), {}).weights
    monkeypatch.setattr(engines, "_memory", lambda device: 80 * 2**30)
    monkeypatch.setattr(engines, "available_memory", lambda: 2**50)
    taken = engines.resolved(
        ExecutionSettings(precision="bf16"), Sized(weights), torch.device("cpu"), Processes(0, gpus)
    )
    assert engine.startswith(taken.engine if taken.offload == "none" else f"{taken.engine}, offload {taken.offload} ")


def test_typical_users_have_the_published_number_of_events():
    lengths = estimated_lengths(694_897, 10_053_086, 5)
    assert lengths.min() == 5
    assert lengths.mean() == pytest.approx(10_053_086 / 694_897, rel=0.01)


def test_weights_are_counted_without_being_made():
    made = Configuration(ROOT / "config")
    facts = DataFacts(10, 50, np.full(10, 20), 1.0, 10, measured=True)
    for run in made.plan("table7", "laptop").runs():
        if run.method in ("sasrec", "hstu", "hstu-hllm"):
            length = max(run.training.sequence_length, run.evaluation.sequence_length)
            model = registry.build(run.class_, run.model, Catalogue(50), length)
            assert model_size(run, facts, {}).parameters == sum(p.numel() for p in model.parameters()), run.label
    hllm = next(run for run in made.plan("table7", "paper").runs() if run.method == "hllm-1b")
    size = model_size(hllm, facts, {})
    # TinyLlama without its head: 22 layers of 4.4e7 weights, and one table of 32,000 x 2,048 word vectors.
    layer = 2048 * (2048 + 2 * 256 + 2048) + 3 * 2048 * 5632 + 2 * 2048
    assert size.history == 22 * layer + 2048
    assert size.item == size.history + 2048  # [ITEM]
    assert size.parameters == size.item + size.history + 32000 * 2048
    assert (size.width, size.weights.learned_layers) == (2048, 2 * 22 * layer)
    runs = {run.id: run for run in made.plan("table8", "paper").runs()}
    [cached] = [run for run in runs.values() if run.method == "hllm-1b-cached"]
    alone = model_size(cached, facts, runs)
    assert (alone.item, alone.history, alone.weights.learned_layers) == (0, size.history, 22 * layer)


def test_measured_speed_has_the_last_word(tmp_path):
    path = tmp_path / "speed.csv"
    assert measured_utilisation(path, "hllm-1b", "H100") is None
    path.write_text(
        "method,part,utilisation,device\nhllm-1b,train,0.5,NVIDIA H100 80GB\nhllm-1b,train,0.6,NVIDIA H100 80GB\n"
        "hllm-1b,encode,0.9,NVIDIA H100 80GB\nsasrec,train,,NVIDIA H100 80GB\n"
    )
    assert measured_utilisation(path, "hllm-1b", "H100") == pytest.approx(0.55)
    assert measured_utilisation(path, "hllm-1b", "A100") is None
    assert measured_utilisation(path, "sasrec", "H100") is None
    path.write_text(
        "method,part,utilisation,device,engine,offload\nhllm-7b,train,0.2,NVIDIA H100,single,optimizer\n"
        "hllm-7b,train,0.5,NVIDIA H100,auto,\n"
    )
    assert measured_utilisation(path, "hllm-7b", "H100", EngineChoice("single", "optimizer", 0)) == 0.2
    assert measured_utilisation(path, "hllm-7b", "H100", EngineChoice("zero3", "none", 0)) == 0.5
    assert measured_utilisation(path, "hllm-7b", "H100", EngineChoice("zero3", "optimizer", 0)) is None


def test_the_verb_prints_every_run_and_refuses_what_it_does_not_know(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    plan("table7", preset="paper", gpu="H100", gpus=16, price=2.0, effect=5.0, data=tmp_path)
    out = capsys.readouterr().out
    for label in ("HLLM-1B-Scratch", "HLLM-7B", "HSTU-large", "SASRec (2018)"):
        assert label in out
    assert "3,149 A100 hours (32 for 4.1 days)" in out
    pixel = {line.split()[0]: line for line in out.split("\n\n")[0].splitlines()[3:8]}
    assert {name for name, line in pixel.items() if "\N{DAGGER}" in line} == {"HSTU", "SASRec", "HSTU-1B", "SASRec-1B"}
    assert "lengths of histories estimated from published counts" in out
    with pytest.raises(UserError, match="has no GPU 'T4'; it has: A100"):
        plan("table7", preset="paper", gpu="T4", gpus=1, price=None, effect=5.0, data=tmp_path)
    assumptions = load_assumptions(ROOT / "config/costs.yaml")
    run = Configuration(ROOT / "config").plan("table7", "paper").runs()[0]
    with pytest.raises(UserError, match="is not prepared and its definition has no expected counts"):
        data_facts(run.model_copy(update={"dataset_definition": {}}), tmp_path, assumptions)
