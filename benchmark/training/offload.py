"""The same step with what AdamW needs of the heavy layers in the host's memory: HLLM-7B on one GPU.

The float32 weights of the heavy layers, their gradients and both moments stay on the host: 16 bytes a weight. The GPU
holds copies of the weights, 2 bytes each in bfloat16, beside whatever is no heavy layer (word vectors, [ITEM], the
temperature, at 16 bytes a weight) and the activations. A gradient leaves the GPU as soon as it is complete and is added
up on the host, in float32, while the backward pass goes on. After the last one AdamW's update runs on the processors,
and the changed weights come back as copies. Losses and weights are those of the plain engine, up to rounding.

What it needs for HLLM-1B and HLLM-7B, whose layers have 1.94 and 12.95 billion weights: 31 and 207 GB of the host's
memory; of the GPU's 5 and 28 GB (with 32,000 word vectors), and the activations of a chunk of at least 4,096 tokens,
about 4 and 12 GB: by this count GPUs of 12 and 48 GB. A larger one embeds items in fewer chunks. The host reads and
writes about 50 bytes a weight and step, so all its processors should take part (`execution.threads`). Measured:
results/reference/README.md.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine, StepFigures
from benchmark.training.objectives import Objective
from benchmark.training.precision import Precision, WorkingCopies, float32_weights

_PIECE = 1 << 25  # elements that cross at once
_PIECES = 8  # that may be on their way
_BLOCK = 1 << 22  # elements that are added at once where they must be converted: as many stay in the caches


class OffloadEngine(Engine):
    """One process. The model has been placed by `place`; the optimizer updates weights on both sides.

    Layers that transformers recomputes in the backward pass have copies as well, because those stay in place for all
    of a step. Items are embedded in few large chunks: each hands the gradients of all weights over once more.

    seconds: of all steps together, how long the GPU is given no work because the host is busy with "copies" of changed
    weights, "update", or "sums" of gradients: until there is room for another one, and, when the GPU has done its part,
    until all have been added up.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        bf16: bool,
        item_chunk: int | None = None,
        history_chunk: int | None = None,
        processes: Processes | None = None,
        compiled: bool = False,
    ) -> None:
        self._copies = HostedWeights(model.heavy_layers(), torch.bfloat16 if bf16 else torch.float32, device)
        super().__init__(
            model, objective, optimizer, device=device, bf16=bf16, item_chunk=item_chunk, history_chunk=history_chunk,
            processes=processes, compiled=compiled, precision=Precision(model, device, bf16=bf16, copies=self._copies),
        )  # fmt: skip
        self.items.few_chunks = True
        self.seconds = self._copies.seconds

    def _gradients(self, batch: TrainingBatch) -> StepFigures:
        with self._copies.in_place():
            return super()._gradients(batch)

    def _zero_gradients(self) -> None:
        self._copies.wait()  # for those of a step that has exceeded the memory
        super()._zero_gradients()

    def _update(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        with self._copies.timed("sums"):
            self._copies.wait()
        with self._copies.timed("update"):
            super()._update()


class HostedWeights(WorkingCopies):
    """Working copies on the device of weights that are on the host; their gradients are added up there.

    `wait` returns when all gradients that have been handed over are part of the weights' own; until then nothing may
    read or reset those. The memory of gradients is kept from step to step.
    """

    recomputed = True

    def __init__(self, layers: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> None:
        self.seconds = dict.fromkeys(("copies", "sums", "update"), 0.0)
        self._device, self._gradients = device, dict[nn.Parameter, Tensor]()
        # One thread, so that what is added to a gradient comes in the same order in every run.
        self._worker, self._sums = ThreadPoolExecutor(1, "gradients"), list[Future[None]]()
        self._converted = torch.empty(_BLOCK if dtype != torch.float32 else 0)
        self._stream: torch.cuda.Stream | None = None
        self._pieces: queue.SimpleQueue[tuple[Tensor, torch.cuda.Event]] = queue.SimpleQueue()
        super().__init__(layers, dtype)
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            size = min(_PIECE, max((weight.numel() for weight in self._copies), default=0))
            for _ in range(_PIECES):
                room = torch.empty(size, dtype=dtype, pin_memory=True)
                self._pieces.put((room, torch.cuda.Event(blocking=True)))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began

    def wait(self) -> None:
        """Raises what has gone wrong with any of the sums."""
        sums, self._sums = self._sums, []
        for each in sums:
            each.result()

    def _copy(self, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        copy = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=self._device), weight.requires_grad)

        def hand_over(copy: Tensor) -> None:
            gradient, copy.grad = copy.grad, None
            if gradient is None:
                return
            if weight not in self._gradients:
                self._gradients[weight] = torch.empty_like(weight)
            first, weight.grad = weight.grad is None, self._gradients[weight]
            self._send(gradient.reshape(-1), weight.grad.view(-1), first)

        if copy.requires_grad:
            copy.register_post_accumulate_grad_hook(hand_over)
        return copy

    def _send(self, gradient: Tensor, total: Tensor, first: bool) -> None:
        """gradient: (n,) on the device, to be added to total: (n,) on the host; first: to be put there instead."""
        if self._stream is None:
            self._sums.append(self._worker.submit(self._add, gradient, total, first))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for piece, place in zip(gradient.split(_PIECE), total.split(_PIECE), strict=True):
            with self.timed("sums"):
                room, passed = self._pieces.get()
            with torch.cuda.stream(self._stream):
                room[: len(piece)].copy_(piece, non_blocking=True)
                passed.record()
            self._sums.append(self._worker.submit(self._arrived, room, passed, place, first))
        gradient.record_stream(self._stream)

    def _arrived(self, room: Tensor, passed: torch.cuda.Event, total: Tensor, first: bool) -> None:
        try:
            passed.synchronize()
            self._add(room[: len(total)], total, first)
        finally:
            self._pieces.put((room, passed))

    def _add(self, gradient: Tensor, total: Tensor, first: bool) -> None:
        if first:
            total.copy_(gradient)
        elif gradient.dtype == total.dtype:
            total.add_(gradient)
        else:  # torch would make a converted copy of all of it
            for part, place in zip(gradient.split(_BLOCK), total.split(_BLOCK), strict=True):
                place.add_(self._converted[: len(part)].copy_(part))

    def _convert(self) -> None:
        with self.timed("copies"):
            if self._stream is None:
                super()._convert()
                return
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)  # what still reads the copies
            for weight, copy in self._copies.items():
                parts = weight.detach().view(-1).split(_PIECE), copy.detach().view(-1).split(_PIECE)
                for part, place in zip(*parts, strict=True):
                    room, passed = self._pieces.get()
                    passed.synchronize()
                    room[: len(part)].copy_(part)
                    with torch.cuda.stream(self._stream):
                        place.copy_(room[: len(part)], non_blocking=True)
                        passed.record()
                    self._pieces.put((room, passed))
            current.wait_stream(self._stream)


def place(model: SequentialRecommender, device: torch.device, *, hosted: bool) -> None:
    """Move the model to the device; hosted: the float32 weights of its heavy layers go to the host's memory, or stay
    there, instead."""
    places = list(float32_weights(model.heavy_layers())) if hosted else []
    for module, name, weight in places:
        weight.data = weight.data.cpu()
        module._parameters[name] = None
    model.to(device)
    for module, name, weight in places:
        module._parameters[name] = weight
