"""What a result says of its origin."""

import json
import re

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
