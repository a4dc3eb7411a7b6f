"""What a result says of its origin."""

import json
import re
import subprocess

import pytest
import torch

from benchmark import provenance


def test_names_code_packages_and_device(tmp_path):
    record = provenance.provenance(torch.device("cpu"), seed=4)
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", record["git_revision"])
    assert record["packages"]["torch"] == torch.__version__
    assert record["device"].endswith(("thread", "threads"))
    assert record["seed"] == 4
    assert record["peak_memory_bytes"] > 10_000_000
    provenance.write_json(tmp_path / "provenance.json", record)
    assert json.loads((tmp_path / "provenance.json").read_text()) == record


def test_outside_a_checkout_the_revision_is_what_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "benchmark" / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("HLLM_BENCH_REVISION", raising=False)
    assert provenance.git_revision() == "unknown"
    monkeypatch.setenv("HLLM_BENCH_REVISION", "abc")
    assert provenance.git_revision() == "abc"


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("models/mine.py", True),
        ("config/methods/mine.yaml", True),
        ("Snakefile", True),
        ("models/known.py", True),
        ("models/mine.pyc", False),
        ("mine.yaml", False),
        ("results/mine/report.html", False),
    ],
)
def test_a_revision_tells_of_every_file_that_a_run_reads_and_no_commit_holds(tmp_path, monkeypatch, path, changes):
    def git(*arguments):
        author = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True)

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "known.py").write_text("one = 1\n")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    git("init")
    git("add", ".")
    git("commit", "--message", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "benchmark" / "provenance.py"))
    assert re.fullmatch("[0-9a-f]{40}", provenance.git_revision())
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("one = 2\n")
    assert provenance.git_revision().endswith("+changes") == changes
