"""Objectives of one positive and one negative a position, on plain scores: what SASRec and PixelRec train with."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.data.batches import TrainingBatch
from benchmark.training.objectives import Objective, ObjectiveOutput, RunningModel, StepItems


class OneNegative(Objective):
    """ "bce": -log sigmoid(positive) - log(1 - sigmoid(negative)), Kang and McAuley (ICDM 2018, equation 7), and what
    PixelRec's paper states (Cheng et al., arXiv 2309.06789). "bpr": -log sigmoid(positive - negative), which is what
    PixelRec's code computes (code/REC/model/PixelNet/mosasrec.py). Summed over a window's positions, mean over windows,
    as in that code.
    """

    static = True

    def __init__(self, kind: Literal["bce", "bpr"]) -> None:
        super().__init__()
        self.kind = kind

    def items(self, batch: TrainingBatch) -> Tensor:
        if batch.negatives.dim() != 2 or batch.negatives.shape[1] != 1:
            raise ValueError(f"objective {self.kind} takes one negative a position: set count 1, sharing per_position")
        return torch.cat([batch.sequences.items, batch.targets, batch.negatives.flatten()])

    def loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> ObjectiveOutput:
        sequences = batch.sequences
        predicted = model.comparable(model.embed_histories(sequences, items.of(sequences.items)))
        positive, negative = (
            (predicted * model.comparable(items.of(chosen))).sum(1) for chosen in (batch.targets, batch.negatives[:, 0])
        )
        lost = F.softplus(negative - positive) if self.kind == "bpr" else F.softplus(-positive) + F.softplus(negative)
        return ObjectiveOutput((lost * (batch.shares > 0)).sum() / batch.totals.windows)
