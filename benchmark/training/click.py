"""The discriminative objective: lambda * L_gen + L_cls over (history, target, label) cases (paper section 3.3)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.data.batches import BatchLabels, TrainingBatch
from benchmark.data.click_cases import ClickData, click_data
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import auc, group_auc, losses
from benchmark.evaluation.clicks import predict_clicks
from benchmark.experiments import Run
from benchmark.recommender import ClickRecommender, PackedSequences, SequentialRecommender
from benchmark.training.objectives import InfoNCE, Objective, ObjectiveOutput, RunningModel, StepItems
from benchmark.training.precision import Precision


class ClickObjective(Objective):
    """L_cls is binary cross-entropy, its mean taken over the positions of the windows, and the cases that a window has
    drawn stand for all its positions. L_gen is the generative loss over the events that histories are made of.

    Every case is a sequence of its own: the user's newest earlier events that count as history, as many as when clicks
    are predicted, and the request. So the loss for a target reads what a request at that time could, and neither its
    label nor anything later.
    """

    def __init__(self, generative: InfoNCE, generative_weight: float, history: Literal["all", "positive"]) -> None:
        super().__init__()
        self.generative, self.weight, self.history = generative, generative_weight, history
        if generative_weight == 0:
            generative.requires_grad_(False)

    def before_step(self) -> None:
        self.generative.before_step()

    def state_figures(self) -> dict[str, float]:
        return self.generative.state_figures() if self.weight else {}

    def items(self, batch: TrainingBatch) -> Tensor:
        if self.weight:
            return torch.cat([self.generative.items(batch), _labels(batch).requests.items])
        return _labels(batch).requests.items  # the targets are among them

    def loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> ObjectiveOutput:
        click = self._click_loss(model, batch, items)
        figures = {"click_loss": click.detach()}
        if not self.weight:
            return ObjectiveOutput(click, figures)
        pairs = batch if self.history == "all" else positive_pairs(batch)
        if pairs is None:
            return ObjectiveOutput(click, figures | {"generative_loss": torch.zeros_like(click)})
        generative = self.generative.loss(model, pairs, items)
        figures |= {"generative_loss": generative.loss.detach(), **generative.figures}
        return ObjectiveOutput(self.weight * generative.loss + click, figures)

    def _click_loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> Tensor:
        sequences, targets, labels, weights = click_cases(batch)
        states = model.call("click_states", sequences, items.of(sequences.items))
        logits = model.call("click_logits", states, items.of(targets))
        lost = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return (lost * weights).sum() / batch.totals.positions


def click_cases(batch: TrainingBatch) -> tuple[PackedSequences, Tensor, Tensor, Tensor]:
    """The c cases of a batch: their histories with requests, (c,) targets, (c,) labels, and (c,) how many positions of
    its window each stands for."""
    events, labels = batch.sequences, _labels(batch)
    chosen = labels.cases.nonzero().squeeze(1)
    window = events.segments[chosen]
    drawn = torch.bincount(window, minlength=len(events))
    weights = (events.lengths / drawn)[window]
    return labels.requests, batch.targets[chosen], labels.targets[chosen], weights


def positive_pairs(batch: TrainingBatch) -> TrainingBatch | None:
    """The windows' positive events alone, each with the next positive one as its target; None without any such pair.

    Means still divide by all positions of the global batch.
    """
    labels, events = _labels(batch), batch.sequences
    last = events.last
    # All events of the windows, the last targets included: inputs moved by the windows before them.
    place = torch.arange(len(labels.cases), device=last.device) + events.segments
    total = len(place) + len(last)

    def joined(inputs: Tensor, ends: Tensor) -> Tensor:
        return inputs.new_empty(total).index_copy(0, place, inputs).index_copy(0, place[last] + 1, ends)

    kept = joined(labels.events, labels.targets[last]) == 1
    window = joined(events.segments, events.segments[last])[kept]
    item = joined(events.items, batch.targets[last])[kept]
    time = joined(events.timestamps, events.next_timestamps[last])[kept]
    row = joined(torch.arange(len(place), device=last.device), last)[kept]  # the input event's; of no use for the ends
    first = torch.nonzero(window[1:] == window[:-1]).squeeze(1)  # positive events that another one follows
    if not len(first):
        return None
    lengths = torch.bincount(window[first], minlength=len(events))
    lengths = lengths[lengths > 0]
    sequences = PackedSequences(
        item[first], time[first], time[first + 1], F.pad(lengths.cumsum(0), (1, 0)), int(lengths.max())
    )
    negatives = batch.negatives if batch.negatives.dim() == 1 else batch.negatives[row[first]]
    return TrainingBatch(sequences, item[first + 1], negatives, batch.totals)


def _labels(batch: TrainingBatch) -> BatchLabels:
    if batch.labels is None:
        raise ValueError("the batch has no labels: make TrainingBatches with click_cases")
    return batch.labels


def clicks_of(run: Run, dataset: Dataset) -> ClickData | None:
    """The data set cut by time, for a run that predicts clicks."""
    click = run.training.click
    if click is None:
        return None
    return click_data(dataset, click.validation_share, click.test_share, click.history)


def check_click_selection(run: Run, clicks: ClickData) -> None:
    """UserError where no epoch could be the best, because the selection metric is none of clicks or is not defined for
    the validation cases; their labels alone tell it, so this comes before any training."""
    metric, cases = run.training.selection_metric, clicks.validation
    if metric not in ("auc", "group_auc"):
        raise UserError(f"run {run.id} predicts clicks: set training.selection_metric to auc or group_auc")
    if cases.label.min() == cases.label.max():
        raise UserError(
            f"run {run.id}: {metric} is not defined, because all {len(cases)} validation cases have the same label; "
            "raise training.click.validation_share"
        )
    if metric == "group_auc" and math.isnan(group_auc(cases.user, cases.label, np.zeros(len(cases)))):
        raise UserError(
            f"run {run.id}: group_auc is not defined, because no user has validation cases of both labels; set "
            "training.selection_metric to auc, or raise training.click.validation_share"
        )


def click_validation_metrics(
    run: Run, clicks: ClickData, model: SequentialRecommender, device: torch.device, precision: Precision
) -> dict[str, float]:
    """The metrics of the validation cases."""
    cases = clicks.validation
    length = run.evaluation.sequence_length
    logits = predict_clicks(click_model(run, model), clicks, cases, length, device, precision=precision)
    return {
        "auc": auc(cases.label, logits),
        "group_auc": group_auc(cases.user, cases.label, logits),
        "log_loss": float(losses(cases.label, logits).mean()),
    }


def click_model(run: Run, model: SequentialRecommender) -> ClickRecommender:
    if not isinstance(model, ClickRecommender):
        raise UserError(
            f"run {run.id}: method {run.method} has no click head: leave training.click out, or take a method with one"
        )
    return model
