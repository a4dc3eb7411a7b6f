"""The verb that predicts clicks, on small trained runs."""

import pytest
import torch

from benchmark.commands import clicks, runs
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import read_clicks
from benchmark.training.checkpoint import load_weights, save_weights
from tests.training.interactions import write_csv
from tests.training.test_starting import write_run

HSTU = {"fusion": "early", "hstu": {"layers": 1, "heads": 2, "width": 16, "dropout": 0.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data/small/hllm, prepared; items of even numbers are liked."""
    folder = tmp_path_factory.mktemp("clicks")
    raw = write_csv(folder / "small" / "raw", users=60)
    header, *rows = (raw / "interactions.csv").read_text().splitlines()
    liked = [f"{row},{1 - int(row[3]) % 2}" for row in rows]
    (raw / "interactions.csv").write_text("\n".join([f"{header},liked", *liked]) + "\n")
    definition = DatasetDefinition(
        name="small", reader="csv", folder=raw, licence="generated", label={"column": "liked"}
    )
    prepare(definition, "hllm", folder / "small" / "hllm", "fail")
    return folder


def trained(data, name, **options):
    click = {"cases_per_window": 4, "validation_share": 0.2, "test_share": 0.2}
    path = write_run(data, name, "baselines.discriminative_id.DiscriminativeHSTU", HSTU, epochs=2,
                     selection_metric="auc", click=click, **options)  # fmt: skip
    runs.train(path, data)
    return path


@pytest.fixture(scope="module")
def run_file(data):
    return trained(data, "plain")


def test_predicts_every_test_case_and_times_requests(data, run_file):
    clicks.clicks(run_file, data)
    table = read_clicks(run_file.parent / "clicks.parquet")
    assert len(table) > 50
    assert (run_file.parent / "serving.csv").read_text().startswith("candidates,sharing,requests,")


def test_settings_that_were_changed_since_the_run_was_resolved_are_refused(data, run_file):
    resolved = run_file.read_text()
    (run_file.parent / "clicks.parquet").unlink(missing_ok=True)
    try:
        run_file.write_text(resolved.replace("test_share: 0.2", "test_share: 0.3"))
        with pytest.raises(UserError, match="was changed since it was resolved"):
            clicks.clicks(run_file, data)
    finally:
        run_file.write_text(resolved)
    assert not (run_file.parent / "clicks.parquet").exists()


def test_weights_that_are_no_numbers_are_told_in_one_sentence(data):
    path = trained(data, "lost")
    weights = load_weights(path.parent / "model.safetensors")
    save_weights(path.parent / "model.safetensors", {key: value * torch.nan for key, value in weights.items()})
    with pytest.raises(UserError, match=rf"run {path.parent.name}: a logit is not .*optimizer\.learning_rate"):
        clicks.clicks(path, data)
    assert not (path.parent / "clicks.parquet").exists()
