"""GPUs of one host: no two runs have the same one, and one whose process was killed is free at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmark import gpus
from benchmark.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = ["GPU-a", "GPU-b", "GPU-c"]

HOLD = """
import sys, time
from pathlib import Path
from benchmark.gpus import claim
held = claim(sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[1]))
print(*held.names, flush=True)
time.sleep(60)
"""


def holder(folder, count):
    """A process that holds `count` of the GPUs, and their names."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), ",".join(NAMES), str(count)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    return process, process.stdout.readline().split()


def test_processes_never_hold_the_same_gpu_and_a_killed_one_frees_its_own(tmp_path):
    first, of_first = holder(tmp_path / "locks", 2)
    second, of_second = holder(tmp_path / "locks", 1)
    try:
        assert (of_first, of_second) == (["GPU-a", "GPU-b"], ["GPU-c"])
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert gpus.claim(NAMES, 2, tmp_path / "locks", 0.01).names == ("GPU-a", "GPU-b")
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_a_claim_waits_for_all_its_gpus_and_holds_none_meanwhile(tmp_path):
    one = gpus.claim(NAMES, 1, tmp_path)
    got = []
    waiting = threading.Thread(target=lambda: got.append(gpus.claim(NAMES, 3, tmp_path, 0.02)))
    waiting.start()
    deadline = time.monotonic() + 20
    small = None
    while small is None and time.monotonic() < deadline:  # two are free between the attempts of the one that waits
        small = gpus.claim(NAMES, 2, tmp_path, 0.013)
    assert small is not None
    assert not got
    small.close()
    one.close()
    waiting.join(20)
    assert got[0].names == tuple(NAMES)
    got[0].close()


def test_more_gpus_than_the_host_has_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"4 GPUs are asked for and this host has 3"):
        gpus.claim(NAMES, 4, tmp_path)


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="belongs to somebody else"):
        gpus.claim(NAMES, 1, tmp_path / "locks")


def test_the_hosts_gpus_are_those_that_the_user_left_visible(tmp_path, monkeypatch):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\nGPU-c\\n'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpus.host_gpus({}) == NAMES
    assert gpus.host_gpus({gpus.VISIBLE: "2,GPU-a"}) == ["GPU-c", "GPU-a"]
    assert gpus.host_gpus({gpus.VISIBLE: ""}) == []
    monkeypatch.setenv("PATH", "")
    assert gpus.host_gpus({}) == []
