"""How a run is started: alone, by torchrun, in a Slurm job; what becomes of its status, its signals and its launcher.

srun, scontrol and nvidia-smi are stand-ins here; tests/slurm has the real ones.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.launch import Place, place, torchrun_arguments

ROOT = Path(__file__).parent.parent

# A module that is started like `benchmark`: it enters, says who it is, and then does as told.
WORK = """
import json, logging, os, signal, sys, time
from pathlib import Path
from benchmark.launch import Layout, enter
from benchmark.training.stopping import stop_request

logging.basicConfig(level=logging.INFO, format="%(message)s")
folder, nodes, processes, device, then = sys.argv[1:]
enter(Layout(int(nodes), int(processes), device), sys.argv[1:], module="work")
if then == "early":
    os.kill(os.getpid(), signal.SIGUSR1)
with stop_request() as stop:
    pass
if then == "early":
    sys.exit(75 if stop.by == "SIGUSR1" else 1)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "HLLM_BENCH_RENDEZVOUS")
facts = {name: os.environ.get(name) for name in names} | {"pid": os.getpid()}
Path(folder, f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(facts))
while len(list(Path(folder).glob("rank*.json"))) < int(os.environ.get("WORLD_SIZE", 1)):
    time.sleep(0.01)
if then == "wait":
    time.sleep(60)
if then == "signal":
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(60)
if then == "die" and os.environ.get("RANK") == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if then == "die":
    time.sleep(60)
"""


@pytest.fixture
def bench(tmp_path):
    """A folder with the module above and a folder for stand-ins, first in PATH."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "bin").mkdir()
    return tmp_path


def stand_in(bench, name, script):
    path = bench / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def started(bench, *arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HLLM_", "CUDA_"))}
    path = f"{bench / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "work", str(bench), *map(str, arguments)], cwd=bench, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**kept, "PATH": path, "PYTHONPATH": f"{bench}{os.pathsep}{ROOT}", **environment},
    )  # fmt: skip


def ended(process):
    told, _ = process.communicate(timeout=100)
    return process.returncode, told


def facts(bench):
    return [json.loads(path.read_text()) for path in sorted(bench.glob("rank*.json"))]


def running(pid):
    """Whether a process is there and not one that has ended and that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place.HOST),
        ({"SLURM_JOB_ID": "7"}, Place.JOB),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, Place.STEP),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "HLLM_BENCH_RENDEZVOUS": "one:1"}, Place.TASK),
        ({"SLURM_JOB_ID": "7", "HLLM_BENCH_RENDEZVOUS": "one:1", "HLLM_BENCH_LAUNCHER": "1"}, Place.WORKER),
        ({"WORLD_SIZE": "2"}, Place.WORKER),
    ],
)
def test_a_process_knows_where_it_is(environment, expected):
    assert place(environment) is expected


def test_the_first_node_hosts_the_meeting_of_several():
    first, second = (torchrun_arguments(2, 8, "one:1234", node) for node in (0, 1))
    assert first[-1] == "is_host=1"
    assert second[-1] == "is_host=0"
    assert first[:-1] == second[:-1]
    assert first[first.index("--rdzv-endpoint") + 1] == "one:1234"
    assert torchrun_arguments(1, 2, None, 0)[-1] == "--standalone"


def test_one_process_stays_the_process_that_was_started_and_has_a_gpu_of_its_own(bench):
    stand_in(bench, "nvidia-smi", "printf 'GPU-fake-a\\nGPU-fake-b\\n'")
    process = started(bench, 1, 1, "auto", "signal")
    assert ended(process)[0] == 75
    (found,) = facts(bench)
    assert found["pid"] == process.pid
    assert found["CUDA_VISIBLE_DEVICES"] in ("GPU-fake-a", "GPU-fake-b")
    assert found["WORLD_SIZE"] is None


def test_a_warning_that_comes_before_training_has_begun_is_not_lost(bench):
    assert ended(started(bench, 1, 1, "cpu", "early"))[0] == 75


def test_several_processes_are_torchruns_and_no_more_than_there_are_gpus(bench):
    stand_in(bench, "nvidia-smi", "printf 'GPU-fake-a\\nGPU-fake-b\\n'")
    status, told = ended(started(bench, 4, 3, "auto", "signal"))
    assert status == 75, told  # and not torchrun's 1
    assert "asks for 4 nodes and runs on this one" in told
    assert "asks for 3 GPUs; there are 2" in told
    assert [(f["RANK"], f["WORLD_SIZE"], f["LOCAL_RANK"]) for f in facts(bench)] == [("0", "2", "0"), ("1", "2", "1")]
    assert {f["CUDA_VISIBLE_DEVICES"] for f in facts(bench)} == {"GPU-fake-a,GPU-fake-b"}


def test_a_lost_process_ends_the_others_with_its_reason(bench):
    status, told = ended(started(bench, 1, 2, "cpu", "die"))
    assert status == 128 + signal.SIGKILL
    assert "was the first to end, by SIGKILL" in told
    assert "Traceback" not in told


def test_no_process_outlives_its_launcher(bench):
    launcher = started(bench, 1, 2, "cpu", "wait")
    deadline = time.monotonic() + 60
    while len(facts(bench)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [found["pid"] for found in facts(bench)]
    launcher.kill()
    launcher.wait()
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2
    assert not any(map(running, pids))


SRUN = 'echo "$@" > srun.txt; while [ "$1" != "-m" ]; do before=$1; shift; done; exec "$before" "$@"'


@pytest.mark.parametrize(("restarts", "requeued"), [(3, True), (200, False)])
def test_a_job_whose_time_is_over_goes_back_into_the_queue(bench, restarts, requeued):
    stand_in(bench, "srun", SRUN)
    shows = f'if [ "$1" = show ]; then echo "Requeue=1 Restarts={restarts} BatchFlag=1"; exit; fi'
    stand_in(bench, "scontrol", f'{shows}\necho "$@" > scontrol.txt; kill -TERM $PPID')
    status, told = ended(started(bench, 1, 1, "cpu", "signal", SLURM_JOB_ID="7"))
    assert status == 75
    assert (bench / "srun.txt").read_text().startswith("--nodes=1 --ntasks=1 ")
    assert (bench / "scontrol.txt").exists() == requeued
    if requeued:
        assert (bench / "scontrol.txt").read_text() == "requeue 7\n"
    else:
        assert "was requeued 200 times already" in told
    assert facts(bench)[0]["HLLM_BENCH_RENDEZVOUS"].rpartition(":")[2].isdecimal()


def test_a_cancelled_job_is_not_requeued(bench):
    stand_in(bench, "srun", f"trap 'kill -USR1 $child' TERM; {SRUN.replace('exec ', '')} & child=$!; wait; wait $child")
    stand_in(bench, "scontrol", 'echo "$@" > scontrol.txt')
    launcher = started(bench, 1, 1, "cpu", "wait", SLURM_JOB_ID="7")
    deadline = time.monotonic() + 60
    while not facts(bench) and time.monotonic() < deadline:
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    os.kill(facts(bench)[0]["pid"], signal.SIGUSR1)
    assert ended(launcher)[0] == 75
    assert not (bench / "scontrol.txt").exists()
