"""What results/reference shows is what its ranks give, to the byte."""

import shutil
from pathlib import Path

from benchmark.analysis.reference import rebuild
from benchmark.experiments import Configuration

KEPT = Path(__file__).parent.parent / "results" / "reference"


def test_every_table_is_computed_from_the_kept_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(KEPT.parents[1])  # tables name files of published numbers from here
    again = tmp_path / "reference"
    for runs in KEPT.glob("*/runs"):
        shutil.copytree(runs, again / runs.relative_to(KEPT))
    assert len(list(rebuild(Configuration(Path("config")), again))) >= 2
    rebuilt = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    folders = [runs.parent for runs in KEPT.glob("*/runs")]
    kept = sorted(path.relative_to(KEPT) for folder in folders for path in folder.rglob("*") if path.is_file())
    assert rebuilt == kept
    for path in rebuilt:
        assert (again / path).read_bytes() == (KEPT / path).read_bytes(), path
