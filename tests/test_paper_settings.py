"""Preset paper against the settings of the paper's scripts, transcribed here once more, row by row (paper, table 7)."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmark.analysis.published import find_published
from benchmark.data.batches import Negatives, TrainingBatches
from benchmark.data.dataset import load_dataset
from benchmark.experiments import Configuration
from benchmark.processes import Processes
from benchmark.training.engine import Engine
from tests.training.interactions import prepared

ROOT = Path(__file__).parent.parent

# row: sequences a GPU x GPUs, negatives, learning rate, schedule, warm-up, weight decay, epochs, patience, training and
# test length, windows, seed, precision
PIXEL = {
    "HLLM-1B": (32 * 16, 5632, "shared", 1e-4, "cosine", 0.1, 0.01, 5, 5, 10, 10, "all", 2020, "bf16"),
    "SASRec": (8 * 64, 5632, "shared", 1e-4, "constant", 0, 0.1, 50, 5, 10, 10, "all", 2020, "fp32"),
    "HSTU": (8 * 64, 5632, "shared", 1e-4, "constant", 0, 0.1, 50, 5, 10, 10, "all", 2020, "fp32"),
}
BOOKS = {
    "HLLM-1B": (16 * 8, 512, "shared", 1e-4, "cosine", 0.1, 0.01, 5, 5, 50, 50, "all", 2020, "bf16"),
    "SASRec": (8 * 16, 512, "per_position", 1e-3, "constant", 0, 0, 201, 10, 50, 50, "all", 2020, "fp32"),
    "HSTU-large": (8 * 16, 512, "per_position", 1e-3, "constant", 0, 0, 201, 10, 50, 50, "all", 2020, "fp32"),
    "HSTU-1B": (16 * 8, 512, "per_position", 1e-3, "constant", 0, 0.1, 201, 10, 50, 50, "all", 2020, "bf16"),
    "SASRec-1B": (16 * 8, 512, "per_position", 1e-3, "cosine", 0, 0.1, 201, 10, 50, 50, "all", 2020, "bf16"),
}
BOOKS_28K = {
    "HLLM-1B": (128 * 4, 28672, "shared", 1e-4, "cosine", 0.15, 0.01, 5, 5, 55, 50, "last", 42, "bf16"),
    "HLLM-7B": (128 * 4, 28672, "shared", 1e-4, "cosine", 0.15, 0.01, 5, 5, 55, 50, "last", 42, "bf16"),
    "HLLM-1B-Scratch": (128 * 4, 28672, "shared", 1e-4, "cosine", 0.15, 0.01, 5, 5, 55, 50, "last", 42, "bf16"),
    "HSTU-large": (8 * 64, 28672, "shared", 1e-3, "constant", 0, 0, 201, 10, 55, 55, "last", 42, "fp32"),
}
TINYLLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip
MODELS = {  # in the order of the blocks
    (0, "SASRec"): {"layers": 2, "heads": 4, "width": 512, "feedforward_multiplier": 1, "dropout": 0.1},
    (0, "HSTU"): {"layers": 2, "heads": 4, "width": 512, "dropout": 0.1, "relative_bias": False},
    (2, "SASRec"): {"layers": 4, "heads": 4, "width": 64, "feedforward_multiplier": 1, "dropout": 0.5},
    (2, "HSTU-large"): {"layers": 16, "heads": 8, "width": 64, "dropout": 0.5, "relative_bias": False},
    (2, "HSTU-1B"): {"layers": 22, "heads": 32, "width": 2048, "dropout": 0.5},
    (2, "SASRec-1B"): {"item_width": 512},
    (3, "HSTU-large"): {"layers": 16, "heads": 8, "width": 64, "dropout": 0.5},
}
FIXED_TEMPERATURE = {
    (0, "HSTU-1B"),
    (0, "SASRec-1B"),
    (2, "HSTU-1B"),
    (2, "SASRec-1B"),
    (3, "HSTU-large"),
    (3, "SASRec"),
}


@pytest.fixture(scope="module")
def blocks():
    return Configuration(ROOT / "config").plan("table7", "paper").blocks


@pytest.mark.parametrize(
    ("block", "label", "wanted"),
    [(n, *row) for n, rows in ((0, PIXEL), (2, BOOKS), (3, BOOKS_28K)) for row in rows.items()],
)
def test_every_row_of_table_7_has_the_settings_of_its_script(blocks, block, label, wanted):
    run = next(row.runs[0] for row in blocks[block].rows if row.label == label)
    training = run.training
    assert wanted == (
        training.global_batch, training.negatives.count, training.negatives.sharing,
        training.optimizer.learning_rate, training.schedule.kind, training.schedule.warmup,
        training.optimizer.weight_decay, training.epochs, training.patience, training.sequence_length,
        run.evaluation.sequence_length, training.windows, run.seed, run.execution.precision,
    )  # fmt: skip
    assert (training.optimizer.betas, training.negatives.mask) == ((0.9, 0.999), "cosine")
    assert (training.selection, training.selection_metric, run.evaluation.mask) == ("best", "ndcg@200", "whole")


def test_models_texts_and_temperatures(blocks):
    for number, block in enumerate(blocks):
        for row in block.rows:
            run = row.runs[0]
            model = run.model
            for key, value in MODELS.get((number, row.label), {}).items():
                assert model[key] == value, (row.label, key)
            if number != 1:
                learned = run.training.temperature.learnable
                assert learned == ((number, row.label) not in FIXED_TEMPERATURE), row.label
                assert run.training.temperature.initial == (0.07 if learned else 0.05)
            if run.method == "hllm-1b":
                for role in ("item_model", "user_model"):
                    assert model[role]["config"].items() >= TINYLLAMA.items()
                    assert model[role].get("checkpointing", False) == (number >= 2)
                    assert model[role].get("pretrained", True) == (row.label != "HLLM-1B-Scratch")
            if run.text is not None:
                fields = ["title", "tag", "description"] if number == 0 else ["title", "description"]
                assert (run.text["fields"], run.text["text_length"]) == (fields, 256)
                assert run.text["prompt"] == "Compress the following sentence into embedding: "


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """1,200 users with 60 training events or fewer, among as many items as Books has."""
    plain = load_dataset(prepared(tmp_path_factory.mktemp("paper"), users=3))
    lengths = np.random.default_rng(0).integers(3, 61, 1200)
    offsets, events, items = np.append(0, (lengths + 2).cumsum()), int((lengths + 2).sum()), 686_623
    counts = replace(plain.card.counts, users=len(lengths), items=items, interactions=events)
    return replace(
        plain,
        card=replace(plain.card, counts=counts),
        items=np.random.default_rng(1).integers(0, items, events).astype(np.int32),
        timestamps=np.arange(events),
        offsets=offsets,
        split=np.stack([lengths, lengths, lengths + 1], axis=1).astype(np.int32),
        labels=None,
    )


@pytest.mark.parametrize("gpus", [1, 8, 128])
def test_batch_negatives_and_steps_are_the_papers_on_any_number_of_gpus(blocks, dataset, gpus):
    """The windows of all GPUs together are the batch of the paper's table, none twice, with the same negatives."""
    trained = {}
    for number, rows in ((0, PIXEL), (2, BOOKS), (3, BOOKS_28K)):
        for row in blocks[number].rows:
            if row.label in rows:
                trained[rows[row.label][:3] + rows[row.label][9:12:2]] = row.runs[0].training
    assert len(trained) == 4
    for (batch, negatives, sharing, length, windows), training in trained.items():
        made = TrainingBatches(
            dataset, sequence_length=training.sequence_length, windows=training.windows,
            global_batch=training.global_batch, seed=2020,
            negatives=Negatives(training.negatives.count, training.negatives.sharing),
        )  # fmt: skip
        events = dataset.split[:, 0].tolist()
        cut = len(events) if windows == "last" else sum(max(1, n // (length + 1)) for n in events)
        assert made.steps_per_epoch == math.ceil(cut / batch)
        whole = made.batch(0)
        shares = [
            part for rank in range(gpus)
            for part in Engine._parts(SimpleNamespace(processes=Processes(rank, gpus), history_chunk=None), whole)
        ]  # fmt: skip
        assert len(shares) == gpus
        assert sum(len(part) * weight for part, weight in shares) == batch
        assert torch.cat([part.sequences.items for part, _ in shares]).equal(whole.sequences.items)
        assert sum(float(part.shares.sum()) for part, _ in shares) == pytest.approx(1)
        for part, _ in shares:
            own = () if sharing == "shared" else (len(part.targets),)
            assert part.negatives.shape == (*own, negatives)
        assert sharing != "shared" or all(part.negatives.equal(whole.negatives) for part, _ in shares)


def test_steps_an_epoch_of_books_follow_from_its_users(blocks):
    """One window a user: 694,897 of them in steps of 512."""
    for row in blocks[3].rows:
        run = row.runs[0]
        users = run.dataset_definition["expected"]["users"]
        assert (users, math.ceil(users / run.training.global_batch)) == (694_897, 1358)


@pytest.mark.parametrize("gpus", [1, 8, 128])
def test_how_many_gpus_there_are_is_no_part_of_a_run(blocks, gpus):
    for block in blocks:
        for row in block.rows:
            run = row.runs[0]
            execution = run.execution.model_copy(update={"nodes": -(-gpus // 8), "processes": min(gpus, 8)})
            assert run.model_copy(update={"execution": execution}).identity() == run.identity()


def test_rows_of_one_experiment_have_one_plan_and_one_published_number():
    """TinyLlama for items with SASRec for users stands in tables 5, 6 and 10; with a new TinyLlama in 2 and 6."""
    made = Configuration(ROOT / "config")
    for places in (
        [("scaling_item", "TinyLlama"), ("scaling_user", "SASRec"), ("table10", "[ITEM]")],
        [("table2", "Item pre-trained, User scratch"), ("scaling_user", "TinyLlama")],
    ):
        runs, numbers = set(), set()
        for table, label in places:
            plan = made.plan(table, "paper")
            row = next(row for row in plan.blocks[0].rows if row.label == label)
            runs.add(row.runs[0].id)
            found = find_published(ROOT / plan.file.published, row.row.published, plan.file.metrics)
            numbers.add(tuple(found.digits[name] for name in plan.file.metrics))
        assert (len(runs), len(numbers)) == (1, 1)


def test_negatives_are_those_that_the_released_code_gathers(blocks):
    for number in (0, 3):
        training = blocks[number].rows[0].runs[0].training
        assert training.negatives.count == (training.sequence_length + 1) * training.global_batch


def test_every_choice_of_ours_is_told_with_its_reason(blocks):
    for block in blocks:
        for row in block.rows:
            assert all(len(reason) > 20 for reason in row.choices.values())
    pixel_1b = next(row for row in blocks[0].rows if row.label == "HSTU-1B")
    assert {"training.optimizer", "training.temperature", "training.epochs"} <= set(pixel_1b.choices)


def test_the_rows_of_table_9_are_told_to_be_our_choice():
    """What the paper reads in its table 9 is not known here, so no row may look as if it were the paper's."""
    (block,) = Configuration(ROOT / "config").plan("table9", "paper").blocks
    for row in block.rows:
        assert {"dataset", "text.fields", "text.text_length"} <= set(row.choices)
        assert row.row.published is None
