"""User LLM: the item embeddings of a history become the embedding of each event's next item (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from baselines.hstu import HSTU
from baselines.sasrec import SASRec
from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender
from models.pretrained import (
    BackboneSettings,
    check_length,
    final_norm,
    is_causal,
    layers,
    load_backbone,
    run_packed,
    width,
)

UserInput = Literal["text", "item_id", "timestamp"]

_TIME_PARTS = (2100, 13, 32, 24, 60, 60)  # year, month, day, hour, minute, second; the released sizes
_TIME_WIDTH = 512


@dataclass(frozen=True)
class UserModelSettings(BackboneSettings):
    """kind: a language model, or the blocks of a baseline without its item table, which then read item embeddings of
    texts (paper tables 5, 6 and 10); `config` holds that baseline's settings, and `frozen` alone counts of the rest."""

    kind: Literal["language_model", "sasrec", "hstu"] = "language_model"


def load_user_backbone(settings: UserModelSettings, sequence_length: int) -> nn.Module:
    """A decoder without word embeddings, or a baseline without item table, for histories of at most that length."""
    if settings.kind == "language_model":
        backbone = load_backbone(settings, vocabulary_size=None)
        check_length(backbone, sequence_length, "the longest history")
        return backbone
    build: Any = {"sasrec": SASRec, "hstu": HSTU}[settings.kind]
    known = {field.name for field in fields(build.Settings)} - {"item_width"}
    if unknown := sorted(set(settings.config) - known):
        raise ValueError(
            f"user_model.config has {unknown[0]!r}; for {settings.kind} it has: {', '.join(sorted(known))}"
        )
    blocks: nn.Module = build(Catalogue(1), sequence_length, build.Settings(**settings.config))
    del blocks.item_embedding
    return blocks.requires_grad_(not settings.frozen).train(not settings.frozen)


class UserLLM(nn.Module):
    """A model from `load_user_backbone` over the packed item embeddings of the histories.

    Where the item embeddings are not as wide as the model, one bias-free linear map leads into it and one out of it;
    the paper's models are of one width and have neither. inputs, summed: "text" the item embeddings, "item_id" a
    learned vector an item, "timestamp" the event's time (paper table 12). What is predicted stays the item embedding.
    """

    def __init__(
        self,
        backbone: nn.Module,
        item_width: int,
        catalogue_size: int,
        inputs: tuple[UserInput, ...] = ("text",),
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, SequentialRecommender) and not is_causal(backbone):
            raise ValueError("the user model must be a decoder: an encoder sees the events that it is to predict")
        if not inputs or len(set(inputs)) != len(inputs):
            raise ValueError(f"user_inputs {list(inputs)} must name text, item_id or timestamp, each at most once")
        self.backbone, self.inputs, self.frozen = backbone, inputs, frozen
        is_baseline = isinstance(backbone, SequentialRecommender)
        own_width = int(backbone.position_embedding.embedding_dim) if is_baseline else width(backbone)  # type: ignore[union-attr, arg-type]
        same = item_width == own_width
        self.into = nn.Identity() if same or "text" not in inputs else nn.Linear(item_width, own_width, bias=False)
        self.out_of = nn.Identity() if same else nn.Linear(own_width, item_width, bias=False)
        if "item_id" in inputs:
            self.item_ids = nn.Embedding(catalogue_size, own_width)
            nn.init.normal_(self.item_ids.weight, std=0.02)
        if "timestamp" in inputs:
            self.time = TimeEmbedding(own_width)

    def train(self, mode: bool = True) -> UserLLM:
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def heavy_layers(self) -> list[nn.Module]:
        return (
            self.backbone.heavy_layers() if isinstance(self.backbone, SequentialRecommender) else layers(self.backbone)
        )

    def light_layers(self) -> list[nn.Module]:
        if isinstance(self.backbone, SequentialRecommender):
            return self.backbone.light_layers()
        return final_norm(self.backbone)

    def forward(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """items: (t, item width) embeddings of the t events -> (t, item width)."""
        parts = []
        if "text" in self.inputs:
            parts.append(self.into(items))
        if "item_id" in self.inputs:
            parts.append(self.item_ids(sequences.items))
        if "timestamp" in self.inputs:
            parts.append(self.time(sequences.timestamps))
        inputs = sum(parts[1:], parts[0])
        if isinstance(self.backbone, SequentialRecommender):
            states = self.backbone.embed_histories(sequences, inputs)
        else:
            states = run_packed(self.backbone, inputs, sequences.positions, sequences.offsets, sequences.max_length)
        predicted: Tensor = self.out_of(states)
        return predicted


class TimeEmbedding(nn.Module):
    """(t,) Unix seconds -> (t, width): one embedding for each part of the UTC date and time, joined, and an MLP.

    The paper gives the tables' sizes and "MLP"; here that is linear, SiLU, linear.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(size, _TIME_WIDTH) for size in _TIME_PARTS)
        for part in self.parts:
            nn.init.normal_(part.weight, std=0.02)  # type: ignore[arg-type]
        self.mlp = nn.Sequential(nn.Linear(_TIME_WIDTH * len(_TIME_PARTS), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestamps: Tensor) -> Tensor:
        date = calendar(timestamps)
        embedded: Tensor = self.mlp(
            torch.cat([part(column) for part, column in zip(self.parts, date.unbind(1), strict=True)], dim=1)
        )
        return embedded


def calendar(timestamps: Tensor) -> Tensor:
    """(t,) Unix seconds -> (t, 6) UTC year, month, day, hour, minute, second; years are held within 0 to 2099.

    Days become dates by counting 400-year cycles from 1 March of year 0, where the leap day comes last in a year.
    """
    days, seconds = timestamps.div(86_400, rounding_mode="floor"), timestamps.remainder(86_400)
    days = days + 719_468  # from 1 March of year 0 to 1 January 1970
    cycle, day_of_cycle = days.div(146_097, rounding_mode="floor"), days.remainder(146_097)
    year_of_cycle = (day_of_cycle - day_of_cycle // 1460 + day_of_cycle // 36_524 - day_of_cycle // 146_096) // 365
    day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle // 4 - year_of_cycle // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = (month_from_march + 2) % 12 + 1
    year = (cycle * 400 + year_of_cycle + (month <= 2)).clamp(0, _TIME_PARTS[0] - 1)
    return torch.stack([year, month, day, seconds // 3600, seconds // 60 % 60, seconds % 60], dim=1)
