"""The shapes at which speed is measured, as config/speed.yaml describes them, and seeded synthetic data of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.data import randomness
from benchmark.data.batches import TrainingBatch
from benchmark.errors import UserError
from benchmark.experiments.run import EngineName, Offload
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.settings import Settings, read_yaml, validated

_SHORTEST, _LONGEST = 8, 256  # tokens of a text
_VOCABULARY = 32_000
TEXTS = 32_768  # most items that are given a text; steps and encoding draw from them


class TextLengths(Settings):
    median: float = Field(gt=0)
    spread: float = Field(ge=0)


class Shape(Settings):
    """sequence_length: events that the model reads; a window has one more. mean_events: of a window, the target
    included; None fills every slot. negatives: shared by the step, or a position's own. released: milliseconds a step
    of the released code, by method."""

    users: int = Field(gt=0)
    sequence_length: int = Field(gt=0)
    mean_events: float | None = Field(None, gt=2)
    negatives: int = Field(gt=0)
    sharing: Literal["shared", "per_position"] = "shared"
    text: TextLengths | None = None
    catalogue: int = Field(gt=0)
    released: dict[str, float] = {}


class Method(Settings):
    class_: str = Field(alias="class")
    precision: Literal["fp32", "bf16"]
    model: dict[str, Any]


class SpeedFile(Settings):
    """config/speed.yaml."""

    methods: dict[str, Method]
    shapes: dict[str, Shape]


@dataclass(frozen=True)
class Case:
    """A method at a shape on a device. compiled: let torch.compile make the kernels; item_chunk: see ItemEmbedder;
    graphs, engine, offload: see ExecutionSettings."""

    name: str
    shape_name: str
    method: Method
    shape: Shape
    device: torch.device
    compiled: bool
    item_chunk: int | None = None
    seed: int = 2020
    engine: EngineName = "auto"
    offload: Offload = "none"
    graphs: bool = True


def load_case(
    path: Path, method: str, shape: str, *, device: torch.device, compiled: bool, item_chunk: int | None = None
) -> Case:
    """The case that config/speed.yaml describes under these two names."""
    content = validated(SpeedFile, read_yaml(path), str(path))
    for kind, name, known in (("method", method, content.methods), ("shape", shape, content.shapes)):
        if name not in known:
            raise UserError(f"{path} has no {kind} {name!r}; it has: {', '.join(known)}")
    chosen = content.methods[method], content.shapes[shape]
    return Case(method, shape, *chosen, device, compiled, item_chunk)


def synthetic_catalogue(case: Case) -> Catalogue:
    """Items whose texts are random tokens of the shape's lengths, [ITEM] not counted."""
    shape = case.shape
    if shape.text is None:
        return Catalogue(shape.catalogue)
    size = min(shape.catalogue, TEXTS)
    generator = torch.Generator().manual_seed(case.seed)
    normal = torch.randn(size, generator=generator, device="cpu")
    lengths = torch.exp(math.log(shape.text.median) + shape.text.spread * normal).round()
    lengths = lengths.clamp(_SHORTEST, _LONGEST).long()
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    tokens = torch.randint(_VOCABULARY, (int(offsets[-1]),), generator=generator, dtype=torch.int32, device="cpu")
    return Catalogue(size, tokens.to(case.device), offsets, _VOCABULARY)


def synthetic_batch(case: Case, step: int) -> TrainingBatch:
    """The training batch of a step, on the case's device."""
    shape = case.shape
    size = shape.catalogue if shape.text is None else min(shape.catalogue, TEXTS)
    generator = torch.Generator().manual_seed(case.seed + step)
    lengths = _window_lengths(shape, generator) - 1
    total = int(lengths.sum())
    items, targets = torch.randint(size, (2, total), generator=generator, device="cpu")
    times = torch.arange(total, device="cpu")
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    sequences = PackedSequences(items, times, times + 1, offsets, int(lengths.max())).to(case.device)
    if shape.text is not None:  # a window's targets are its next inputs, and its last target is one more item
        shifted = sequences.items.roll(-1)
        last = sequences.last
        targets = shifted.index_copy(0, last, targets.to(case.device)[last])
    count = shape.negatives * (total if shape.sharing == "per_position" else 1)
    each = torch.arange(count, device=case.device)
    key = randomness.key(case.seed, randomness.Stream.NEGATIVES, step)
    drawn = randomness.integers(key, each, size, case.compiled)
    negatives = drawn if shape.sharing == "shared" else drawn.view(total, shape.negatives)
    return TrainingBatch(sequences, targets.to(case.device), negatives)


def _window_lengths(shape: Shape, generator: torch.Generator) -> Tensor:
    """(users,) events of each window: all slots, or 2 + an exponential cut at the window, of the wanted mean."""
    window = shape.sequence_length + 1
    if shape.mean_events is None:
        return torch.full((shape.users,), window, device="cpu")
    uniform = torch.rand(shape.users, generator=generator, device="cpu")
    # Quantiles of equal spacing, moved together by chance: every step has nearly the wanted mean.
    quantiles = (torch.arange(shape.users, device="cpu") + uniform[0]) / shape.users
    scale = _scale_of_mean(shape.mean_events - 2, window - 2)
    return (2 - scale * torch.log1p(-quantiles)).round().clamp(2, window).long()


def _scale_of_mean(mean: float, limit: float) -> float:
    """The scale s of an exponential cut at limit, so that its mean, s (1 - exp(-limit / s)), is the wanted one."""
    low, high = 1e-3, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if -middle * math.expm1(-limit / middle) < mean else (low, middle)
    return low
