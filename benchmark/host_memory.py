"""How much memory the host has left for this process."""

from __future__ import annotations

import sys
from pathlib import Path


def available_memory() -> int:
    """Bytes that the host has left, or that a container or a Slurm job may have, if that is less."""
    return min(_free_memory(), _cgroup_limit())


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say how much memory is available")


def _cgroup_limit() -> int:
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return int(text) if text.isdecimal() else sys.maxsize
