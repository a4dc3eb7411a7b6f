"""The verb that predicts clicks, on small trained runs."""

import csv

import numpy as np
import pytest
import torch

from benchmark.commands import clicks, runs
from benchmark.commands.shared import opened
from benchmark.data.click_cases import blocks
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import losses, read_clicks
from benchmark.experiments import load_run_file
from benchmark.training.checkpoint import load_weights, save_weights
from benchmark.training.click import clicks_of
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


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_clicks_are_validated_and_predicted_in_the_precision_of_the_run(data, name):
    """Every case on its own, its history in that precision, and the head over it in float32."""
    path = trained(data, name, precision=name)
    clicks.clicks(path, data)
    run = load_run_file(path)
    parts = opened(run, path.parent, data, pretrained=False)
    model, cut = parts.model, clicks_of(run, parts.dataset)
    model.load_state_dict(load_weights(path.parent / "model.safetensors"))
    model.eval()

    def one_by_one(cases, kind):
        logits = np.empty(len(cases))
        for [case], sequences, target in blocks(cut, cases, 6, 1):
            with torch.no_grad():
                with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                    state = model.click_states(sequences, model.embed_items(sequences.items))
                logits[case] = model.click_logits(state.float(), model.embed_items(target))
        return logits

    table = read_clicks(path.parent / "clicks.parquet")
    in_own, in_other = (one_by_one(cut.test, kind) for kind in (name, "bf16" if name == "fp32" else "fp32"))
    assert np.abs(table.logit - in_own).max() < 0.1 * np.abs(table.logit - in_other).max()
    assert len(np.unique(table.logit)) > 0.9 * len(np.unique(in_own))  # none tie by rounding
    best = max(read_record(path), key=lambda row: float(row["auc"]))
    losses_of = {
        kind: losses(cut.validation.label, one_by_one(cut.validation, kind)).mean() for kind in ("fp32", "bf16")
    }
    near = abs(float(best["log_loss"]) - losses_of.pop(name))
    assert near < 0.1 * abs(float(best["log_loss"]) - losses_of.popitem()[1])


def read_record(path):
    with (path.parent / "training.csv").open() as file:
        return list(csv.DictReader(file))
