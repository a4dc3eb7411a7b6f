"""A real Slurm of two nodes on this machine, for tests: `python tests/slurm/cluster.py start` and `stop`, as root.

Needs Debian's slurmctld, slurmd, slurm-client and munge. Everything is in one folder but Slurm's configuration, whose
default place leads to it: a job's steps look nowhere else. A machine with a Slurm of its own is left alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

DEFAULT_PLACE = Path("/etc/slurm/slurm.conf")
FOLDER = Path("/tmp/hllm-bench-slurm")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")

# The nodes say that they have more memory than they do (config_overrides), so that the profile's requests fit.
# A requeued job waits for as long as a credential is valid (cred_expire) before it may start again.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=one NodeHostname=localhost Port=26818 CPUs={cpus} RealMemory=64000
NodeName=two NodeHostname=localhost Port=26819 CPUs={cpus} RealMemory=64000
PartitionName=tests Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Why no Slurm can be started here, or None."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    if DEFAULT_PLACE.exists() and DEFAULT_PLACE.resolve() != FOLDER / "slurm.conf":
        return f"this machine has a Slurm of its own ({DEFAULT_PLACE})"
    if _running(FOLDER / "slurmctld.pid"):
        return "one like it is running; `python tests/slurm/cluster.py stop` ends it"
    return None


def start() -> None:
    """Start the daemons and wait until both nodes take jobs."""
    stop()  # removes what a killed one has left
    for name in ("state", "one", "two"):
        (FOLDER / name).mkdir(parents=True)
    FOLDER.chmod(0o755)
    (FOLDER / "munge.key").write_bytes(secrets.token_bytes(128))
    (FOLDER / "munge.key").chmod(0o400)
    (FOLDER / "slurm.conf").write_text(CONFIGURATION.format(folder=FOLDER, cpus=max(2, os.cpu_count() or 2)))
    DEFAULT_PLACE.parent.mkdir(exist_ok=True)
    DEFAULT_PLACE.symlink_to(FOLDER / "slurm.conf")
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
             "seed-file": "munged.seed"}  # fmt: skip
    _run("munged", "--force", *(f"--{option}={FOLDER / name}" for option, name in munge.items()))
    _run("slurmctld")
    for node in ("one", "two"):
        _run("slurmd", "-N", node)
    deadline = time.monotonic() + 30
    while _run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() != "2":
        if time.monotonic() > deadline:
            raise RuntimeError(f"the nodes do not come up; see {FOLDER}/*.log")
        time.sleep(0.2)


def stop() -> None:
    """Cancel every job, end the daemons and remove all that `start` wrote."""
    if (FOLDER / "slurmctld.pid").exists():
        with suppress(subprocess.CalledProcessError):
            _run("scancel", "--partition=tests")
    for name in ("one", "two", "slurmctld", "munged"):
        _end(FOLDER / f"{name}.pid")
    if DEFAULT_PLACE.is_symlink() and DEFAULT_PLACE.readlink() == FOLDER / "slurm.conf":
        DEFAULT_PLACE.unlink()
    shutil.rmtree(FOLDER, ignore_errors=True)


def _end(pid_file: Path) -> None:
    """End the daemon of a pid file and wait for it."""
    if _running(pid_file):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + 10
    while _running(pid_file) and time.monotonic() < deadline:
        time.sleep(0.05)


def _running(pid_file: Path) -> bool:
    """Whether the daemon of a pid file is there, and not one that has ended and that nobody waits for."""
    try:
        state = Path(f"/proc/{int(pid_file.read_text())}/stat").read_text()
    except (OSError, ValueError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "PATH": _path()}
    )
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("start", "stop"):
        sys.exit("usage: python tests/slurm/cluster.py start|stop")
    if sys.argv[1] == "start" and (reason := obstacle()):
        sys.exit(f"no Slurm can be started here: {reason}")
    {"start": start, "stop": stop}[sys.argv[1]]()
