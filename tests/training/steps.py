"""A few steps of a small model in any engine, for tests of engines against each other."""

import torch

from baselines.sasrec import SASRec, SASRecSettings
from benchmark.data.batches import TrainingBatch
from benchmark.experiments import ExecutionSettings, OptimizerSettings
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.engines import make_engine
from benchmark.training.objectives import InfoNCE, Temperature
from models.hllm import HLLM, HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings

ITEMS, USERS, STEPS = 14, 5, 3
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
RUNS = {
    ("hllm", 0.0): ("ddp none", "zero1 none", "zero2 none", "zero3 none", "zero2 optimizer", "zero3 all"),
    ("hllm", 0.3): ("ddp none", "zero2 none", "zero3 none"),
    ("sasrec", 0.0): ("zero2 none", "zero3 none"),
}


def build(method, dropout):
    """With dropout, HLLM recomputes its activations as well."""
    torch.manual_seed(1)
    if method == "sasrec":
        return SASRec(Catalogue(ITEMS), 8, SASRecSettings(heads=2, width=8, dropout=dropout, attention_dropout=dropout))
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 12, (ITEMS,), generator=generator)
    tokens = torch.randint(30, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    backbone = {"config": LLAMA | {"attention_dropout": dropout}, "checkpointing": dropout > 0}
    return HLLM(Catalogue(ITEMS, tokens, offsets, 30), 8,
                HLLMSettings(BackboneSettings(**backbone), UserModelSettings(**backbone)))  # fmt: skip


def batch_of(step):
    """Five windows, so that one of two processes has one more than the other."""
    generator = torch.Generator().manual_seed(100 + step)
    lengths = torch.randint(2, 9, (USERS,), generator=generator)
    items, targets = torch.randint(ITEMS, (2, int(lengths.sum())), generator=generator)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    sequences = PackedSequences(items, items, items, offsets, int(lengths.max()))
    return TrainingBatch(sequences, targets, torch.randint(ITEMS, (6,), generator=generator))


def steps(method, dropout, engine, processes):
    """(losses, weights after them, None in other processes than the first)"""
    name, offload = engine.split()
    execution = ExecutionSettings(device="cpu", engine=name, offload=offload, item_chunk=4, history_chunk=2)
    optimizer = OptimizerSettings(learning_rate=0.01, weight_decay=0.1)
    made = make_engine(build(method, dropout), InfoNCE(Temperature()), optimizer, execution, torch.device("cpu"),
                       processes, 8)  # fmt: skip
    made.model.train()
    seeds = (step * processes.count + processes.rank for step in range(STEPS))
    return [float(made.step(batch_of(step), seed=seed).loss) for step, seed in enumerate(seeds)], made.weights()
