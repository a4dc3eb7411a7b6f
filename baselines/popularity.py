"""Popularity: every user is offered the items that the training part holds most often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.recommender import Catalogue, PackedSequences, SelfTrainedRecommender


@dataclass(frozen=True)
class PopularitySettings:
    """There is nothing to set."""


class Popularity(SelfTrainedRecommender):
    """The score of an item is its number of training events, the same for every history.

    counts: (items,) int64 training events of each item; a buffer, so that a checkpoint restores the method. Counts up
    to 2^24 are exact as float32 scores; beyond, two neighbouring counts may tie, but never change order.
    """

    Settings = PopularitySettings
    similarity = "dot"
    counts: Tensor

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: PopularitySettings) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(catalogue.size, dtype=torch.int64))

    def fit(self, training: PackedSequences, validation_targets: Tensor | None, seed: int) -> dict[str, float]:
        self.counts.copy_(torch.bincount(training.items, minlength=self.counts.numel()))
        return {"training_events": float(training.items.numel())}

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, 1) training events of each."""
        return self.counts[items].float().unsqueeze(1)

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, 1) ones: the history does not matter."""
        return torch.ones_like(items)
