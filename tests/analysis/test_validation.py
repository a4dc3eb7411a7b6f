"""What rows reached on validation: the best epoch of each run, the earlier one of two equal ones."""

import csv
from pathlib import Path

import pytest

from benchmark.analysis.validation import write_validation
from benchmark.errors import UserError
from benchmark.experiments import Configuration

SCORES = {"fast": ["0.10", "0.30", "0.30", "0.2"], "slow": ["0.05", "0.06", "0.07", "0.08"]}


@pytest.fixture
def plan(tmp_path):
    """A table of two learning rates of HSTU, and of what each learned in four epochs."""
    config = Path(__file__).parents[2] / "config"
    for name in ("presets", "methods", "datasets.yaml", "costs.yaml"):
        (tmp_path / "config").mkdir(exist_ok=True)
        (tmp_path / "config" / name).symlink_to(config / name)
    (tmp_path / "config/tables").mkdir()
    rows = "".join(
        f"        - {{method: hstu-hllm, label: {label}, training: {{optimizer: {{learning_rate: {rate}}}}}}}\n"
        for label, rate in (("fast", 1.0e-2), ("slow", 1.0e-4))
    )
    (tmp_path / "config/tables/rates.yaml").write_text(
        "title: Rates\nchosen_from: true\nmetrics: [recall@10]\npresets:\n  laptop:\n"
        f"    - dataset: ml-100k\n      title: Films\n      reference: fast\n      rows:\n{rows}"
    )
    plan = Configuration(tmp_path / "config").plan("rates", "laptop")
    for run in plan.runs():
        folder = tmp_path / "runs" / run.id
        folder.mkdir(parents=True)
        lines = [f"{i + 1},{score}" for i, score in enumerate(SCORES[run.label])]
        (folder / "training.csv").write_text("\n".join(["epoch,ndcg@200", *lines]) + "\n")
    return plan


def test_the_best_epoch_of_each_run_is_told(plan, tmp_path):
    text = write_validation(plan, tmp_path)
    with (tmp_path / "rates_validation.csv").open() as file:
        found = [
            (r["method"], float(r["learning_rate"]), float(r["value"]), r["best_epoch"]) for r in csv.DictReader(file)
        ]
    assert found == [("fast", 1e-2, 0.3, "2"), ("slow", 1e-4, 0.08, "4")]
    assert "30.00" in text
    assert "2 of 4" in text
    assert "| slow | 0.0001 |" in (tmp_path / "rates_validation.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"), [("epoch,loss\n1,2\n", "has no epochs with ndcg@200"), ("epoch,ndcg@200\n", "has no epoch")]
)
def test_a_record_without_validation_is_one_sentence(plan, tmp_path, content, message):
    path = next((tmp_path / "runs").glob("*/training.csv"))
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        write_validation(plan, tmp_path)
    assert str(path) in str(caught.value)
