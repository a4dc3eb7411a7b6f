"""The machine and what is installed on it, whatever is to be run."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from benchmark.doctor.findings import Finding, ok, problem, warning
from benchmark.host_memory import available_memory
from benchmark.provenance import git_revision

_GIB = 1 << 30
_LEAST_MEMORY = 4 * _GIB
_OPEN_FILES = 4096
_QUERY = "index,name,driver_version,memory.total,memory.used,utilization.gpu"


def code() -> Iterator[Finding]:
    """Python and the revision that results will carry."""
    version, revision = platform.python_version(), git_revision()
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield ok("python", f"{version}, {sys.executable}")
    else:
        yield problem("python", version, "use Python 3.11 or 3.12")
    if revision.endswith("+changes"):
        yield warning("code", f"{revision[:12]} with changes", "commit them, or results cannot be traced to a revision")
    elif revision == "unknown":
        yield warning("code", "its revision is unknown", "set HLLM_BENCH_REVISION to the commit that was copied here")
    else:
        yield ok("code", f"revision {revision[:12]}")


def packages(lock: Path) -> Iterator[Finding]:
    """Installed versions beside those of the lock file."""
    if not lock.is_file():
        yield warning("packages", f"there is no {lock}", "start the doctor in the project's folder")
        return
    absent, other, right = [], [], 0
    for line in lock.read_text(encoding="utf-8").splitlines():
        try:
            wanted = Requirement(line.split("#")[0].strip())
        except InvalidRequirement:
            continue  # an empty line or an option
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            absent.append(str(wanted.name))
            continue
        if wanted.specifier.contains(found, prereleases=True):
            right += 1
        else:
            other.append(f"{wanted.name} {found} (locked {wanted.specifier})")
    if absent:
        yield problem("packages", f"{_some(absent)} of {lock.name} not installed", "run `make .venv/.ready`")
    if other:
        yield warning("packages", f"{_some(other)}", "run `make .venv/.ready`, unless this machine needs its own build")
    if right and not absent and not other:
        yield ok("packages", f"{right} as {lock.name} says")


def gpus() -> Iterator[Finding]:
    """Driver, GPUs and what else runs on them; torch's build for them; NCCL."""
    import torch

    rows = _nvidia_smi()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build for the CPU"
    if rows is None:
        yield ok("gpus", "no NVIDIA driver here; runs on the CPU")
        yield ok("torch", f"{torch.__version__}, {build}")
        return
    for index, name, driver, total, used, busy in rows:
        free = int(total) - int(used)
        told = f"{index}: {name}, driver {driver}, {free / 1024:.0f} of {int(total) / 1024:.0f} GiB free, {busy} % busy"
        if free < 0.9 * int(total):
            yield warning("gpus", told, "somebody else works on it; wait, or leave it out with CUDA_VISIBLE_DEVICES")
        else:
            yield ok("gpus", told)
    if torch.version.cuda is None:
        yield problem("torch", f"{torch.__version__} is {build}", "install the CUDA build of the same version")
    elif not torch.cuda.is_available():
        mend = f"the driver {rows[0][2] if rows else ''} must be at least as new as {build} needs, and the GPU visible"
        yield problem("torch", f"{torch.__version__} ({build}) finds no usable GPU", mend)
    else:
        yield ok("torch", f"{torch.__version__}, {build}, {torch.cuda.device_count()} GPUs visible")
        for number in range(torch.cuda.device_count()):
            torch.ones(2, device=f"cuda:{number}").sum().item()  # raises where the GPU or its memory cannot be used
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield ok("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield problem("nccl", "torch has none", "install a CUDA build of torch; runs on several GPUs need it")


def memory() -> Iterator[Finding]:
    """Memory that processes may have, processors, and open files."""
    available = available_memory()
    told = f"{available / _GIB:.1f} GiB free"
    if available < _LEAST_MEMORY:
        yield warning("memory", told, "close something; a run needs 2 to 4 GiB and a large data set 30")
    else:
        yield ok("memory", told)
    yield ok("processors", f"{len(os.sched_getaffinity(0))} usable")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES and soft != resource.RLIM_INFINITY:
        yield warning("limits", f"{soft} open files", f"`ulimit -n {_OPEN_FILES}` before many processes are started")
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _GIB:
        yield warning("limits", f"{size >> 20} MiB of shared memory", "NCCL wants 1 GiB: `docker run --shm-size=8g`")


def folder(path: Path) -> Iterator[Finding]:
    """Whether files can be written, renamed and locked where results go, and whether its clock is this machine's."""
    existing = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".doctor-") as made:
            yield from _file_system(path, Path(made))
    except OSError as error:
        yield problem("files", f"{path} cannot be written ({error.strerror})", "mend its rights or name another folder")


def _file_system(path: Path, scratch: Path) -> Iterator[Finding]:
    (scratch / "new").write_text("whole")
    (scratch / "new").replace(scratch / "old")
    with (scratch / "old").open() as first, (scratch / "old").open() as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield ok("files", f"{path} takes files, renames and locks")
        else:
            mend = "two processes could work on one run: put it on a file system with flock (NFS: without `nolock`)"
            yield problem("files", f"{path} ignores locks", mend)
    before = time.time()
    (scratch / "old").touch()
    ahead = (scratch / "old").stat().st_mtime - before
    if abs(ahead) > 2 or before < 1_700_000_000:
        mend = "set the clocks by NTP; Snakemake decides by file times what is out of date"
        yield warning("clock", f"{path} is {ahead:+.0f} s off this machine's {time.ctime(before)}", mend)
    else:
        yield ok("clock", f"agrees with {path}")


def slurm() -> Iterator[Finding]:
    """Slurm's commands, if they are here."""
    if shutil.which("sbatch") is None:
        yield ok("slurm", "not here; runs are started on this machine")
        return
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
    if ping.returncode or "DOWN" in ping.stdout:
        told = " ".join((ping.stdout + ping.stderr).split())
        yield problem("slurm", "its controller does not answer", told)
        return
    try:  # without accounting it says so, or says nothing for ever
        asked = subprocess.run(["sacct", "-n", "-X"], capture_output=True, text=True, timeout=10, check=False)
        accounting = not asked.returncode and "disabled" not in asked.stderr
    except (OSError, subprocess.TimeoutExpired):
        accounting = False
    if not accounting:
        mend = "set slurm-status-command: squeue in workflow/profiles/slurm/config.yaml"
        yield warning("slurm", "answers, without accounting", mend)
    else:
        yield ok("slurm", "answers, with accounting")


def _nvidia_smi() -> list[list[str]] | None:
    """A row a GPU, or None without a driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    return [[field.strip() for field in line.split(",")] for line in listed.splitlines() if line.strip()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
