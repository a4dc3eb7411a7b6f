"""The workflow and the command line as people use them: what is planned, what is refused, and how it is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.experiments import Configuration

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project without results or data."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "Snakefile",
        "workflow",
        "profiles",
        "config",
        "benchmark",
        "models",
        "baselines",
        "results/published",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def snakemake(folder, *arguments):
    return subprocess.run(
        [str(SNAKEMAKE), *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["table7", "scaling_item"])
def test_a_dry_run_lists_every_run_without_other_options(checkout, target):
    done = snakemake(checkout, "--dry-run", target)
    assert done.returncode == 0, done.stderr
    assert "workflow specific profile profiles/default" in done.stderr  # which says how many cores to use
    for run in Configuration(ROOT / "config").plan(target, "laptop").runs():
        assert f"results/laptop/runs/{run.id}/ranks.parquet" in done.stdout


def test_the_report_is_of_all_tables_of_the_preset(checkout):
    done = snakemake(checkout, "--dry-run", "report")
    assert done.returncode == 0, done.stderr
    assert "output: results/laptop/report.html" in done.stdout
    for name in Configuration(ROOT / "config").tables("laptop"):
        assert f"results/laptop/{name}.csv" in done.stdout
    for caption in ("workflow", "table", "report"):
        assert (checkout / "workflow" / "report" / f"{caption}.rst").is_file()


def test_other_seeds_are_other_runs(checkout):
    done = snakemake(checkout, "--dry-run", "table7", "--config", "seeds=7,8")
    assert done.returncode == 0, done.stderr
    assert "sasrec-seed7-" in done.stdout
    assert "sasrec-seed8-" in done.stdout
    assert "seed2020" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "preset=big"], "config/presets/big.yaml does not exist; config/presets has: "),
        (["--config", "sedes=1"], "--config has no option 'sedes'; it has: overrides, preset, seeds, tables"),
        (["--config", "seeds=one"], "--config seeds=one is not a list of whole numbers"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_anything_starts(checkout, arguments, message):
    done = snakemake(checkout, "--dry-run", "table7", *arguments)
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "books"], "config/datasets.yaml has no data set 'books'; it has: amazon-games, ml-100k"),
        (["table", "table7", "--preset", "big"], "config/presets/big.yaml does not exist"),
        (["table", "table7"], "is no finished run: it lacks run.yaml"),
        (["train", "absent/run.yaml"], "absent/run.yaml does not exist"),
        (["resolve", "nothing", "--table", "table7", "--out", "run.yaml"], "has no run nothing; it has: ml-100k-"),
    ],
)
def test_a_users_mistake_is_one_sentence_without_a_traceback(checkout, arguments, message):
    done = command(checkout, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("error: ", "["))
    assert len(done.stderr.strip().splitlines()) == 1


def test_popularity_from_raw_files_to_ranks_through_the_verbs(checkout):
    run = next(r for r in Configuration(ROOT / "config").plan("table7", "laptop").runs() if r.method == "popularity")
    file = f"results/laptop/runs/{run.id}/run.yaml"
    for step in (
        ["prepare", "ml-100k"],
        ["resolve", run.id, "--table", "table7", "--out", file],
        ["train", file],
        ["rank", file],
    ):
        done = command(checkout, *step)
        assert done.returncode == 0, done.stderr
    written = {path.name for path in (checkout / file).parent.iterdir()}
    assert {"run.yaml", "ranks.parquet", "metrics.csv", "training.csv", "provenance.json", "train.log"} <= written
