"""The contract between methods and the benchmark: what a sequential recommender is given, and what it returns.

Every method, from popularity to HLLM-7B, returns embeddings. One trainer, one objective and one evaluator serve them
all, and a method knows nothing of metrics, files or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device; from the host to a GPU through pinned memory, or the host would wait for all work before."""
    device = torch.device(device)
    if device.type == "cuda" and not x.is_cuda:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


@dataclass(frozen=True)
class PackedSequences:
    """The events of b users, t in all, one after another **without padding**; a user's events are oldest first.

    items: (t,) int64, catalogue indices.
    timestamps: (t,) int64, seconds since 1970 (or whatever the data set counts in).
    next_timestamps: (t,) int64, the time of each event's next one. For the last event that is the time of the request,
        which a method may use where the protocol provides it.
    offsets: (b + 1,) int64; user i's events are those from offsets[i] up to, not including, offsets[i + 1].
    max_length: events of the longest sequence, known on the host so that no kernel has to wait for it.
    """

    items: Tensor
    timestamps: Tensor
    next_timestamps: Tensor
    offsets: Tensor
    max_length: int

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def lengths(self) -> Tensor:
        """(b,) events of each user."""
        return self.offsets.diff()

    @cached_property
    def segments(self) -> Tensor:
        """(t,) which sequence each event belongs to."""
        rows = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.items.numel())

    @cached_property
    def positions(self) -> Tensor:
        """(t,) events before this one in its sequence: 0 for the oldest."""
        return torch.arange(self.items.numel(), device=self.offsets.device) - self.offsets[self.segments]

    @cached_property
    def positions_from_end(self) -> Tensor:
        """(t,) events after this one in its sequence: 0 for the newest."""
        return self.lengths[self.segments] - 1 - self.positions

    @cached_property
    def last(self) -> Tensor:
        """(b,) where the newest event of each sequence stands among the t events. Sequences must not be empty."""
        return self.offsets[1:] - 1

    def part(self, first: int, last: int) -> PackedSequences:
        """Sequences first up to, not including, last, of which there is at least one. Waits for the device."""
        bounds = self.offsets[first : last + 1]
        lengths, (start, end) = bounds.diff(), bounds[[0, -1]].tolist()
        return PackedSequences(
            self.items[start:end],
            self.timestamps[start:end],
            self.next_timestamps[start:end],
            bounds - start,
            int(lengths.max()),
        )

    def to(self, device: torch.device | str) -> PackedSequences:
        items, timestamps, next_timestamps, offsets = (
            sent(x, device) for x in (self.items, self.timestamps, self.next_timestamps, self.offsets)
        )
        return PackedSequences(items, timestamps, next_timestamps, offsets, self.max_length)


@dataclass(frozen=True)
class Catalogue:
    """What a method may know of the items: how many there are and, if it reads text, their tokens.

    tokens: (total,) integer token ids of all items' texts one after another, [ITEM] not included; None without text.
    token_offsets: (size + 1,) int64; item i's tokens are those from token_offsets[i] up to token_offsets[i + 1].
    vocabulary_size: number of token ids of the tokenizer, 0 without text.
    embeddings: (size, d) float32 item embeddings of another run, read only; None where the run does not start from one.
    pixels: (size, height, width, 3) uint8 pictures, on the host whatever the device; None without pictures.
    """

    size: int
    tokens: Tensor | None = None
    token_offsets: Tensor | None = None
    vocabulary_size: int = 0
    embeddings: Tensor | None = None
    pixels: Tensor | None = None


class SequentialRecommender(nn.Module, ABC):
    """A method: item embeddings, and the embedding of the next item after each event of a history.

    The score of an item is the dot product of the two. With `similarity = "cosine"` both are brought to unit length
    first, by `comparable`; what `embed_histories` reads is the embedding as it was before, as in the paper.

    A subclass names its settings in a dataclass, `Settings`, and is built as
    `Method(catalogue, sequence_length, settings)`; sequence_length is the longest history it will be given.
    """

    Settings: ClassVar[type[Any]]
    similarity: Literal["cosine", "dot"] = "cosine"

    @abstractmethod
    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, d) item embeddings."""

    @abstractmethod
    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, d) item embeddings of the t events -> (t, d) embedding of each event's next item, causal."""

    def forward(self, method: str, *inputs: Any) -> Tensor:
        """Run a function by its name: engines that spread the weights over GPUs act when a module is called."""
        embeddings: Tensor = getattr(type(self), method)(self, *inputs)
        return embeddings

    def item_sizes(self, items: Tensor) -> Tensor | None:
        """(n,) catalogue indices -> (n,) on the host: the work and memory that embedding each takes, such as its
        tokens. None where an item is a row of a table.

        A method that gives sizes takes `items` of `embed_items` from the host as well, which saves waiting for the GPU.
        """
        return None

    def item_table(self) -> Tensor | None:
        """(size, d) what `embed_items` gives for the whole catalogue, where that is a table and costs next to nothing;
        None where every item has its cost. A training step that needs most items then takes all, without finding out
        which."""
        return None

    def heavy_layers(self) -> list[nn.Module]:
        """The modules in which nearly all arithmetic happens, such as the layers of a language model. Whoever runs the
        method may compile each of them and let it work on half-precision copies of its weights."""
        return []

    def light_layers(self) -> list[nn.Module]:
        """Modules of little arithmetic that run on as many rows as the heavy ones, such as a final norm. Whoever runs
        the method may compile each of them."""
        return []

    def released_state(self, path: Path) -> dict[str, Tensor]:
        """The authors' checkpoint at path as the state of this model; ValueError where it does not fit."""
        raise ValueError(f"{type(self).__name__} has no checkpoint of its authors that can be read")

    def comparable(self, embeddings: Tensor) -> Tensor:
        """(n, d) embeddings of either kind -> (n, d) float32 vectors whose dot products are the scores."""
        embeddings = embeddings.float()
        return F.normalize(embeddings, dim=-1) if self.similarity == "cosine" else embeddings


class ClickRecommender(SequentialRecommender):
    """A method that also predicts whether a user clicks on a target item, in two steps: what depends on the history and
    perhaps the target, and a head. Its sequences have one event more than the longest history: the request.

    target_in_history: whether the request's event is the target itself (early fusion). Otherwise the target takes part
    in the second step alone, and a user's state serves every candidate (late fusion).
    """

    target_in_history: bool

    @abstractmethod
    def click_states(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, d) item embeddings of the events of b requests -> (b, d) states. The last event of each sequence is the
        request: its time is the request's and its item the target, which a method of late fusion must not read."""

    @abstractmethod
    def click_logits(self, states: Tensor, targets: Tensor) -> Tensor:
        """(b, d) states and (b, d) item embeddings of their targets -> (b,) logits, float32."""


class SelfTrainedRecommender(SequentialRecommender):
    """A method that fits itself to the training part instead of taking gradient steps of the benchmark's trainer."""

    @abstractmethod
    def fit(self, training: PackedSequences, validation_targets: Tensor | None, seed: int) -> dict[str, float]:
        """Fit to whole training sequences of b users.

        validation_targets: (b,) the item that follows each of them; None where the protocol has no validation part.
        Returns figures for the training record, such as {"epochs": 20}.
        """


def item_chunks(sizes: Tensor, chunks: int) -> list[Tensor]:
    """Cut n items into so many chunks, at most n, of about equal total size and of like sizes within.

    sizes: (n,) positive, on the host. Returns positions among the n, each in one chunk, largest sizes first.
    """
    order = sizes.argsort(descending=True, stable=True)
    middle = sizes[order].cumsum(0) - sizes[order] / 2
    bounds = torch.searchsorted(middle, sizes.sum() * torch.arange(1, chunks) / chunks)
    return [part for part in order.tensor_split(bounds) if len(part)]
