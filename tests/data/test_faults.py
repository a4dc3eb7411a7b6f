"""Kill -9 and full disks while a data set is prepared: the next call completes, and no half file is taken for whole."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from generate import generate

from benchmark.data.dataset import load_dataset
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
PREPARE = """
import os, pathlib, signal, sys
from benchmark.data import delimited, preparation
from benchmark.data.sources import DatasetDefinition
definition, out, moment = DatasetDefinition.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment == "parse":
    batches = delimited.DelimitedFile.batches
    def stopped(*arguments):
        yield next(batches(*arguments))
        kill()
    delimited.DelimitedFile.batches = stopped
else:
    save, files = preparation._save, []
    def saved(array, path):
        files.append(path)
        if len(files) == int(moment):
            path.write_bytes(b"half")
            kill()
        save(array, path)
    preparation._save = saved
preparation.prepare(definition, "hllm", out)
"""


@pytest.fixture
def definition(tmp_path):
    generate(tmp_path / "raw", interactions=4_000, users=200, items=100, seed=1)
    return DatasetDefinition(name="made", reader="csv", folder=tmp_path / "raw", licence="made")


def test_killed_at_any_moment_the_next_call_completes(definition, tmp_path):
    folder = tmp_path / "made" / "hllm"
    expected = prepare(definition, "hllm", tmp_path / "whole")
    for moment in ("parse", "2"):
        command = [sys.executable, "-c", PREPARE, definition.model_dump_json(), str(folder), moment]
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        with pytest.raises(UserError, match="python -m benchmark prepare made"):
            load_dataset(folder)
    assert prepare(definition, "hllm", folder) == expected
    assert load_dataset(folder).items.tolist() == load_dataset(tmp_path / "whole").items.tolist()
    killed = [path.name for path in folder.iterdir() if path.name.endswith(".part")]
    assert len(killed) <= 1  # what a killed process left is not in the way


@pytest.mark.parametrize(("limit", "file"), [(20_000, "timestamps.npy"), (1_000, "items.parquet")])
def test_a_full_disk_is_one_sentence_and_leaves_the_finished_parts(tmp_path, limit, file):
    generate(tmp_path / "raw", interactions=4_000 if limit > 1_000 else 100, users=20, items=90, seed=1)
    definition = DatasetDefinition(name="made", reader="csv", folder=tmp_path / "raw", licence="made")
    folder = tmp_path / "made" / "hllm"
    code = (
        "import resource, signal, sys, pathlib\n"
        "from benchmark.data.preparation import prepare\nfrom benchmark.data.sources import DatasetDefinition\n"
        "from benchmark.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "try: prepare(DatasetDefinition.model_validate_json(sys.argv[1]), 'hllm', pathlib.Path(sys.argv[2]))\n"
        "except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, definition.model_dump_json(), str(folder), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    written = ["items.npy", "timestamps.npy", "offsets.npy", "split.npy", "users.parquet", "items.parquet"]
    assert done.stdout.startswith(f"{folder / file} could not be written: File too large")
    assert done.stdout.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == set(written[: written.index(file)])
    assert prepare(definition, "hllm", folder).counts.users > 10
