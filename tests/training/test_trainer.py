"""Whole trainings of a small method: it learns, repeats itself bit by bit, and survives being stopped."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmark.data.dataset import VALIDATION, load_dataset
from benchmark.errors import UserError
from benchmark.evaluation.ranking import rank_cases
from benchmark.experiments import Run
from benchmark.recommender import SequentialRecommender
from benchmark.training.checkpoint import load_weights
from benchmark.training.progress import learning_rate_factor, write_record
from benchmark.training.trainer import Trainer, ranking_settings, seeded
from tests.training.interactions import prepared


class Walker(SequentialRecommender):
    """The next item is a linear function of this one."""

    def __init__(self, items, width=16, dropout=0.0):
        super().__init__()
        self.table, self.step, self.dropout = nn.Embedding(items, width), nn.Linear(width, width), nn.Dropout(dropout)

    def embed_items(self, items):
        return self.table(items)

    def embed_histories(self, sequences, items):
        return self.step(self.dropout(items))


def a_run(**training):
    settings = {
        "sequence_length": 6, "global_batch": 8, "negatives": {"count": 20}, "epochs": 4, "patience": 10,
        "optimizer": {"learning_rate": 0.01, "weight_decay": 0.0}, **training,
    }  # fmt: skip
    run = Run.model_validate({
        "id": "", "method": "walker", "label": "Walker", "class": "baselines.x.X", "dataset": "small",
        "protocol": "hllm", "dataset_definition": {}, "model": {}, "text": None, "training": settings,
        "evaluation": {"sequence_length": 6}, "seed": 3,
    })  # fmt: skip
    return run.model_copy(update={"id": run.identity()})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(prepared(tmp_path_factory.mktemp("trainer"), users=60))


def trained(run, dataset, folder, dropout=0.0, steps=None):
    model = seeded(lambda: Walker(dataset.item_count, dropout=dropout), run.seed)
    trainer = Trainer(run, dataset, model, folder, torch.device("cpu"))
    if steps is not None:  # stop as a crash would, some steps after the last saved state
        for _ in range(steps):
            trainer._train_step()
            if trainer.progress.step % trainer.batches.steps_per_epoch == 0:
                trainer._end_epoch()
                trainer._save()
        return trainer
    trainer.train()
    return trainer


def test_learns_what_comes_next(dataset, tmp_path):
    trainer = trained(a_run(epochs=20), dataset, tmp_path)
    record = trainer.progress.record
    assert record[-1]["loss"] < 0.7 * record[0]["loss"]
    ranks = rank_cases(trainer.model, dataset, dataset.cases("test"), ranking_settings(trainer.run)).rank
    assert (ranks <= 3).mean() > 0.5  # three of the 30 items can follow


def test_the_ranked_weights_are_those_of_the_best_validation_epoch(dataset, tmp_path):
    trainer = trained(a_run(epochs=6), dataset, tmp_path)
    scores = [row["ndcg@200"] for row in trainer.progress.record]
    assert trainer.progress.best_epoch == scores.index(max(scores)) + 1
    restored = Walker(dataset.item_count)
    restored.load_state_dict(load_weights(tmp_path / "model.safetensors"))
    from benchmark.evaluation.metrics import metric_mean

    ranks = rank_cases(restored, dataset, dataset.cases("validation"), ranking_settings(trainer.run)).rank
    assert metric_mean(ranks, "ndcg@200") == pytest.approx(max(scores))


def test_stops_when_patience_runs_out(dataset, tmp_path):
    trainer = trained(a_run(epochs=50, patience=2, optimizer={"learning_rate": 1e-9, "weight_decay": 0.0}),
                      dataset, tmp_path)  # fmt: skip
    record = trainer.progress.record
    assert len(record) < 50
    assert len(record) - trainer.progress.best_epoch == 2


@pytest.mark.parametrize("steps", [3, 17, 30])
def test_a_stopped_training_continues_to_the_same_weights(dataset, tmp_path, steps):
    run = a_run()
    whole = trained(run, dataset, tmp_path / "whole", dropout=0.2)
    trained(run, dataset, tmp_path / "stopped", dropout=0.2, steps=steps)
    again = trained(run, dataset, tmp_path / "stopped", dropout=0.2)
    assert again.progress.step == whole.progress.step
    for name, tensor in load_weights(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(tensor, load_weights(tmp_path / "stopped" / "model.safetensors")[name]), name


def test_a_damaged_state_is_passed_over_for_the_one_before(dataset, tmp_path, caplog):
    run = a_run()
    whole = trained(run, dataset, tmp_path / "whole")
    trained(run, dataset, tmp_path / "cut", steps=2 * whole.batches.steps_per_epoch)
    newest = max((tmp_path / "cut" / "state").glob("step-*")) / "part-0000.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    trained(run, dataset, tmp_path / "cut")
    assert "is damaged" in caplog.text
    for name, tensor in load_weights(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(tensor, load_weights(tmp_path / "cut" / "model.safetensors")[name])


def test_another_runs_state_is_refused(dataset, tmp_path):
    trained(a_run(), dataset, tmp_path, steps=20)
    with pytest.raises(UserError, match="belongs to other settings or data"):
        trained(a_run(epochs=9), dataset, tmp_path)


def test_collapse_stops_with_advice(dataset, tmp_path):
    run = a_run()
    model = seeded(lambda: Walker(dataset.item_count), run.seed)
    with torch.no_grad():
        model.table.weight.fill_(1.0)
    with pytest.raises(UserError, match=r"collapsed.*set training\.negatives\.mask to id"):
        Trainer(run, dataset, model, tmp_path, torch.device("cpu")).train()


def test_a_loss_that_is_no_number_stops_with_advice(dataset, tmp_path):
    run = a_run()
    model = seeded(lambda: Walker(dataset.item_count), run.seed)
    with torch.no_grad():
        model.step.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss of step 0 is nan; lower training\.optimizer\.learning_rate"):
        Trainer(run, dataset, model, tmp_path, torch.device("cpu")).train()


def test_weights_that_diverge_in_the_last_step_before_validation_stop_with_advice(dataset, tmp_path):
    """Each step's loss is that of the weights before it, so the only one here is finite."""
    run = a_run(epochs=1, global_batch=100_000, optimizer={"learning_rate": 1e37, "weight_decay": 0.0},
                temperature={"learnable": False})  # fmt: skip
    with pytest.raises(
        UserError, match=rf"run {run.id}: a score is not a finite .* training\.optimizer\.learning_rate"
    ):
        trained(run, dataset, tmp_path)


def test_without_validation_targets_no_epoch_can_be_the_best(dataset, tmp_path):
    split = dataset.split.copy()
    split[:, VALIDATION] = -1
    without = replace(dataset, split=split)
    with pytest.raises(UserError, match=r"no user with a validation target.*set training\.selection to last"):
        trained(a_run(), without, tmp_path)
    trained(a_run(selection="last", epochs=1), without, tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_learning_rate_schedules():
    constant = a_run().training
    assert learning_rate_factor(0, 100, constant) == 1
    cosine = a_run(schedule={"kind": "cosine", "warmup": 0.1}).training
    assert [learning_rate_factor(s, 100, cosine) for s in (0, 5, 10)] == [0, 0.5, 1]
    assert learning_rate_factor(55, 100, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_record_keeps_every_column(tmp_path):
    write_record(tmp_path / "training.csv", [{"epoch": 1.0, "loss": 0.25}, {"epoch": 2.0, "extra": 3.5}])
    assert (tmp_path / "training.csv").read_text() == "epoch,loss,extra\n1,0.25,\n2,,3.5\n"
