"""DeepSpeed's ZeRO over two processes takes the steps of the plain engine, in chunks and with dropout, for a model of
language models and for one with an item table."""

import pytest
import torch

from baselines.sasrec import SASRec, SASRecSettings
from benchmark.data.batches import TrainingBatch
from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings, OptimizerSettings
from benchmark.processes import Processes, joined
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.engines import chosen_engine, make_engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.zero import zero_settings
from models.hllm import HLLM, HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings
from tests.training.test_distributed import as_torchrun_would, together

ITEMS, USERS, STEPS = 14, 5, 4
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
ENGINES = ("ddp none", "zero1 none", "zero2 none", "zero3 none", "zero2 optimizer", "zero3 all")
CASES = (("hllm", 0.0), ("hllm", 0.3), ("sasrec", 0.0))


def build(method, dropout):
    torch.manual_seed(1)
    if method == "sasrec":
        return SASRec(Catalogue(ITEMS), 8, SASRecSettings(heads=2, width=8, dropout=dropout, attention_dropout=dropout))
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 12, (ITEMS,), generator=generator)
    tokens = torch.randint(30, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    backbone = {"config": LLAMA | {"attention_dropout": dropout}}
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


def work(rank, port, folder):
    as_torchrun_would(rank, port)
    with joined() as processes:
        found = {(case, engine): steps(*case, engine, processes) for case in CASES for engine in ENGINES}
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    assert together(work, folder) == [0, 0]
    return torch.load(folder / "found.pt", weights_only=True)


def assert_same(one, other):
    assert other[0] == pytest.approx(one[0], abs=1e-5)
    assert other[1].keys() == one[1].keys()
    for name, weight in one[1].items():  # AdamW makes steps of 0.01 of the smallest gradients too
        torch.testing.assert_close(other[1][name], weight, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["hllm", "sasrec"])
def test_two_processes_take_the_steps_of_one(found, method, engine):
    assert_same(steps(method, 0.0, "single none", Processes()), found[(method, 0.0), engine])


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_with_dropout_they_take_those_of_the_plain_engine(found, engine):
    """Which of as many processes: each has dropout of its own."""
    plain, dry = found[("hllm", 0.3), "ddp none"], found[("hllm", 0.0), "ddp none"]
    assert plain[0] != pytest.approx(dry[0], abs=1e-3)  # there is dropout
    assert_same(plain, found[("hllm", 0.3), engine])


def test_the_engine_is_the_first_that_fits():
    gigabyte, llm, seven = 10**9, 2_200_000_000, 13_500_000_000  # two of 1.1 and of 7 billions
    assert chosen_engine(llm, None, 1) == ("single", "none")
    assert chosen_engine(llm, 80 * gigabyte, 1) == ("single", "none")
    assert chosen_engine(llm, 80 * gigabyte, 2) == ("ddp", "none")
    assert chosen_engine(llm, 40 * gigabyte, 8) == ("zero2", "none")
    assert chosen_engine(llm, 24 * gigabyte, 8) == ("zero3", "none")
    assert chosen_engine(llm, 40 * gigabyte, 1) == ("zero2", "optimizer")
    assert chosen_engine(seven, 80 * gigabyte, 8) == ("zero3", "none")
    assert chosen_engine(seven, 80 * gigabyte, 2) == ("zero3", "optimizer")
    assert chosen_engine(seven, 24 * gigabyte, 2) == ("zero3", "all")


def test_what_an_engine_cannot_keep_on_the_host_is_said():
    with pytest.raises(UserError, match=r"offload: all needs execution.engine: zero3, and it is zero2"):
        zero_settings(2, "all", 10, torch.device("cpu"))
    optimizer = OptimizerSettings(learning_rate=0.1, weight_decay=0)
    execution = ExecutionSettings(engine="single", offload="optimizer")
    with pytest.raises(UserError, match=r"offload: optimizer needs .* zero3, not single"):
        make_engine(build("sasrec", 0.0), InfoNCE(Temperature()), optimizer, execution, torch.device("cpu"),
                    Processes(), 8)  # fmt: skip
