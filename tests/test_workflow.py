"""The workflow and the command line as people use them: what is planned, what is refused, and how it is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.data.text import TextSettings, tokens_folder
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


def test_a_table_of_clicks_asks_for_predictions_instead_of_ranks(checkout):
    done = snakemake(checkout, "--dry-run", "discriminative")
    assert done.returncode == 0, done.stderr
    for run in Configuration(ROOT / "config").plan("discriminative", "laptop").runs():
        assert f"results/laptop/runs/{run.id}/clicks.parquet" in done.stdout
    assert "ranks.parquet" not in done.stdout
    assert "item_embeddings.npy" in done.stdout  # of the first stage, for the second


def test_some_tables_alone_with_a_file_of_the_users_own(checkout, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("training: {epochs: 1}\n")
    done = snakemake(checkout, "--dry-run", "all", "--config", "tables=table8", f"overrides={own}")
    assert done.returncode == 0, done.stderr
    runs = {run.label: run for run in Configuration(ROOT / "config", own).plan("table8", "laptop").runs()}
    source = runs["HLLM, first 10 events alone"].id
    assert f"results/laptop/runs/{source}/item_embeddings.npy" in done.stdout  # made for the run that reads it
    assert f"results/laptop/runs/{runs['HLLM (item cache)'].id}/ranks.parquet" in done.stdout
    assert "results/laptop/breakdown/table8.md" in done.stdout
    assert "table7" not in done.stdout
    assert "figure5" not in done.stdout


def test_the_report_is_of_all_tables_of_the_preset(checkout):
    done = snakemake(checkout, "--dry-run", "report")
    assert done.returncode == 0, done.stderr
    assert "output: results/laptop/report.html" in done.stdout
    for name in Configuration(ROOT / "config").tables("laptop"):
        assert f"results/laptop/{name}.csv" in done.stdout
    (inputs,) = (
        line for line in done.stdout.splitlines() if line.startswith("    input: ") and "deviations.md" in line
    )
    for name in ("deviations.md", "figure3.svg", "figure5.svg", "leaderboard.html", "table7.html"):
        assert f"results/laptop/{name}" in inputs  # what the page shows or links is made before it
    for caption in ("workflow", "table", "report"):
        assert (checkout / "workflow" / "report" / f"{caption}.rst").is_file()


def test_other_tables_ask_for_nothing_again(checkout):
    plans = [
        {run.id for run in Configuration(ROOT / "config").plan(t, "laptop").runs()} for t in ("table7", "unpublished")
    ]
    target = f"results/laptop/runs/{min(plans[0] & plans[1])}/run.yaml"
    assert snakemake(checkout, "--cores", "1", target, "--config", "tables=table7").returncode == 0
    again = snakemake(checkout, "--dry-run", target, "--config", "tables=unpublished", "seeds=2020")
    assert "Nothing to be done" in again.stdout, again.stdout + again.stderr


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
        (["--config", "sedes=1"], "--config has no option 'sedes'; it has: "),
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
        (["prepare", "books"], "config/datasets.yaml has no data set 'books'; it has: amazon-"),
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


def test_a_new_run_with_the_same_texts_makes_no_tokens_anew(checkout):
    """Nor, then, any finished run that reads them."""
    run = next(r for r in Configuration(ROOT / "config").plan("table10", "laptop").runs() if r.text is not None)
    settings = TextSettings.from_mapping(run.text)
    tokens = str(tokens_folder(Path(f"data/{run.dataset}/{run.protocol}"), settings) / "tokens.json")
    done = snakemake(checkout, "--cores", "1", tokens)
    assert done.returncode == 0, done.stderr
    assert (checkout / tokens).is_file()
    again = snakemake(checkout, "--dry-run", tokens, "--config", "seeds=2020,7")
    assert "Nothing to be done" in again.stderr + again.stdout


def test_two_results_are_compared_by_the_workflow(checkout):
    published = "results/published/hstu_repository.csv"
    done = snakemake(
        checkout, "compare", "--config", f"results={published}", f"against={published}", "reference=SASRec"
    )
    assert done.returncode == 0, done.stderr
    assert "Does A reproduce B? Yes: all 54 numbers are reproduced" in done.stdout
    assert (checkout / "results" / "laptop" / "compare.html").is_file()
