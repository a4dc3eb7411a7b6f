"""One optimisation step of a job of one or more processes: embed the step's distinct items, run the histories, apply
the objective.

Every process knows the whole global batch, because it follows from seed and step. Each embeds its share of the distinct
items; the embeddings are gathered, each process adds up the loss of its share of the windows, and the gradients go back
to the processes that embedded the items. The loss and its gradients are those of one process, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.errors import UserError
from benchmark.processes import Processes
from benchmark.recommender import PackedSequences, SequentialRecommender
from benchmark.training.gradients import sum_gradients
from benchmark.training.item_embedding import ItemEmbedder
from benchmark.training.objectives import Objective, StepItems
from benchmark.training.precision import Precision, compile_errors, compile_layers, run_layers_plain
from benchmark.training.recorded import RecordedHistories
from benchmark.training.repeating import Chunked, CompileFailedError, MemoryExceededError
from benchmark.training.state import MOMENTS, Fragment, StoredState, learned_parameters

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Parts = list[tuple[TrainingBatch, float]]  # of a process's windows, and what each counts

_ROWS_OF_SPREAD = 8192  # most items whose spread is looked at


@dataclass(frozen=True)
class StepFigures:
    """What one step reports; tensors stay on the device until they are logged.

    loss: () of the global batch. figures: () each, the objective's own, and item_cosine, the mean cosine of two
    distinct items of the step: near 1, the embeddings have collapsed.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    distinct_items: int


_LEAST_CAUTION = 1 / 16  # of the share of memory for items' graphs; after that, every item is embedded twice
_MOST_ITEMS = 256  # tried first when the memory has not sufficed for a step's items at any share


class Engine:
    """Model, objective and optimizer, whole in every process; gradients are summed after the last backward pass.

    optimizer: AdamW or another one over the parameters of both. processes: those of the job. item_chunk: most items
    embedded at once; see `ItemEmbedder`. history_chunk: most sequences through `embed_histories` at once. When the
    GPU's memory does not suffice, they are halved and the step is repeated. compiled: let torch.compile make the
    kernels of the model's heavy layers and of the objective; where it fails, the step is repeated with less of it,
    and then without. sequence_length: events of the longest history that a
    batch may hold; where it is given, and compiled, one process runs the histories on CUDA as a graph: see
    `RecordedHistories`. precision: what the model runs in, where it is not what bf16 says alone.

    torch's DistributedDataParallel is not used: a step has several backward passes (the histories' chunks, then the
    items'), of which not all reach every parameter, and it expects one forward and backward pass through its wrapper.
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
        sequence_length: int | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.model, self.objective = model, objective
        self.optimizer = optimizer
        self.device, self.history_chunk = device, history_chunk
        self.processes = processes or Processes()
        self.processes.send_from_first([p.data for p in self.parameters()])
        self.precision = precision or Precision(model, device, bf16=bf16)
        optimizer.register_step_post_hook(lambda *_: self.precision.weights_changed())
        objective.compiled = compiled
        self._comparable = torch.compile(model.comparable) if compiled else model.comparable
        self._compile_errors, self._tiles = compile_errors() if compiled else (), True
        if compiled:
            compile_layers(model)
        self.items = ItemEmbedder(model, device, self.precision, item_chunk)
        self.recorded: RecordedHistories | None = None
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        alone = self.processes.count == 1  # the items of a step are everybody's: more than its own windows can have
        if compiled and alone and device.type == "cuda" and sequence_length and objective.static and not recomputes:
            self.recorded = RecordedHistories(
                self._loss, objective, self.parameters(), self.precision, sequence_length, device
            )

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.objective.parameters()

    def learned(self) -> dict[str, nn.Parameter]:
        return learned_parameters(self.model, self.objective)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, batch: TrainingBatch, seed: int | None = None) -> StepFigures:
        """One optimisation step; batch is the global one, on the engine's device.

        seed: of this process's dropout in this step. A step that does not fit the memory has changed nothing yet and is
        repeated; a UserError if it cannot be made smaller.
        """
        while True:
            if seed is not None:
                torch.manual_seed(seed)
            try:
                figures = self._gradients(batch)
            except MemoryExceededError as error:
                exceeded = error
            except CompileFailedError as error:
                self._compile_less(error.reason)
                continue
            else:
                self._update()
                return figures
            self._halve(exceeded, batch)

    def fragments(self) -> Iterator[Fragment]:
        """What a checkpoint keeps of the learned parameters; every process must go through all of its own."""
        if not self.processes.first:
            return
        for name, parameter in self.learned().items():
            yield self._whole(name, parameter)

    def restore(self, stored: StoredState) -> None:
        """Take over AdamW's state; the weights are those that the engine was made with."""
        for name, parameter in self.learned().items():
            self._restore_whole(name, parameter, stored)

    def weights(self) -> dict[str, Tensor] | None:
        """The model's state_dict on the CPU, in the first process; None in the others. All must ask for it."""
        return {k: v.detach().cpu() for k, v in self.model.state_dict().items()} if self.processes.first else None

    def _whole(self, name: str, parameter: nn.Parameter) -> Fragment:
        """A parameter that its optimizer holds as it is."""
        state: dict[str, Any] = self.optimizer.state.get(parameter, {})
        moments = {kind: state[kind].reshape(-1) for kind in MOMENTS if kind in state}
        return Fragment(name, 0, parameter.detach().reshape(-1), moments, float(state.get("step", 0)))

    def _restore_whole(self, name: str, parameter: nn.Parameter, stored: StoredState) -> None:
        if not (steps := stored.steps(name)):
            return
        place = parameter.device if self.optimizer.defaults.get("fused") else "cpu"  # where AdamW counts its steps
        moments = {kind: stored.moment(kind, name, 0, parameter.numel()) for kind in MOMENTS}
        self.optimizer.state[parameter] = {
            "step": torch.tensor(steps, dtype=torch.float32, device=place),
            **{kind: moment.view_as(parameter).to(parameter.device) for kind, moment in moments.items()},
        }

    # The phases of a step. What may exceed the memory is done by `_together`, and exchanges happen between such phases.

    def _gradients(self, batch: TrainingBatch) -> StepFigures:
        self._zero_gradients()
        self.objective.before_step()
        parts = list(self._parts(batch))
        ids, whole = self.items.distinct(self.objective.items(batch))
        if self.recorded:
            self._together("histories", lambda: self._record(parts, whole))
        shared = self.processes.count > 1 and self.model.item_table() is None  # rows of a table cost nothing to embed
        own, rows = self._deal(ids) if shared else (ids, ids)
        self._own_items = len(own)
        embedded = self._together("items", lambda: self.items.embed(own))
        # The graph is cut here: several parts of the batch add to the gradient, and the item model gets it once.
        wide = torch.promote_types(embedded.dtype, torch.float32)  # what adds up gradients is no bfloat16
        vectors = embedded.detach().to(wide)
        if shared:
            vectors = self.processes.gather_rows(vectors)[rows]
        items = StepItems(ids, vectors.requires_grad_(), whole)
        sums = self._together("histories", lambda: self._losses(parts, items))
        if (gradient := items.vectors.grad) is not None:
            if shared:
                everyones = gradient.new_zeros(len(own) * self.processes.count, gradient.shape[1])
                gradient = self.processes.sum_own_rows(everyones.index_copy_(0, rows, gradient))
            gradient = gradient.to(embedded.dtype)
            self._together("items", lambda: self._item_gradients(embedded, gradient))
        totals = torch.stack(list(sums.values()))
        self.processes.sum_in_place([totals])
        figures = dict(zip(sums, totals.unbind(), strict=True))
        loss = figures.pop("loss")
        return StepFigures(loss, figures | {"item_cosine": mean_cosine(items.vectors)}, len(ids))

    def _deal(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """This process's share of the step's items, and where all of ids stand in the gathered rows.

        Items are dealt by size, so that all have as much to do. The smallest is repeated until all have as many, so
        that all run the model equally often, which weights that are spread over the processes need.
        """
        count, sizes = self.processes.count, self.model.item_sizes(ids)
        share, turn = -(-len(ids) // count), torch.arange(len(ids), device=ids.device)
        order = turn if sizes is None else sizes.to(ids.device).argsort(descending=True, stable=True)
        dealt = torch.cat([order, order[-1:].expand(share * count - len(ids))])
        rows = torch.empty_like(order).scatter_(0, order, turn % count * share + turn // count)
        return ids[dealt[self.processes.rank :: count]], rows

    def _record(self, parts: Parts, whole: bool) -> None:
        if self.recorded and len(parts) == 1:
            more = self.recorded.prepare(parts[0][0], whole)
            if self.items.memory is not None:
                self.items.memory.rest += more

    def _losses(self, parts: Parts, items: StepItems) -> dict[str, Tensor]:
        """Add the gradients of this process's windows to the parameters and items; returns the sums of its shares."""
        if self.recorded and len(parts) == 1:
            return self.recorded.losses(parts[0][0], items)
        sums: dict[str, Tensor] = {}
        for part, weight in parts:
            for name, share in self._loss(part, items, weight).items():
                sums[name] = sums.get(name, 0) + share
        return sums

    def _loss(self, part: TrainingBatch, items: StepItems, weight: float = 1.0) -> dict[str, Tensor]:
        output = self.objective.loss(self, part, items)
        (output.loss * weight).backward()
        return {name: x.detach() * weight for name, x in {"loss": output.loss, **output.figures}.items()}

    def _parts(self, batch: TrainingBatch) -> Iterator[tuple[TrainingBatch, float]]:
        """This process's windows in chunks, each with weight 1. A process that has fewer runs the first window with
        weight 0 instead, so that all run the model equally often."""
        share = -(-len(batch) // self.processes.count)
        chunk = min(self.history_chunk or share, share)
        first, end = self.processes.rank * share, min((self.processes.rank + 1) * share, len(batch))
        for start in range(first, first + share, chunk):
            if start < end:
                yield batch.part(start, min(start + chunk, end)), 1.0
            else:
                yield batch.part(0, 1), 0.0

    def _item_gradients(self, embedded: Tensor, gradient: Tensor) -> None:
        if embedded.is_leaf and embedded.requires_grad and embedded.grad is None:
            embedded.grad = gradient  # which backward would copy
        elif embedded.requires_grad:
            embedded.backward(gradient)
        self.items.backward()

    _own_items = 0  # that this process has been dealt in the step

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        sum_gradients(self.processes, list(self.learned().values()))
        self.optimizer.step()

    def _together(self, what: Chunked, work: Callable[[], Result]) -> Result:
        """Do what may exceed the memory or want kernels made. If it fails in one process, none goes on to the next
        exchange."""
        result: Result | None = None
        exceeded, failed = False, None
        try:
            result = work()
        except torch.OutOfMemoryError:
            exceeded = True
        except self._compile_errors as error:
            failed = error
        some_exceeded, some_failed = self.processes.most([int(exceeded), int(failed is not None)])
        if some_failed:
            raise CompileFailedError(failed)
        if some_exceeded:
            raise MemoryExceededError(what, exceeded)
        return result  # type: ignore[return-value]

    def _compile_less(self, reason: str) -> None:
        if self._tiles:
            log.warning("torch.compile has failed (%s); its analysis of tiles is left out from now on", reason)
            self._tiles = False
            compile_layers(self.model, tiles=False)
            return
        log.warning("torch.compile has failed (%s); kernels are run as they are from now on", reason)
        run_layers_plain(self.model)
        self._compile_errors, self.objective.compiled, self._comparable = (), False, self.model.comparable
        self.recorded = None

    def _halve(self, exceeded: MemoryExceededError, batch: TrainingBatch) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not exceeded.own or (exceeded.what == "items" and self.items.shrink()):
            return
        if exceeded.what == "items" and self.items.memory is not None and self.items.memory.caution > _LEAST_CAUTION:
            self.items.shrink()
            log.warning("out of memory: half as much of it for the items' graphs from now on")
            return
        share = -(-len(batch) // self.processes.count)
        now = (
            (self.items.chunk or min(_MOST_ITEMS, self._own_items))
            if exceeded.what == "items"
            else (min(self.history_chunk or share, share))
        )
        if now == 1:
            raise UserError(
                f"one of a step's {exceeded.what} alone exceeds the memory; spread the model over more GPUs"
            )
        if exceeded.what == "items":
            self.items.memory, self.items.chunk = None, now // 2
        else:
            self.history_chunk = now // 2
        log.warning("out of memory: at most %d of the %s at a time from now on", now // 2, exceeded.what)

    # What the objective is given to run the model with.

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """The model's, in the run's precision."""
        with self.precision():
            return self.model.embed_histories(sequences, items)

    def comparable(self, embeddings: Tensor) -> Tensor:
        return self._comparable(embeddings)

    def call(self, function: str, *arguments: Any) -> Tensor:
        """Another function of the model, in the run's precision."""
        with self.precision():
            found: Tensor = getattr(self.model, function)(*arguments)
        return found


@torch.no_grad()
def mean_cosine(vectors: Tensor) -> Tensor:
    """(u, d) -> (): the mean cosine of two different rows; 0 where there is one row alone. Of many, every k-th row is
    looked at."""
    vectors = vectors[:: -(-len(vectors) // _ROWS_OF_SPREAD)]
    count = len(vectors)
    total = F.normalize(vectors, dim=-1).sum(0).square().sum()
    return (total - count) / max(1, count * (count - 1))
