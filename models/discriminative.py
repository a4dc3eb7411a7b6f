"""Discriminative HLLM: will this user click on this item? (arXiv 2409.12740v1, section 3.3; its code is unpublished.)

Early fusion appends the target's item embedding to the history, and a head on that position's output gives the logit.
Late fusion appends a learnable vector [USER] instead; its output and the target's item embedding go to the head, so
that one pass through the User LLM serves every candidate of a request. Any method whose histories are causal can be
the base.

What the paper leaves open, and is chosen here: the head is linear, GELU, linear; in late fusion it also reads the
product of state and target, because a small head over two vectors side by side hardly learns whether they match.
[USER] is drawn from N(0, 0.02), as [ITEM] is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from benchmark.recommender import Catalogue, ClickRecommender, PackedSequences, SequentialRecommender
from models.cached_items import CachedItems, CachedItemsSettings
from models.hllm import HLLM, HLLMSettings
from models.pretrained import width

Fusion = Literal["early", "late"]


def with_user(items: Tensor, sequences: PackedSequences, user_token: Tensor) -> Tensor:
    """(t, d) item embeddings with the requests' replaced by [USER], (d,)."""
    request = torch.zeros(len(items), 1, dtype=torch.bool, device=items.device)
    request[sequences.last] = True
    return torch.where(request, user_token.to(items.dtype), items)


class Discriminative(ClickRecommender):
    """A method with a click head. item_width: of the base's item embeddings and outputs; head_width: None for it."""

    def __init__(
        self, base: SequentialRecommender, item_width: int, fusion: Fusion, head_width: int | None = None
    ) -> None:
        super().__init__()
        self.base, self.similarity, self.target_in_history = base, base.similarity, fusion == "early"
        inner = head_width or item_width
        inputs = item_width if self.target_in_history else 3 * item_width
        self.head = nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, 1))
        if not self.target_in_history:
            self.user_token = nn.Parameter(torch.empty(item_width).normal_(0, 0.02))

    def embed_items(self, items: Tensor) -> Tensor:
        return self.base.embed_items(items)

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        return self.base.embed_histories(sequences, items)

    def item_sizes(self, items: Tensor) -> Tensor | None:
        return self.base.item_sizes(items)

    def item_table(self) -> Tensor | None:
        return self.base.item_table()

    def heavy_layers(self) -> list[nn.Module]:
        return self.base.heavy_layers()

    def light_layers(self) -> list[nn.Module]:
        return self.base.light_layers()

    def click_states(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        if not self.target_in_history:
            items = with_user(items, sequences, self.user_token)
        return self.base.embed_histories(sequences, items)[sequences.last]

    def click_logits(self, states: Tensor, targets: Tensor) -> Tensor:
        read = states if self.target_in_history else torch.cat([states, targets, states * targets], dim=1)
        logits: Tensor = self.head(read).squeeze(1).float()
        return logits


@dataclass(frozen=True)
class DiscriminativeHLLMSettings:
    """hllm: the method below the head. head_width: inner width of the head, None for that of the item embeddings."""

    hllm: HLLMSettings = field(default_factory=HLLMSettings)
    fusion: Fusion = "late"
    head_width: int | None = None


class DiscriminativeHLLM(Discriminative):
    """HLLM with a click head."""

    Settings = DiscriminativeHLLMSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: DiscriminativeHLLMSettings) -> None:
        if settings.fusion == "late" and "item_id" in settings.hllm.user_inputs:
            raise ValueError("[USER] has no item id: leave item_id out of hllm.user_inputs, or set fusion to early")
        base = HLLM(catalogue, sequence_length + 1, settings.hllm)
        super().__init__(base, width(base.item_llm.backbone), settings.fusion, settings.head_width)


@dataclass(frozen=True)
class DiscriminativeCachedSettings:
    """cached: the method below the head. head_width: see DiscriminativeHLLMSettings."""

    cached: CachedItemsSettings = field(default_factory=CachedItemsSettings)
    fusion: Fusion = "late"
    head_width: int | None = None


class DiscriminativeCached(Discriminative):
    """A User LLM on another run's item embeddings with a click head: the second stage of the paper's industrial recipe.

    Its weights have the names of DiscriminativeHLLM's, so that it can start from that run's base.user_llm, user_token
    and head.
    """

    Settings = DiscriminativeCachedSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: DiscriminativeCachedSettings) -> None:
        if settings.fusion == "late" and "item_id" in settings.cached.user_inputs:
            raise ValueError("[USER] has no item id: leave item_id out of cached.user_inputs, or set fusion to early")
        base = CachedItems(catalogue, sequence_length + 1, settings.cached)
        super().__init__(base, base.embeddings.shape[1], settings.fusion, settings.head_width)
