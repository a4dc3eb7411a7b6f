"""What a plan reckons: operations and memory by hand, weights against models that are really made, and the verb."""

from pathlib import Path

import numpy as np
import pytest

from benchmark.analysis.cost import (
    DataFacts,
    Gpu,
    ModelSize,
    estimated_lengths,
    fitting_engine,
    gpu_hours,
    held_bytes,
    host_bytes,
    load_assumptions,
    measured_utilisation,
    work_of,
)
from benchmark.commands.plan import data_facts, model_size, plan
from benchmark.data.batches import Negatives, TrainingBatches
from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.experiments import Configuration
from benchmark.recommender import Catalogue
from benchmark.training import registry
from tests.training.interactions import prepared
from tests.training.test_trainer import a_run

ROOT = Path(__file__).parent.parent.parent


def test_the_work_of_an_epoch_by_hand():
    run = a_run(sequence_length=3, global_batch=2, negatives={"count": 5}, epochs=7)
    facts = DataFacts(users=3, items=1000, lengths=np.array([4, 8, 1]), weight=1.0, tokens=10, measured=True)
    work = work_of(run, facts, ModelSize(parameters=300, learned=300, item=100, history=200, width=8))
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
    work = work_of(run, facts, ModelSize(1, 1, 0, 1, 1))
    assert work.steps == batches.steps_per_epoch
    assert work.positions == sum(batches.batch(s).sequences.items.numel() for s in range(batches.steps_per_epoch))


def test_memory_of_each_engine():
    size = ModelSize(parameters=120, learned=100, item=0, history=100, width=1)
    assert held_bytes(size, 1) == {"single": 16 * 100 + 4 * 20}
    layered = ModelSize(120, 100, 0, 100, 1, layers=90, learned_layers=80)  # 20 learned and 10 frozen ones elsewhere
    assert held_bytes(layered, 1)["single, offload"] == 2 * 90 + 16 * 20 + 4 * 10
    assert held_bytes(layered, 1, copies=4)["single, offload"] == 4 * 90 + 16 * 20 + 4 * 10
    assert host_bytes(layered, "single, offload") == 16 * 80 + 4 * 10
    assert host_bytes(layered, "single") == 0
    assert held_bytes(size, 4) == {"ddp": 1680, "zero1": 1080, "zero2": 780, "zero3": 420}
    gpu = Gpu(memory_gib=1000 / 2**30, bf16=1, fp32=1)
    assert fitting_engine(size, 4, gpu, 0.8) == ("zero2", 780)
    assert fitting_engine(size, 4, gpu, 0.1) == (None, 420)


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
    assert (size.width, size.layers) == (2048, 2 * 22 * layer)
    runs = {run.id: run for run in made.plan("table8", "paper").runs()}
    [cached] = [run for run in runs.values() if run.method == "hllm-1b-cached"]
    alone = model_size(cached, facts, runs)
    assert (alone.item, alone.history, alone.layers) == (0, size.history, 22 * layer)


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
        "method,part,utilisation,device,offload\nhllm-7b,train,0.2,NVIDIA H100,optimizer\n"
        "hllm-7b,train,0.5,NVIDIA H100,\n"
    )
    assert measured_utilisation(path, "hllm-7b", "H100", "single, offload") == 0.2
    assert measured_utilisation(path, "hllm-7b", "H100", "zero3") == 0.5


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
    plan("table7", preset="paper", gpu="H100", gpus=1, price=None, effect=5.0, data=tmp_path)
    seven = next(line for line in capsys.readouterr().out.splitlines() if "HLLM-7B" in line)
    assert "31.8 GiB  single, offload (193.0 GiB on the host)" in seven
    with pytest.raises(UserError, match="has no GPU 'T4'; it has: A100"):
        plan("table7", preset="paper", gpu="T4", gpus=1, price=None, effect=5.0, data=tmp_path)
    assumptions = load_assumptions(ROOT / "config/costs.yaml")
    run = Configuration(ROOT / "config").plan("table7", "paper").runs()[0]
    with pytest.raises(UserError, match="is not prepared and its definition has no expected counts"):
        data_facts(run.model_copy(update={"dataset_definition": {}}), tmp_path, assumptions)
