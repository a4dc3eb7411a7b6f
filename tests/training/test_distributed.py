"""Two processes over gloo give what one gives: loss curve, weights and ranks, in every engine and across restarts."""

import itertools
import json
import multiprocessing
import os
import signal
import socket

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.data.batches import Negatives, TrainingBatches
from benchmark.data.dataset import load_dataset
from benchmark.errors import OneProcessError, StoppedError, UserError
from benchmark.evaluation.ranking import rank_cases
from benchmark.experiments import ExecutionSettings, OptimizerSettings
from benchmark.processes import Processes, joined
from benchmark.recommender import SequentialRecommender
from benchmark.training.checkpoint import load_weights
from benchmark.training.engines import make_engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.trainer import Trainer, ranking_settings, seeded
from tests.training.interactions import prepared
from tests.training.steps import RUNS, steps
from tests.training.test_trainer import a_run

ENGINES = ("ddp", "auto", "zero2", "zero3")
STOPPED_AFTER = 5


class Encoder(SequentialRecommender):
    """Items of different sizes cost a layer each; one weight stands on the model itself, past the layers' hooks."""

    def __init__(self, items, width=12):
        super().__init__()
        self.table, self.encode = nn.Embedding(items, width), nn.Linear(width, width)
        self.shift = nn.Parameter(torch.randn(width) / 10)
        self.step = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def embed_items(self, items):
        return self.encode(self.table(items.to(self.shift.device))) + self.shift

    def embed_histories(self, sequences, items):
        return self.step(items + self.shift)

    def item_sizes(self, items):
        return items % 7 + 1


class StopAfter:
    """A request to stop that comes while a step runs."""

    def __init__(self, step):
        self.step, self.trainer = step, None

    @property
    def by(self):
        return "SIGUSR1" if self.trainer and self.trainer.progress.step == self.step else None


def run_of(dataset, engine, *, chunks=(None, None)):
    """The last batch of an epoch holds one window: fewer than there are processes."""
    for length, batch in itertools.product(range(4, 9), range(9, 20)):
        windows = TrainingBatches(dataset, sequence_length=length, windows="all", global_batch=batch,
                                  negatives=Negatives(1, "shared"), seed=0).starts  # fmt: skip
        if len(windows) % batch == 1:
            break
    else:
        raise AssertionError("no batch size leaves one window over")
    run = a_run(sequence_length=length, global_batch=batch, epochs=3)
    execution = ExecutionSettings(device="cpu", engine=engine, item_chunk=chunks[0], history_chunk=chunks[1])
    return run.model_copy(update={"execution": execution})


def train(run, dataset, folder, processes=None, stop_after=None, device="cpu"):
    """Ranks of the test users, or None for a training that was stopped."""
    model = seeded(lambda: Encoder(dataset.item_count), run.seed)
    stop = StopAfter(stop_after)
    trainer = stop.trainer = Trainer(run, dataset, model, folder, torch.device(device), stop, processes)
    try:
        trainer.train()
    except StoppedError:
        return None
    (folder / "losses.json").write_text(json.dumps([row["loss"] for row in trainer.progress.record]))
    return rank_cases(model, dataset, dataset.cases("test"), ranking_settings(run), device, processes=processes).rank


def as_torchrun_would(rank, port):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def together(target, *arguments):
    """Run target(rank, port, ...) in two processes; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=target, args=(rank, port, *arguments)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    return [process.exitcode for process in both]


def work(rank, port, data, folder):
    """What each of the two processes does; the second one dies in the end."""
    as_torchrun_would(rank, port)
    dataset = load_dataset(data)
    try:
        with joined() as processes:
            for engine in ENGINES:
                ranks = train(run_of(dataset, engine, chunks=(4, 2)), dataset, folder / engine, processes)
                np.save(folder / engine / f"ranks{rank}.npy", ranks)
            train(run_of(dataset, "zero3"), dataset, folder / "stopped by two", processes, STOPPED_AFTER)
            train(run_of(dataset, "zero2"), dataset, folder / "stopped by one", processes)
            found = {(case, name): steps(*case, name, processes) for case, names in RUNS.items() for name in names}
            if rank == 0:
                torch.save(found, folder / "steps.pt")
            run = run_of(dataset, "ddp")
            trainer = Trainer(run, dataset, Encoder(dataset.item_count), folder / "lost", torch.device("cpu"),
                              processes=processes)  # fmt: skip
            trainer._train_step()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            trainer.train()
    except OneProcessError as error:
        (folder / "said.txt").write_text(str(error))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The folder in which one process, and two together, have trained the same run."""
    folder = tmp_path_factory.mktemp("distributed")
    data = prepared(folder / "data", users=30)
    dataset = load_dataset(data)
    np.save(folder / "one.npy", train(run_of(dataset, "single"), dataset, folder / "one"))
    assert train(run_of(dataset, "single"), dataset, folder / "stopped by one", stop_after=STOPPED_AFTER) is None
    assert together(work, data, folder) == [0, -signal.SIGKILL]
    train(run_of(dataset, "single"), dataset, folder / "stopped by two")
    return folder


def losses(folder):
    return json.loads((folder / "losses.json").read_text())


def assert_same_weights(folder, other):
    one, two = load_weights(folder / "model.safetensors"), load_weights(other / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_losses_weights_and_ranks_of_one(jobs, engine):
    assert losses(jobs / engine) == pytest.approx(losses(jobs / "one"), abs=1e-5)
    assert_same_weights(jobs / "one", jobs / engine)
    for process in range(2):
        np.testing.assert_array_equal(np.load(jobs / engine / f"ranks{process}.npy"), np.load(jobs / "one.npy"))


@pytest.mark.parametrize("name", ["stopped by one", "stopped by two"])
def test_another_number_of_processes_and_another_engine_continue_to_the_same_result(jobs, name):
    """One process stopped and two with ZeRO 2 went on; two with ZeRO 3 stopped and one went on."""
    assert losses(jobs / name) == pytest.approx(losses(jobs / "one"), abs=1e-5)
    assert_same_weights(jobs / "one", jobs / name)


def steps_of(folder):
    return torch.load(folder / "steps.pt", weights_only=True)


def assert_same(one, other):
    assert other[0] == pytest.approx(one[0], abs=1e-5)
    assert other[1].keys() == one[1].keys()
    for name, weight in one[1].items():  # AdamW makes steps of 0.01 of the smallest gradients too
        torch.testing.assert_close(other[1][name], weight, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["hllm", "sasrec"])
def test_two_processes_take_the_steps_of_one(jobs, method):
    found = steps_of(jobs)
    one = steps(method, 0.0, "single none", Processes())
    for engine in RUNS[method, 0.0]:
        assert_same(one, found[(method, 0.0), engine])


@pytest.mark.parametrize("engine", ["zero2 none", "zero3 none"])
def test_with_dropout_they_take_those_of_the_plain_engine(jobs, engine):
    """Which of as many processes: each has dropout of its own."""
    found = steps_of(jobs)
    plain, dry = found[("hllm", 0.3), "ddp none"], found[("hllm", 0.0), "ddp none"]
    assert plain[0] != pytest.approx(dry[0], abs=1e-3)  # there is dropout
    assert_same(plain, found[("hllm", 0.3), engine])


def test_engines_that_spread_write_a_part_each(jobs):
    """Of two states that are kept."""
    parts = {name: len(list((jobs / name / "state").glob("step-*/part-*"))) for name in ENGINES}
    assert parts == {"ddp": 2, "auto": 2, "zero2": 4, "zero3": 4}


def test_a_lost_process_ends_the_job_with_the_reason(jobs):
    said = (jobs / "said.txt").read_text()
    assert said.startswith("process 0 of 2 lost another one (")
    assert said.endswith("the same command continues from the last saved state")


def test_the_single_engine_refuses_several_processes():
    model, objective = Encoder(5), InfoNCE(Temperature())
    optimizer, execution = OptimizerSettings(learning_rate=0.1, weight_decay=0), ExecutionSettings(engine="single")
    with pytest.raises(UserError, match=r"execution.engine is single and there are 2 processes"):
        make_engine(model, objective, optimizer, execution, torch.device("cpu"), Processes(0, 2), 6)


def work_on_gpus(rank, port, data, folder):
    as_torchrun_would(rank, port)
    torch.cuda.set_device(rank)
    dataset = load_dataset(data)
    with joined() as processes:
        for (engine, compile), precision in itertools.product(GPU_ENGINES, GPU_TOLERANCES):
            run = on_gpu(run_of(dataset, engine), precision, compile)
            train(run, dataset, folder / f"{engine} {compile} {precision}", processes, device=f"cuda:{rank}")


def on_gpu(run, precision, compile="off"):
    execution = run.execution.model_copy(update={"device": "cuda", "precision": precision, "compile": compile})
    return run.model_copy(update={"execution": execution})


GPU_ENGINES = (("ddp", "off"), ("ddp", "on"), ("zero2", "off"), ("zero3", "off"))
GPU_TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_the_losses_of_one(tmp_path):
    data = prepared(tmp_path / "data", users=30)
    dataset = load_dataset(data)
    for precision in GPU_TOLERANCES:
        train(on_gpu(run_of(dataset, "single"), precision), dataset, tmp_path / precision, device="cuda:0")
    assert together(work_on_gpus, data, tmp_path) == [0, 0]
    for (engine, compile), (precision, tolerance) in itertools.product(GPU_ENGINES, GPU_TOLERANCES.items()):
        two = losses(tmp_path / f"{engine} {compile} {precision}")
        assert two == pytest.approx(losses(tmp_path / precision), abs=tolerance), (engine, compile, precision)
