"""How a verb on a run comes to run in as many processes as the run asks for: here, by torchrun on this host, or by srun
and torchrun on several.

A verb calls `enter` first. It returns in every process that is to do the work; the process in which people or Snakemake
started the verb may instead become the launcher of those, and end with their status.

    nodes  processes   on a host without Slurm        in a Slurm job
    1      1           returns at once                srun, one task
    1      more        torchrun                       srun, one task that is a torchrun
    more   any         torchrun, on this host alone   srun, a task a node, each a torchrun

Status 75 says that the work was stopped by a signal and its state saved. In a Slurm job that is the warning before the
time limit (`--signal=USR1@300` in workflow/profiles/slurm), and the job puts itself back into the queue.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from benchmark import gpus
from benchmark.errors import STOPPED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

log = logging.getLogger(__name__)

MOST_REQUEUES = 200  # of one job, so that one whose time limit is too short for any progress ends some day
LAUNCHER = "HLLM_BENCH_LAUNCHER"  # in a process that was started to do the work: who started it
RENDEZVOUS = "HLLM_BENCH_RENDEZVOUS"  # in a task of srun: where the nodes meet, host:port
_PR_SET_PDEATHSIG = 1


class Place(Enum):
    """Where a process finds itself. WORKER: it was started to do the work. TASK: it is srun's task on its node.
    JOB: it is the script of a Slurm job. STEP: it was started by somebody's own srun. HOST: by hand or by Snakemake."""

    WORKER = "worker"
    TASK = "task"
    JOB = "job"
    STEP = "step"
    HOST = "host"


@dataclass(frozen=True)
class Layout:
    """nodes: hosts; processes: on each of them, each with a GPU of its own unless device is cpu."""

    nodes: int
    processes: int
    device: Literal["auto", "cpu", "cuda"]


def place(environment: Mapping[str, str]) -> Place:
    if LAUNCHER in environment or "WORLD_SIZE" in environment:  # the latter: somebody's own torchrun
        return Place.WORKER
    if RENDEZVOUS in environment:
        return Place.TASK
    if "SLURM_STEP_ID" in environment:
        return Place.STEP
    return Place.JOB if "SLURM_JOB_ID" in environment else Place.HOST


def enter(layout: Layout, arguments: Sequence[str], module: str = "benchmark") -> None:
    """Return in the processes that do the work of `python -m benchmark` with these arguments; in their launcher, exit
    with their status when they have ended."""
    command = [module, *arguments]
    # A cluster warns all processes of a step, at any moment. The warning waits until training asks for it, and means
    # nothing to others, torchrun among them; processes that are started from here on do likewise.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    found = place(os.environ)
    if found is Place.WORKER:
        if LAUNCHER in os.environ:
            _end_with(int(os.environ[LAUNCHER]))
        return
    if found is Place.JOB:
        sys.exit(_in_job(layout.nodes, command))
    nodes = layout.nodes if found is Place.TASK else 1
    if nodes < layout.nodes:
        log.info("asks for %d nodes and runs on this one, as it is not the script of a Slurm job", layout.nodes)
    processes = _claimed(layout) if found is Place.HOST else _visible(layout)
    if nodes > 1 or processes > 1:
        os.environ[LAUNCHER] = str(os.getpid())
        sys.exit(_torchrun(nodes, processes, command))


def _claimed(layout: Layout) -> int:
    """Take GPUs of this host for this process and those it starts; returns how many processes there are to be."""
    names = [] if layout.device == "cpu" else gpus.host_gpus(os.environ)
    if not names:
        return layout.processes
    count = _at_most(layout, len(names))
    held = gpus.claim(names, count, gpus.lock_folder())  # never closed: it ends with this process
    os.environ[gpus.VISIBLE] = ",".join(held.names)
    return count


def _visible(layout: Layout) -> int:
    """How many processes there are to be on this node, on the GPUs that Slurm gave."""
    names = [] if layout.device == "cpu" else gpus.host_gpus(os.environ)
    return _at_most(layout, len(names)) if names else layout.processes


def _at_most(layout: Layout, count: int) -> int:
    if layout.processes > count:
        log.info("asks for %d GPUs; there are %d, and it runs on those", layout.processes, count)
    return min(layout.processes, count)


def torchrun_arguments(nodes: int, processes: int, rendezvous: str | None, node: int) -> list[str]:
    """torchrun's options; the first node is where the nodes meet."""
    options = ["--nproc-per-node", str(processes), "--nnodes", str(nodes)]
    if rendezvous is None:
        return [*options, "--standalone"]
    return [
        *options, "--rdzv-backend", "c10d", "--rdzv-endpoint", rendezvous, "--rdzv-id", "run",
        "--rdzv-conf", f"is_host={int(node == 0)}",
    ]  # fmt: skip


def _torchrun(nodes: int, processes: int, command: Sequence[str]) -> int:
    """torchrun within this process, because its command ends with 1 however its processes have ended."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    rendezvous = os.environ[RENDEZVOUS] if nodes > 1 else None
    options = torchrun_arguments(nodes, processes, rendezvous, int(os.environ.get("SLURM_NODEID", 0)))
    try:
        run(parse_args([*options, "--module", *command]))
    except ChildFailedError as error:
        return _ended(*error.get_first_failure())
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _ended(rank: int, failure: ProcessFailure) -> int:
    status = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    if status != STOPPED:
        how = f"with status {status}" if failure.exitcode >= 0 else f"by {signal.Signals(-failure.exitcode).name}"
        log.error("error: process %d, on %s, was the first to end, %s", rank, socket.gethostname(), how)
    return status


def srun_command(nodes: int) -> list[str]:
    """A task a node with all that the job has there. When one has ended, the others get half a minute to do so."""
    return [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=30",
        sys.executable, "-m",
    ]  # fmt: skip


def _in_job(nodes: int, command: Sequence[str]) -> int:
    """Start the tasks of a Slurm job, wait for them, and put the job back into the queue if its time ran out."""
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: cancelled.set())  # Slurm sends it to srun too
    environment = {**os.environ, RENDEZVOUS: f"{socket.gethostname()}:{_free_port()}"}
    status = subprocess.run([*srun_command(nodes), *command], env=environment, check=False).returncode
    status = status if status >= 0 else 128 - status
    # A task that the warning ends by itself had not begun to work.
    if status in (STOPPED, 128 + signal.SIGUSR1) and not cancelled.is_set() and _requeued(os.environ["SLURM_JOB_ID"]):
        cancelled.wait(60)  # Slurm ends this process now, and it should not look as if it had failed by itself
    return status


def _requeued(job: str) -> bool:
    """Put this job back into the queue, unless Slurm refuses or it has been there too often."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    restarts = re.search(r"\bRestarts=(\d+)", shown)
    if restarts and int(restarts[1]) >= MOST_REQUEUES:
        log.error("job %s was requeued %d times already and is left to end; give it more time", job, MOST_REQUEUES)
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        log.error("job %s cannot be requeued (%s); start the workflow again to continue", job, done.stderr.strip())
        return False
    log.info("the time of job %s is over; it is in the queue again and will continue where it stopped", job)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with(launcher: int) -> None:
    """Have the system end this process when its launcher has ended, so that none is left holding a GPU or a folder."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before the line above
        sys.exit(128 + signal.SIGKILL)
