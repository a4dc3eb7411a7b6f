"""The dense all-action objective: every user embedding of the history predicts every one of the user's later targets.

Pancha et al., PinnerFormer, KDD 2022 (arXiv 2205.04507), as LEARN uses it (Jia et al., AAAI 2025, arXiv 2405.03988,
"Training Objective"): a positive pair is an embedding of the user's history and one of the same user's targets; its
negatives are the targets of the other users of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.data.batches import TrainingBatch
from benchmark.training.objectives import ObjectiveOutput, RunningModel, StepItems, Temperature, TemperedObjective


class DenseAllAction(TemperedObjective):
    """target_events: the newest events of a window are its targets, fewer where the window is too short to leave a
    history; history_events: so many of the newest embeddings of its history take part.

    The negatives are the batch's (see NegativeSettings.sharing: in_batch are the windows' last targets), but for the
    window's own targets. A pair's loss is the cross-entropy of its target among it and the negatives. The mean is over
    windows of the mean over the window's pairs, so that every user weighs the same.
    """

    def __init__(self, temperature: Temperature, history_events: int, target_events: int) -> None:
        super().__init__(temperature)
        self.history_events, self.target_events = history_events, target_events

    def items(self, batch: TrainingBatch) -> Tensor:
        if batch.negatives.dim() > 1:
            raise ValueError("dense all-action takes shared negatives: set negatives.sharing to in_batch or shared")
        return torch.cat([batch.sequences.items, batch.targets, batch.negatives])

    def loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> ObjectiveOutput:
        sequences = batch.sequences
        states = model.embed_histories(sequences, items.of(sequences.items))
        # Counted from the newest: targets[r] is the item after event r, so that the last `wanted` of a window are its
        # targets, and the events before the first of them its history.
        from_end, wanted = sequences.positions_from_end, sequences.lengths.clamp(max=self.target_events)
        wanted = wanted[sequences.segments]
        history = (from_end >= wanted - 1) & (from_end < wanted - 1 + self.history_events)
        target = from_end < wanted
        rows, columns = history.nonzero().squeeze(1), target.nonzero().squeeze(1)
        users, predicted = sequences.segments[rows], model.comparable(states[rows])
        scale = self.logit_scale.exp()
        candidates, negatives = batch.targets[columns], batch.negatives
        own = users[:, None] == sequences.segments[columns]  # (h, c): the pairs
        positive = predicted @ model.comparable(items.of(candidates)).T * scale
        others = predicted @ model.comparable(items.of(negatives)).T * scale
        same = (candidates[:, None] == negatives).float()
        targets_of = same.new_zeros(len(sequences), len(negatives)).index_add(0, sequences.segments[columns], same)
        masked = targets_of[users] > 0
        rest = others.masked_fill(masked, torch.finfo(others.dtype).min).logsumexp(1, keepdim=True)
        lost = F.softplus(rest - positive)  # -log(e^p / (e^p + sum e^n))
        pairs = torch.bincount(users[own.nonzero()[:, 0]], minlength=len(sequences))
        per_window = torch.zeros(len(sequences), device=rows.device).index_add(0, users, (lost * own).sum(1)) / pairs
        surviving = (~masked).sum(1).float()
        figures = {"surviving_negatives": surviving.mean() * len(sequences) / batch.totals.windows}
        return ObjectiveOutput(per_window.sum() / batch.totals.windows, figures)
