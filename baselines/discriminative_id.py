"""Click models over item ids: HSTU with the head of `models.discriminative`, alone and with HLLM's embeddings.

The paper compares its discriminative models with a production system and names no id-based control. HSTU as its own
authors run it counts positions from the oldest event, so that a request moves no other event's position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baselines.hstu import HSTU, HSTUSettings
from benchmark.recommender import Catalogue, ClickRecommender, PackedSequences
from models.cached_items import CachedItemsSettings
from models.discriminative import (
    Discriminative,
    DiscriminativeCached,
    DiscriminativeCachedSettings,
    Fusion,
    with_user,
)


@dataclass(frozen=True)
class DiscriminativeHSTUSettings:
    """hstu: the method below the head. head_width: inner width of the head, None for HSTU's width."""

    hstu: HSTUSettings = field(default_factory=HSTUSettings)
    fusion: Fusion = "late"
    head_width: int | None = None


class DiscriminativeHSTU(Discriminative):
    """HSTU over item ids with a click head."""

    Settings = DiscriminativeHSTUSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: DiscriminativeHSTUSettings) -> None:
        base = HSTU(catalogue, sequence_length + 1, settings.hstu)
        super().__init__(base, settings.hstu.width, settings.fusion, settings.head_width)


@dataclass(frozen=True)
class DownstreamClickSettings:
    """hstu: the id-based method. cached: the HLLM whose embeddings are features, as in the run that it starts from."""

    hstu: HSTUSettings = field(default_factory=HSTUSettings)
    cached: CachedItemsSettings = field(default_factory=CachedItemsSettings)
    head_width: int | None = None


class DownstreamClick(ClickRecommender):
    """The third stage of the paper's industrial recipe: an id-based click model that reads a frozen HLLM's embeddings
    of the user and of the target beside its own.

    The item embeddings are those that another run has exported. The user's, [USER]'s output, is computed by the frozen
    User LLM when it is needed, which gives the numbers that an export of every request would. `embed_items` returns the
    id's embedding and the text's side by side. base.user_llm and user_token have the names of DiscriminativeHLLM's.
    """

    Settings = DownstreamClickSettings
    target_in_history = False

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: DownstreamClickSettings) -> None:
        super().__init__()
        stage = DiscriminativeCached(catalogue, sequence_length, DiscriminativeCachedSettings(settings.cached))
        self.base, self.user_token = stage.base.requires_grad_(False), stage.user_token.requires_grad_(False)
        self.ids = HSTU(catalogue, sequence_length + 1, settings.hstu)
        self.id_width, text_width = settings.hstu.width, stage.user_token.numel()
        self.id_user_token = nn.Parameter(torch.empty(self.id_width).normal_(0, 0.02))
        inner = settings.head_width or self.id_width
        self.head = nn.Sequential(nn.Linear(3 * (self.id_width + text_width), inner), nn.GELU(), nn.Linear(inner, 1))

    def train(self, mode: bool = True) -> DownstreamClick:
        super().train(mode)
        self.base.eval()
        return self

    def embed_items(self, items: Tensor) -> Tensor:
        return torch.cat([self.ids.embed_items(items), self.base.embed_items(items)], dim=1)

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        by_id, by_text = items.tensor_split([self.id_width], dim=1)
        with torch.no_grad():
            exported = self.base.embed_histories(sequences, by_text)
        return torch.cat([self.ids.embed_histories(sequences, by_id), exported], dim=1)

    def click_states(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        user = torch.cat([self.id_user_token, self.user_token])
        return self.embed_histories(sequences, with_user(items, sequences, user))[sequences.last]

    def click_logits(self, states: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([states, targets, states * targets], dim=1)).squeeze(1).float()
        return logits
