"""The house's rules: imports run one way, no method is named in code, and nothing runs what it reads."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD_FILES = sorted((ROOT / "models").glob("*.py")) + sorted((ROOT / "baselines").glob("*.py"))
BENCHMARK_FILES = sorted((ROOT / "benchmark").rglob("*.py"))
LAYERS = {  # what a part of benchmark may import of benchmark
    "experiments": {"experiments", "data", "errors", "settings"},
    "data": {"data", "recommender", "errors", "files", "settings"},
    "training": {"training", "processes", "evaluation", "data", "recommender", "attention", "errors", "files"}
    | {"experiments", "host_memory"},
    "evaluation": {"evaluation", "processes", "data", "recommender", "errors", "files"},
    "doctor": {"doctor", "data", "errors", "experiments", "gpus", "host_memory", "provenance"},
    "analysis": {"analysis", "evaluation", "data", "errors", "files", "settings", "experiments", "provenance"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda p: p.name)
def test_methods_import_the_contract_and_attention_only(path):
    allowed = ("benchmark.recommender", "benchmark.attention")
    modules = {name for name in imported(path) if name.startswith("benchmark.")}
    assert all(name.startswith(allowed) for name in modules), modules


@pytest.mark.parametrize("path", BENCHMARK_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_benchmark_knows_no_method_by_name(path):
    assert not [name for name in imported(path) if name.split(".")[0] in ("models", "baselines")]


@pytest.mark.parametrize("path", BENCHMARK_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = path.relative_to(ROOT / "benchmark").parts[0]
    if part not in LAYERS:
        pytest.skip("a top-level module: the command line, the contract, the configuration")
    allowed = tuple(f"benchmark.{name}" for name in LAYERS[part])
    modules = {name for name in imported(path) if name.startswith("benchmark.")}
    assert all(name.startswith(allowed) for name in modules), modules


def test_nothing_evaluates_or_unpickles_what_it_reads():
    risky = re.compile(r"\b(eval|exec)\(|pickle\.load|trust_remote_code=True|weights_only=False|shell=True")
    for path in [*BENCHMARK_FILES, *METHOD_FILES]:
        found = [line for line in path.read_text().splitlines() if risky.search(line) and ".eval()" not in line]
        assert not found, (path, found)
