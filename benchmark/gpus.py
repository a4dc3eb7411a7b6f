"""GPUs of one host for the runs that are started on it, so that no two have the same.

Each GPU has a lock file, and who holds its lock has the GPU. The system releases a lock when its process ends, however
it ends, so none goes stale. Under Slurm this is Slurm's affair.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Claim:
    """GPUs that this process holds until it ends or closes the claim."""

    names: tuple[str, ...]
    locks: tuple[int, ...]

    def close(self) -> None:
        for lock in self.locks:
            os.close(lock)


def host_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, by UUID: those of CUDA_VISIBLE_DEVICES if it is set, or all that
    nvidia-smi lists; none where there is no nvidia-smi. Indices count as nvidia-smi does."""
    try:
        asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
    if VISIBLE not in environment:
        return listed
    chosen = [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    return [listed[int(name)] if name.isdecimal() and int(name) < len(listed) else name for name in chosen]


def lock_folder() -> Path:
    """Where this user's lock files are on this host; the same for every process, whatever its TMPDIR."""
    return Path(f"/tmp/hllm-bench-gpus-{os.getuid()}")


def claim(names: Sequence[str], count: int, folder: Path, seconds_between: float = 1.0) -> Claim:
    """Hold `count` of the named GPUs, the first that are free; waits until as many are.

    Holds none while it waits, so that two that wait do not wait for each other.
    """
    if count > len(names):
        raise UserError(f"{count} GPUs are asked for and this host has {len(names)}; lower execution.processes")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else, so GPUs cannot be assigned; have it removed")
    told = False
    while True:
        held: list[tuple[str, int]] = []
        for name in names:
            if len(held) < count and (lock := _locked(folder / f"{name.replace('/', '-')}.lock")) is not None:
                held.append((name, lock))
        if len(held) == count:
            return Claim(tuple(name for name, _ in held), tuple(lock for _, lock in held))
        for _, lock in held:
            os.close(lock)
        if not told:
            log.info("waits for %d free GPU%s of %d", count, "s" * (count > 1), len(names))
            told = True
        time.sleep(seconds_between)


def _locked(path: Path) -> int | None:
    """The descriptor that holds a file's lock, or None if another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
