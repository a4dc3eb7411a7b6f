"""Embedding a step's items within the memory that there is (GradCache, Gao et al., 2021, for what does not fit)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender, item_chunks, sent

log = logging.getLogger(__name__)

_FIRST_CHUNK = 4096  # of an item's size (tokens), before anything has been measured
_LARGEST_CHUNK = 24_576  # beyond it, kernels get no faster
_SHARE_OF_A_CHUNK = 0.4  # of the memory for graphs: one chunk's own needs beside its graph must find room too
_SHARE_OF_THE_ONE = 0.85  # the same, where no other graph is in memory
_SPARE_BYTES = 3 << 29  # for what no measurement sees: workspaces, fragments
_SPARE_SHARE = 0.02


class RandomState:
    """The state of torch's generators at one moment, to replay dropout in a second forward pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


@dataclass(frozen=True)
class _Chunk:
    """items: (c,); place: where they stand among the step's; size: their total. keep: its graph waits in memory for the
    backward pass; else the chunk is embedded a second time there."""

    items: Tensor
    place: Tensor
    size: int
    keep: bool


class GraphMemory:
    """How much memory of a CUDA device the graphs of item chunks may take.

    Measured on the first step, in which every chunk is small and recomputed: bytes of graph for a unit of item size,
    and what a step needs besides. From the second step on, when the optimizer's states are there too, graphs get what
    is left.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes_per_unit = 0.0
        self.rest = 0  # most bytes that a step adds after its items are embedded: histories, loss, their gradients
        self.caution = 1.0  # share of the budget that is used
        self._base = 0

    @property
    def measured(self) -> bool:
        return self.bytes_per_unit > 0

    def after_embedding(self) -> None:
        if not self.measured:
            self._base = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def before_backward(self) -> None:
        if not self.measured:
            self.rest = torch.cuda.max_memory_allocated(self.device) - self._base

    def note_graph(self, size: int, allocated_before: int) -> None:
        """The graph of a chunk of that size has just been made."""
        self.bytes_per_unit = max(
            self.bytes_per_unit, (torch.cuda.memory_allocated(self.device) - allocated_before) / size
        )

    def units(self) -> int:
        """Total size of the chunks whose graphs fit into memory now, at the start of a step."""
        free, total = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        budget = free + held - self.rest - _SPARE_BYTES - _SPARE_SHARE * total
        return max(0, int(self.caution * budget / self.bytes_per_unit))


class ItemEmbedder:
    """Embeds the distinct items of a step, and carries the loss's gradient into the item model.

    A step's items are cut into chunks of about equal total size. The graphs of as many chunks as fit stay in memory;
    the others are embedded without gradient for the loss, and once more with gradient, each chunk against its share of
    the loss's gradient. Loss and gradients are those of all at once, dropout included, up to rounding. Item models
    without trainable weights are run once, without gradient.

    chunk: so many items at most, and all chunks recomputed; None leaves both to the memory of a CUDA device, and on
    the CPU embeds all at once. precision: the context that the item model runs in. in_step_with: processes that must
    run the model equally often, because its weights are spread over them; no graph waits then.

    few_chunks: each backward pass costs something besides, so that chunks are as large as the memory allows, of which
    one alone keeps its graph.
    """

    few_chunks = False

    def __init__(
        self,
        model: SequentialRecommender,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
        chunk: int | None,
    ) -> None:
        self.model, self.device, self.precision, self.chunk = model, device, precision, chunk
        self.in_step_with: Processes | None = None
        self.memory = GraphMemory(device) if device.type == "cuda" and chunk is None else None
        self._learns: bool | None = None
        self._pending: tuple[Tensor, list[_Chunk], list[Tensor | RandomState]] | None = None

    def distinct(self, items: Tensor) -> tuple[Tensor, bool]:
        """Catalogue indices, repeats allowed -> the distinct ones, ascending, and whether they are the whole catalogue.

        All of it is taken when items are rows of a table and a step asks for as many as there are: finding the distinct
        ones among millions takes longer than what it saves.
        """
        table = self.model.item_table()
        if table is not None and len(items) >= len(table):
            return torch.arange(len(table), device=items.device), True
        return items.unique(), False

    def embed(self, items: Tensor) -> Tensor:
        """(n,) distinct catalogue indices, ascending -> (n, d). Call `backward` after the loss's own backward pass."""
        self._pending = None
        table = self.model.item_table() if self.chunk is None else None
        if table is not None and len(items) == len(table):
            return table
        sizes = self.model.item_sizes(items)  # on CUDA with texts, the step's first wait for the device
        if sizes is None and (self.chunk is None or len(items) <= self.chunk):
            with self.precision():
                return self.model.embed_items(items)
        if self._learns is None:
            self._learns = self._has_gradient(items)
        chunks = self._plan(items, torch.ones(len(items), dtype=torch.int64) if sizes is None else sizes.cpu())
        if len(chunks) == 1 and (chunks[0].keep or not self._learns):
            with self.precision(), torch.set_grad_enabled(self._learns):
                return self.model.embed_items(items)
        parts: list[Tensor] = []
        returns: list[Tensor | RandomState] = []  # what the backward pass needs of each chunk
        for chunk in chunks:
            state = RandomState(self.device)
            with torch.set_grad_enabled(chunk.keep and self._learns), self.precision():
                part = self.model.embed_items(chunk.items)
            returns.append(part if chunk.keep else state)
            parts.append(part.detach())
        order = sent(torch.cat([chunk.place for chunk in chunks]).argsort(), self.device)
        embedded = torch.cat(parts)[order]
        if self._learns:
            self._pending = (embedded.requires_grad_(), chunks, returns)
        if self.memory:
            self.memory.after_embedding()
        return embedded

    def backward(self) -> None:
        """Add to the item model's gradients what `embed` left out."""
        if self._pending is None:
            return
        embedded, chunks, returns = self._pending
        self._pending = None
        if self.memory:
            self.memory.before_backward()
        if embedded.grad is None:
            return
        after = RandomState(self.device)
        # Those in memory first: the others need the room.
        for number in sorted(range(len(chunks)), key=lambda i: not chunks[i].keep):
            chunk, kept = chunks[number], returns[number]
            returns[number] = after  # lets go of the graph
            part = kept if isinstance(kept, Tensor) else self._again(chunk, kept)
            part.backward(embedded.grad[sent(chunk.place, self.device)].to(part.dtype))
            del part, kept
        after.restore()

    def measure_anew(self) -> None:
        """Steps of another size follow, which may take memory in other proportions."""
        if self.memory is not None:
            self.memory = GraphMemory(self.device)

    def shrink(self) -> bool:
        """Use half the memory from the next step on, for whoever has just seen it run out; False where that has been
        done so often, or is no matter of memory, that `chunk` must be set."""
        self._pending = None
        if self.memory is None or self.chunk is not None or self.memory.caution < 0.1:
            return False
        self.memory.caution /= 2
        return True

    def _again(self, chunk: _Chunk, state: RandomState) -> Tensor:
        state.restore()
        before = torch.cuda.memory_allocated(self.device) if self.memory else 0
        with self.precision():
            part = self.model.embed_items(chunk.items)
        if self.memory:
            self.memory.note_graph(chunk.size, before)
        return part

    def _has_gradient(self, items: Tensor) -> bool:
        state = RandomState(self.device)
        with self.precision():
            learns = self.model.embed_items(items[:2]).requires_grad
        state.restore()
        return learns

    def _plan(self, items: Tensor, sizes: Tensor) -> list[_Chunk]:
        """Chunks of the items, and which of them keep their graphs."""
        if self.chunk is not None:
            order = sizes.argsort(descending=True, stable=True)
            parts = list(order.split(self.chunk))
            return [self._chunk(items, place, sizes, keep=len(parts) == 1) for place in parts]
        if self.memory is None:
            return [self._chunk(items, torch.arange(len(items)), sizes, keep=True)]
        total = int(sizes.sum())
        kept, largest = total, _LARGEST_CHUNK
        if self._learns and not self.memory.measured:
            kept, largest = 0, _FIRST_CHUNK
        elif self._learns:
            room = self.memory.units()
            kept, largest = min(total, room), min(_LARGEST_CHUNK, max(_FIRST_CHUNK, int(_SHARE_OF_A_CHUNK * room)))
            if self.few_chunks:
                kept, largest = (max(low, int(_SHARE_OF_THE_ONE * room)) for low in (0, _FIRST_CHUNK))
        if self.in_step_with is not None:
            places = self._equally_many(sizes, -(-total // largest), self.in_step_with)
            return [self._chunk(items, place, sizes, keep=len(places) == 1) for place in places]
        order = sizes.argsort(descending=True, stable=True)
        fits = sizes[order].cumsum(0) <= kept
        chunks = []
        for keep, chosen in ((True, order[fits]), (False, order[~fits])):
            count = -(-int(sizes[chosen].sum()) // largest)
            places = item_chunks(sizes[chosen], count) if count else []
            chunks += [self._chunk(items, chosen[place], sizes, keep) for place in places]
        return chunks

    def _equally_many(self, sizes: Tensor, count: int, processes: Processes) -> list[Tensor]:
        """`item_chunks`, as many in each process, all of which have as many items."""
        places = item_chunks(sizes, processes.most([count])[0])
        most = processes.most([len(places)])[0]
        while len(places) < most:
            largest = max(range(len(places)), key=lambda i: len(places[i]))
            places[largest : largest + 1] = places[largest].tensor_split(2)
        return places

    def _chunk(self, items: Tensor, place: Tensor, sizes: Tensor, keep: bool) -> _Chunk:
        chosen = items.cpu()[place] if self.memory else items[place.to(items.device)]
        return _Chunk(chosen, place, int(sizes[place].sum()), keep)
