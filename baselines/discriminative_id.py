"""A click model over item ids: HSTU with the head of `models.discriminative`, the control of discriminative HLLM.

The paper compares its discriminative models with a production system and names no id-based control. HSTU as its own
authors run it counts positions from the oldest event, so that a request at the end moves no other event's position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baselines.hstu import HSTU, HSTUSettings
from benchmark.recommender import Catalogue
from models.discriminative import Discriminative, Fusion


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
