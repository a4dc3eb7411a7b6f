"""The container definition names files that exist, and all that a run needs. Nobody has built it yet."""

import re
from pathlib import Path

from benchmark.provenance import git_revision

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "workflow/container/Dockerfile"


def test_the_container_has_the_lock_file_and_everything_that_the_workflow_reads(tmp_path):
    copied = set()
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE):
        copied |= set(sources.split())
    assert all((ROOT / name).exists() for name in copied)
    needed = {"requirements.lock", "Snakefile", "benchmark", "models", "baselines", "workflow", "config"}
    assert needed | {"results/published"} <= copied
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} <= set(ignored)


def test_outside_a_checkout_the_revision_is_what_the_container_was_built_from(monkeypatch):
    assert "HLLM_BENCH_REVISION=$REVISION" in DOCKERFILE.read_text()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HLLM_BENCH_REVISION", "abc123")
    assert git_revision() == "abc123"
