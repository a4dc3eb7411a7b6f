"""A GPU's process is killed in the middle of a training: the job ends with the reason, and the same command continues.

The launcher alone is tested in test_launch.py, two processes of a processor in test_distributed.py.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmark.experiments import Run, dump_run
from tests.training.interactions import prepared
from tests.training.test_trainer import a_run

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60  # within which a job ends that has lost a process


def write_run(folder, engine):
    run = a_run(epochs=20, patience=20).model_dump(mode="json", by_alias=True)
    run |= {"class": "baselines.sasrec.SASRec", "model": {"layers": 1, "heads": 1, "width": 16}}
    run["model"] |= {"dropout": 0.0, "attention_dropout": 0.0}
    run["execution"] |= {"device": "cuda", "engine": engine, "compile": "off"}
    run["id"] = f"small-{Run.model_validate(run).identity()}"
    folder.mkdir()
    (folder / "run.yaml").write_text(dump_run(Run.model_validate(run)))
    return folder


def start(folder, processes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HLLM_BENCH_LAUNCHER"))}
    command = ["train", folder / "run.yaml", "--data", folder.parent / "data", "--processes", str(processes)]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen([sys.executable, "-m", "benchmark", *command], cwd=ROOT, stderr=said, env=kept)


def worker(launcher, rank):
    """The process that a launcher has started as this rank."""
    wanted = {f"RANK={rank}".encode(), f"HLLM_BENCH_LAUNCHER={launcher}".encode()}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and wanted <= set((path / "environ").read_bytes().split(b"\0")):
                return int(path.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"process {launcher} has no worker of rank {rank}")


def losses(folder):
    with (folder / "training.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_a_job_that_loses_a_process_ends_and_continues(tmp_path, engine):
    data = tmp_path / "data" / "small" / "hllm"
    data.parent.mkdir(parents=True)
    prepared(tmp_path / "made", users=60).rename(data)
    whole = write_run(tmp_path / "whole", "single")
    undisturbed = start(whole, 1)
    folder = write_run(tmp_path / "killed", engine)
    job, log = start(folder, 2), folder / "train.log"
    while job.poll() is None and not (log.exists() and "epoch 2" in log.read_text()):
        time.sleep(0.01)
    os.kill(worker(job.pid, 1), signal.SIGKILL)
    began = time.monotonic()
    assert job.wait(SECONDS) == 128 + signal.SIGKILL
    print(f"{engine}: the job ended {time.monotonic() - began:.1f} s after its process was killed")
    assert re.search(r"process 1, on \S+, was the first to end, by SIGKILL", (folder / "said.txt").read_text())
    again = start(folder, 2)
    assert (again.wait(300), undisturbed.wait(300)) == (0, 0), (folder / "said.txt").read_text()
    continued = re.search(r"continues after step (\d+)", (folder / "said.txt").read_text())
    assert continued
    assert int(continued[1]) > 0
    assert losses(folder) == pytest.approx(losses(whole), abs=1e-3)
