"""Preset paper against the settings of the paper's scripts, transcribed here once more, row by row (paper, table 7)."""

from pathlib import Path

import numpy as np
import pytest

from benchmark.data.batches import training_windows
from benchmark.experiments import Configuration

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


@pytest.mark.parametrize("gpus", [1, 8, 128])
def test_the_batch_of_a_step_is_the_same_on_any_number_of_gpus(blocks, gpus):
    """What a GPU gets divides the run's numbers; none of them, and not the run's id, depends on how many there are."""
    lengths = np.full(1000, 20)
    for block in (blocks[0], blocks[2], blocks[3]):
        for row in block.rows:
            run = row.runs[0]
            training = run.training
            assert training.global_batch % gpus == 0
            assert training.negatives.count % gpus == 0
            starts, _ = training_windows(
                lengths, lengths.cumsum() - lengths, training.sequence_length, training.windows
            )
            steps = -(-len(starts) // training.global_batch)
            a_gpu = training.global_batch // gpus
            assert steps == -(-len(starts) // (a_gpu * gpus))
            other = run.model_copy(update={"execution": run.execution.model_copy(update={"item_chunk": 4096 // gpus})})
            assert other.identity() == run.identity()


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
