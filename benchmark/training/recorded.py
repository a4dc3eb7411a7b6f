"""The histories' part of a step as a CUDA graph: forward pass, loss and backward pass are launched as one.

The kernels of a small model, or of a large one on few positions, are shorter than their launch from Python. A graph
wants tensors that stay where they are and shapes that come again, so a batch is copied to a fixed place and filled up
with positions of weight 0. Loss and gradients are those of the batch as it is, up to rounding; dropout follows from the
seed, whether a step is replayed or not, because both run the same kernels on the same shapes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmark.data.batches import BatchTotals, TrainingBatch
from benchmark.recommender import PackedSequences
from benchmark.training.item_embedding import RandomState
from benchmark.training.objectives import Objective, StepItems

log = logging.getLogger(__name__)

_LEAST_STEP = 128  # positions are filled up to a multiple of it; many of them, to one of 8 totals an octave
_MOST_MEMORY = 3 << 30  # bytes that recordings may hold: kernels that need more are no shorter than their launch
_WAITS = "called a synchronizing CUDA operation"  # what torch says of it

Sums = dict[str, Tensor]


class Recorder(Protocol):
    """Records work that is done on tensors in fixed places."""

    def record(self, work: Callable[[], Sums]) -> tuple[Sums, Callable[[], None]]:
        """The tensors that work gives, whose values are set by the function that repeats it."""

    def watched(self) -> AbstractContextManager[None]:
        """Within it, what waits for the device, and so cannot be recorded, is an error."""

    def memory(self) -> int:
        """Bytes that all recordings hold and other work cannot use."""


class CudaGraphs:
    """Recorder on CUDA; its graphs use the same memory, one after another."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._pool, self._memory = device, torch.cuda.graph_pool_handle(), 0

    def record(self, work: Callable[[], Sums]) -> tuple[Sums, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        with torch.cuda.graph(graph, pool=self._pool):
            results = work()
        self._memory += torch.cuda.memory_reserved(self.device) - before
        return results, graph.replay

    @contextmanager
    def watched(self) -> Iterator[None]:
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def memory(self) -> int:
        return self._memory


@dataclass(frozen=True)
class _Shape:
    """What batches that are run by one recording have in common. spare: sequences that hold the padding; negatives:
    their shape; whole: the step takes the whole catalogue."""

    windows: int
    positions: int
    spare: int
    negatives: tuple[int, ...]
    whole: bool


@dataclass
class _Place:
    """Where the batches of a shape are put. batch: its sequences keep what they have computed, and are made anew for
    every run. item_gradient: of items.vectors. run: whether any batch has been run. replay, sums: of the recording,
    once there is one."""

    batch: TrainingBatch
    items: StepItems
    item_gradient: Tensor
    run: bool = False
    sums: Sums | None = None
    replay: Callable[[], None] | None = None


class RecordedHistories:
    """Runs `losses` on every global batch in its place, and from a shape's second batch on, the first shape's third,
    from a recording.

    losses: adds the gradients of a batch to the parameters and to the items' vectors; returns sums. sequence_length:
    events of the longest history that a batch may hold. precision: the context that the method runs in, which brings
    copies of the weights up to date.
    """

    def __init__(
        self,
        losses: Callable[[TrainingBatch, StepItems], Sums],
        objective: Objective,
        parameters: Iterable[nn.Parameter],
        precision: Callable[[], AbstractContextManager[object]],
        sequence_length: int,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self._losses, self._objective, self._parameters = losses, objective, list(parameters)
        self._precision, self._length, self._device = precision, sequence_length, device
        self._recorder = recorder or CudaGraphs(device)
        self._places: dict[_Shape, _Place] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}  # stay where they are from the first run on
        self._item_gradients: dict[torch.Size, Tensor] = {}  # likewise
        self._recordable = False  # not known yet
        self.off = False  # what it runs cannot be recorded, or is not worth it

    def prepare(self, batch: TrainingBatch, whole: bool) -> int:
        """Record the batch's shape if it has been run before; whole: whether the step takes the whole catalogue.

        Must be called while no graph of autograd's is alive: a parameter's end in such a graph belongs to the stream
        that the graph was made on. Returns how many bytes a step now needs beside what is allocated, more than before:
        those of the recording, less the gradients, which stay allocated.
        """
        place = self._places.get(self._shape(batch, whole))
        if self.off or place is None or place.replay is not None or not self._recordable:
            return 0
        first, before = not any(p.replay for p in self._places.values()), self._recorder.memory()
        with self._precision():
            pass  # what converts changed weights is not to be recorded
        place.sums, place.replay = self._recorder.record(lambda: self._run(place))
        self._drop_gradients()
        if (held := self._recorder.memory()) > _MOST_MEMORY:
            log.info("histories of %d positions are not run as a CUDA graph: it would hold %d MiB",
                     len(batch.targets), held >> 20)  # fmt: skip
            self._stop()
            return 0
        log.info("histories of up to %d positions are run as a CUDA graph", len(place.batch.targets))
        parameters = sum(gradient.nbytes for gradient in self._gradients.values())
        return held - before - (parameters if first else 0)

    def losses(self, batch: TrainingBatch, items: StepItems) -> Sums:
        """As `losses`, all of whose gradients must be None before."""
        if self.off:
            return self._losses(batch, items)
        shape = self._shape(batch, items.whole)
        if shape not in self._places:
            self._places[shape] = self._place(batch, items, shape)
        place = self._places[shape]
        _fill(place, batch, items)
        if place.replay is None or place.sums is None:
            sums = self._watched_run(place)
            if sums is None:
                return self._losses(batch, items)
        else:
            with self._precision():
                place.replay()
            sums = place.sums
            for parameter, gradient in self._gradients.items():
                parameter.grad = gradient
        items.vectors.grad = place.item_gradient[: len(items.vectors)]
        return sums

    def _run(self, place: _Place) -> Sums:
        if self._gradients:
            torch._foreach_zero_(list(self._gradients.values()))
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        place.items.vectors.grad = None
        sums = self._losses(replace(place.batch, sequences=replace(place.batch.sequences)), place.items)
        if place.items.vectors.grad is not None:
            place.item_gradient.copy_(place.items.vectors.grad)
            place.items.vectors.grad = None
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._gradients.setdefault(parameter, parameter.grad)
        return sums

    def _watched_run(self, place: _Place) -> Sums | None:
        """A run that is not recorded; None, and nothing has changed, if what it does cannot be."""
        if not place.run or self._recordable:  # the first of a shape compiles, which waits
            place.run = True
            return self._run(place)
        state = RandomState(self._device)
        try:
            with self._recorder.watched():
                sums = self._run(place)
            self._recordable = True
            return sums
        except RuntimeError as error:
            if _WAITS not in str(error):
                raise
        log.info("histories are not run as a CUDA graph: the method or its objective waits for the GPU")
        self._stop()
        state.restore()
        return None

    def _stop(self) -> None:
        self.off = True
        self._places, self._gradients, self._item_gradients = {}, {}, {}
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _shape(self, batch: TrainingBatch, whole: bool) -> _Shape:
        positions, windows = len(batch.targets), len(batch)
        step = max(_LEAST_STEP, (1 << (positions - 1).bit_length()) // 16)
        total = min(-(-positions // step) * step, windows * self._length)
        spare = -(-step // self._length) if total > positions else 0
        negatives = batch.negatives.shape
        rows = (total, *negatives[1:]) if len(negatives) > 1 else tuple(negatives)
        return _Shape(windows, total, spare, tuple(rows), whole)

    def _place(self, batch: TrainingBatch, items: StepItems, shape: _Shape) -> _Place:
        def room(x: Tensor, rows: int) -> Tensor:
            return x.new_zeros(rows, *x.shape[1:])

        old, total = batch.sequences, shape.positions
        events, times, next_times = (room(x, total) for x in (old.items, old.timestamps, old.next_timestamps))
        offsets = room(old.offsets, shape.windows + shape.spare + 1)
        placed = TrainingBatch(
            PackedSequences(events, times, next_times, offsets, self._length),
            room(batch.targets, total),
            batch.negatives.new_zeros(shape.negatives),
            BatchTotals(shape.windows, 0),
            weights=torch.zeros(total, device=self._device),
        )
        if shape.whole:
            return _Place(placed, items, self._item_gradient(items.vectors))
        most = len(self._objective.items(placed))  # distinct items that a step of this shape can have
        vectors = torch.ones(most, items.vectors.shape[1], dtype=items.vectors.dtype, device=self._device)
        rest = StepItems(room(items.ids, most), vectors.requires_grad_())
        return _Place(placed, rest, self._item_gradient(vectors))

    def _item_gradient(self, vectors: Tensor) -> Tensor:
        return self._item_gradients.setdefault(vectors.shape, torch.zeros_like(vectors, requires_grad=False))


@torch.no_grad()
def _fill(place: _Place, batch: TrainingBatch, items: StepItems) -> None:
    """Copy a batch to its place. Behind it whatever was there before stays, of weight 0 and in sequences of its own."""
    to, positions, windows = place.batch, len(batch.targets), len(batch)
    old, new = batch.sequences, to.sequences
    pairs = [
        (new.items, old.items), (new.timestamps, old.timestamps), (new.next_timestamps, old.next_timestamps),
        (new.offsets, old.offsets), (to.targets, batch.targets), (to.negatives, batch.negatives),
    ]  # fmt: skip
    torch._foreach_copy_([there[: len(here)] for there, here in pairs], [here for _, here in pairs])
    if spare := new.offsets.numel() - windows - 1:
        ends = torch.arange(1, spare + 1, device=new.offsets.device) * new.max_length
        new.offsets[windows + 1 :] = ends.clamp(max=len(to.targets) - positions) + positions
    if to.weights is not None:
        to.weights[:positions] = batch.shares
        to.weights[positions:] = 0
    if place.items.vectors.data_ptr() != items.vectors.data_ptr():  # of a table, the step has the weights themselves
        place.items.vectors[: len(items.vectors)] = items.vectors
        place.items.ids[: len(items.ids)] = items.ids
        place.items.ids[len(items.ids) :] = torch.iinfo(items.ids.dtype).max
