"""What a model of clicks knows without looking at the user: a logit an item. What popularity is among rankers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.recommender import Catalogue, ClickRecommender, PackedSequences


@dataclass(frozen=True)
class ItemBiasSettings:
    """Nothing to set."""


class ItemBias(ClickRecommender):
    """Logistic regression on the target item alone; an item's embedding is its own logit, (n, 1)."""

    Settings = ItemBiasSettings
    similarity = "dot"
    target_in_history = False

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: ItemBiasSettings) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.item_bias = nn.Parameter(torch.zeros(catalogue.size, 1))

    def embed_items(self, items: Tensor) -> Tensor:
        return self.item_bias[items]

    def item_table(self) -> Tensor | None:
        return self.item_bias

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, 1) ones: the next item's score is its own logit, whatever the history."""
        return torch.ones_like(items)

    def click_states(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        return self.embed_histories(sequences, items)[sequences.last]

    def click_logits(self, states: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = ((states * targets).squeeze(1) + self.bias).float()
        return logits
