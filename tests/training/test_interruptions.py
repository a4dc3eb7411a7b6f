"""What happens to runs on real machines: killed at any moment, out of memory, a full disk, a lock left behind."""

import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmark import cli
from benchmark.data.batches import TrainingBatch
from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.evaluation.ranking import rank_cases
from benchmark.experiments import Configuration, Run, dump_run
from benchmark.training.checkpoint import load_weights, run_lock
from benchmark.training.engine import Engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.trainer import Trainer, ranking_settings, seeded
from tests.training.interactions import prepared, write_csv
from tests.training.test_engine import Averager, one_batch
from tests.training.test_trainer import Walker, a_run, trained

ROOT = Path(__file__).parent.parent.parent
FORK = multiprocessing.get_context("fork")  # a child has everything imported and starts at once


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(prepared(tmp_path_factory.mktemp("interruptions"), users=60))


def often_saved(**training):
    """A run whose state is saved after nearly every step."""
    run = a_run(**training)
    return run.model_copy(update={"execution": run.execution.model_copy(update={"checkpoint_minutes": 1e-6})})


def ranks_of(run, dataset, folder):
    model = Walker(dataset.item_count, dropout=0.2)
    model.load_state_dict(load_weights(folder / "model.safetensors"))
    return rank_cases(model, dataset, dataset.cases("test"), ranking_settings(run)).rank


def test_killed_ten_times_at_random_moments_the_ranks_are_those_of_the_undisturbed_run(dataset, tmp_path):
    run, moments, killed = often_saved(epochs=6), random.Random(1), 0
    began = time.monotonic()
    trained(run, dataset, tmp_path / "whole", dropout=0.2)
    seconds = time.monotonic() - began
    while killed < 10:
        child = FORK.Process(target=trained, args=(run, dataset, tmp_path / "killed", 0.2))
        child.start()
        child.join(moments.uniform(0, seconds / 4))
        if child.exitcode is None:
            child.kill()
            killed += 1
        child.join()
        if child.exitcode == 0:  # it has come to its end before its time: the next one begins anew
            shutil.rmtree(tmp_path / "killed")
    trained(run, dataset, tmp_path / "killed", dropout=0.2)
    np.testing.assert_array_equal(
        ranks_of(run, dataset, tmp_path / "killed"), ranks_of(run, dataset, tmp_path / "whole")
    )
    record, whole = ((tmp_path / name / "training.csv").read_text() for name in ("killed", "whole"))
    columns = whole.splitlines()[0].split(",")
    for one, other in zip(record.splitlines()[1:], whole.splitlines()[1:], strict=True):
        one, other = (dict(zip(columns, line.split(","), strict=True)) for line in (one, other))
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def command_line(verb, folder, data):
    """`python -m benchmark` in a child that has everything imported; what it says goes to said.txt."""
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["benchmark", verb, str(folder / "run.yaml"), "--data", str(data)]
    cli.main()


def test_signals_end_with_status_75_and_the_same_weights_in_the_end(tmp_path):
    data = tmp_path / "data" / "small" / "hllm"
    data.parent.mkdir(parents=True)
    prepared(tmp_path / "made", users=150).rename(data)
    run = a_run(epochs=40, patience=40).model_dump(mode="json", by_alias=True)
    run |= {"class": "baselines.sasrec.SASRec", "model": {"layers": 1, "heads": 1, "width": 16, "dropout": 0.1}}
    run["execution"] |= {"device": "cpu"}
    run["id"] = f"small-{Run.model_validate(run).identity()}"

    def start(folder):
        folder.mkdir(exist_ok=True)
        (folder / "run.yaml").write_text(dump_run(Run.model_validate(run)))
        child = FORK.Process(target=command_line, args=("train", folder, tmp_path / "data"))
        child.start()
        return child

    start(tmp_path / "whole").join()
    folder = tmp_path / "stopped"
    for name, epoch in (("SIGTERM", 2), ("SIGUSR1", 5)):
        child, log = start(folder), folder / "train.log"
        while child.is_alive() and not (log.exists() and f"epoch {epoch}" in log.read_text()):
            time.sleep(0.01)
        os.kill(child.pid, getattr(signal, name))
        child.join()
        said = (folder / "said.txt").read_text().splitlines()
        assert child.exitcode == 75, said
        assert re.search(rf"stopped by {name} after step \d+ of \d+; the same command continues from there", said[-1])
    child = start(folder)
    child.join()
    assert child.exitcode == 0
    assert "continues after step" in (folder / "said.txt").read_text()
    assert not (folder / "state").exists()
    whole, stopped = (load_weights(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


class TooLarge(Averager):
    """An accelerator with room for three items and one history at once."""

    def embed_items(self, items):
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().embed_items(items)

    def embed_histories(self, sequences, items):
        if len(sequences) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().embed_histories(sequences, items)


def test_out_of_memory_repeats_the_step_in_smaller_pieces(caplog):
    caplog.set_level(logging.WARNING)

    def one_step(kind):
        torch.manual_seed(0)
        model, objective = kind(dropout=0.3), InfoNCE(Temperature())
        optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=0.1)
        engine = Engine(model, objective, optimizer, device=torch.device("cpu"), bf16=False)
        model.eval()  # dropout would differ, because the pieces do
        losses = [float(engine.step(one_batch(), seed=n).loss) for n in range(3)]
        return losses, [p.detach() for p in engine.parameters()]

    (losses, weights), (in_pieces, same) = one_step(Averager), one_step(TooLarge)
    assert in_pieces == pytest.approx(losses, rel=1e-5)
    for a, b in zip(weights, same, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    told = [record.message for record in caplog.records]
    expected = ["at most 2 of the items", "at most 1 of the histories"]
    assert told[-2:] == [f"out of memory: {what} at a time from now on" for what in expected]
    assert len(told) == len(set(told))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_whose_memory_runs_out_goes_on_in_smaller_pieces(caplog):
    """2 GB a history, and 3 GB to hold them."""

    class Wide(Averager):
        def embed_histories(self, sequences, items):
            room = torch.zeros(len(sequences), 1 << 29, device=items.device)
            return super().embed_histories(sequences, items) + room[:, 0].sum()

    torch.manual_seed(0)
    device, total = torch.device("cuda"), torch.cuda.get_device_properties(0).total_memory
    model, objective = Wide().to(device), InfoNCE(Temperature()).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=0.1, fused=True)
    engine = Engine(model, objective, optimizer, device=device, bf16=False)
    batch = one_batch()
    batch = TrainingBatch(batch.sequences.to(device), batch.targets.to(device), batch.negatives.to(device))
    torch.cuda.set_per_process_memory_fraction(3e9 / total)
    try:
        assert torch.isfinite(engine.step(batch, seed=1).loss)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.history_chunk == 1
    assert "at most 1 of the histories at a time from now on" in caplog.text


def test_what_does_not_fit_at_all_is_one_sentence():
    class Hopeless(Averager):
        def embed_items(self, items):
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = Hopeless()
    engine = Engine(
        model, InfoNCE(Temperature()), torch.optim.SGD(model.parameters(), lr=0.1), device=torch.device("cpu"),
        bf16=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="one of a step's items alone exceeds the memory"):
        engine.step(one_batch())


def test_a_full_disk_is_one_sentence_and_leaves_the_states_before_it(dataset, tmp_path):
    run = often_saved(epochs=2)
    model = seeded(lambda: Walker(dataset.item_count), run.seed)
    trainer = Trainer(run, dataset, model, tmp_path, torch.device("cpu"))
    trainer._train_step()
    trainer._save()
    limit, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limit[1]))  # no file grows beyond it
    try:
        trainer._train_step()
        with pytest.raises(UserError, match=r"state/step-000000002 could not be written: .*free space or mend"):
            trainer._save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "state").glob("step-*")] == ["step-000000001"]
    again = Trainer(run, dataset, Walker(dataset.item_count), tmp_path, torch.device("cpu"))
    assert again.progress.step == 1


def test_a_lock_whose_holder_is_gone_holds_nobody_up(tmp_path):
    def hold():
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=hold)
    child.start()
    child.join()
    assert (tmp_path / ".lock").exists()
    with (
        run_lock(tmp_path),
        pytest.raises(UserError, match=rf"process {os.getpid()} on .* is working in"),
        run_lock(tmp_path),
    ):
        pass


def test_a_clock_that_jumps_changes_nothing(dataset, tmp_path, monkeypatch):
    run = a_run(epochs=2)
    trained(run, dataset, tmp_path / "whole")
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    trainer = trained(run, dataset, tmp_path / "jumped")
    assert 0 <= trainer.progress.seconds < 60
    whole, jumped = (load_weights(tmp_path / name / "model.safetensors") for name in ("whole", "jumped"))
    assert all(torch.equal(whole[name], jumped[name]) for name in whole)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_snakemake_continues_a_run_whose_training_is_killed(tmp_path, kills):
    """The training is killed, tried again from its state, twice by the same call of snakemake, and ranked."""
    for name in ("Snakefile", "workflow", "config", "benchmark", "models", "baselines"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    config = tmp_path / "config"
    for table in (config / "tables").glob("*.yaml"):
        table.unlink()
    write_csv(tmp_path / "raw", users=300)
    definitions = yaml.safe_load((config / "datasets.yaml").read_text())
    definitions = {"small": {"reader": "csv", "folder": "raw", "text_fields": ["title"], "licence": "generated"}}
    (config / "datasets.yaml").write_text(yaml.safe_dump(definitions))
    training = {"sequence_length": 6, "global_batch": 8, "negatives": {"count": 20}}
    training |= {"epochs": (epochs := max(40, 10 * kills)), "patience": epochs}
    block = {"dataset": "small", "reference": "SASRec", "training": training, "rows": [{"method": "sasrec"}]}
    (config / "tables" / "tiny.yaml").write_text(
        yaml.safe_dump({"title": "Tiny", "metrics": ["ndcg@10"], "presets": {"laptop": [block]}})
    )
    run = Configuration(config).plan("tiny", "laptop").runs()[0]
    target = f"results/laptop/runs/{run.id}/ranks.parquet"
    folder = (tmp_path / target).parent
    killed, moments = [], random.Random(kills)

    def kill_often():
        while len(killed) < kills:
            time.sleep(moments.uniform(0, 0.3))
            states = {path.name for path in (folder / "state").glob("step-*")}
            if states and (not killed or states != killed[-1]):
                os.kill(int((folder / ".lock").read_text().split()[1]), signal.SIGKILL)
                killed.append(states)

    threading.Thread(target=kill_often, daemon=True).start()
    for _ in range(1 + kills // 3):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", target],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(killed) == kills
    assert "continues after step" in (folder / "train.log").read_text()
    assert not (folder / "state").exists()
    ranks = pq.read_table(folder / "ranks.parquet").column("rank").to_pylist()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    shutil.copy(folder / "run.yaml", undisturbed)
    for verb in ("train", "rank"):
        child = FORK.Process(target=command_line, args=(verb, undisturbed, tmp_path / "data"))
        child.start()
        child.join()
        assert child.exitcode == 0, (undisturbed / "said.txt").read_text()
    assert ranks == pq.read_table(undisturbed / "ranks.parquet").column("rank").to_pylist()
