"""The container definition names files that exist, and all that a run needs. Nobody has built it yet."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmark.provenance import git_revision

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "workflow/container/Dockerfile"


def test_the_container_has_the_lock_file_and_everything_that_the_workflow_reads(tmp_path):
    copied = set()
    for sources, target in re.findall(r"^COPY (.+) (\S+)$", DOCKERFILE.read_text(), re.MULTILINE):
        copied |= set(sources.split())
        for name in sources.split():
            place = tmp_path / (Path(target) / name if target.endswith("/") else target)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
    assert all((ROOT / name).exists() for name in copied)
    needed = {"requirements.lock", "Snakefile", "benchmark", "models", "baselines", "workflow", "config"}
    assert needed | {"results/published", "results/reference/speed.csv"} <= copied
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} <= set(ignored)
    (tmp_path / "profiles").symlink_to("workflow/profiles")
    snakemake = Path(sys.executable).with_name("snakemake")
    done = subprocess.run(
        [snakemake, "--dry-run", "--quiet", "all"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_outside_a_checkout_the_revision_is_what_the_container_was_built_from(monkeypatch):
    assert "HLLM_BENCH_REVISION=$REVISION" in DOCKERFILE.read_text()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HLLM_BENCH_REVISION", "abc123")
    assert git_revision() == "abc123"
