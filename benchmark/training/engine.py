"""One optimisation step on one device: embed the step's distinct items, run the histories, apply the objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.recommender import PackedSequences, SequentialRecommender
from benchmark.training.item_embedding import ItemEmbedder
from benchmark.training.objectives import Objective, StepItems


@dataclass(frozen=True)
class StepFigures:
    """What one step reports; tensors stay on the device until they are logged.

    loss: () of the global batch. figures: () each, the objective's own, and item_cosine, the mean cosine of two
    distinct items of the step: near 1, the embeddings have collapsed.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    distinct_items: int


class Engine:
    """Model, objective and optimizer on one device.

    item_chunk: most items embedded at once; see `ItemEmbedder`. history_chunk: most sequences through
    `embed_histories` at once; the loss and its gradients are those of all at once.
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
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device, self.bf16, self.history_chunk = device, bf16, history_chunk
        self.items = ItemEmbedder(model, device, self.precision, item_chunk)

    def precision(self) -> AbstractContextManager[object]:
        """bf16 matrix products over float32 weights, or nothing; the objective is float32 either way."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def step(self, batch: TrainingBatch) -> StepFigures:
        """One optimisation step; batch is on the engine's device."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.before_step()
        ids, whole = self.items.distinct(self.objective.items(batch))
        embedded = self.items.embed(ids)
        # The graph is cut here: several parts of the batch add to the gradient, and the item model gets it once.
        wide = torch.promote_types(embedded.dtype, torch.float32)  # what adds up gradients is no bfloat16
        items = StepItems(ids, embedded.detach().to(wide).requires_grad_(), whole)
        sums: dict[str, Tensor] = {}
        for part in self._parts(batch):
            output = self.objective.loss(self, part, items)
            output.loss.backward()
            for name, share in {"loss": output.loss, **output.figures}.items():
                sums[name] = sums.get(name, 0) + share.detach()
        if embedded.requires_grad and items.vectors.grad is not None:
            embedded.backward(items.vectors.grad.to(embedded.dtype))
        self.items.backward()
        self.optimizer.step()
        loss = sums.pop("loss")
        return StepFigures(loss, sums | {"item_cosine": mean_cosine(items.vectors)}, len(ids))

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """The model's, in the run's precision."""
        with self.precision():
            return self.model.embed_histories(sequences, items)

    def comparable(self, embeddings: Tensor) -> Tensor:
        return self.model.comparable(embeddings)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.objective.parameters()

    def _parts(self, batch: TrainingBatch) -> Iterator[TrainingBatch]:
        size = self.history_chunk or len(batch)
        for first in range(0, len(batch), size):
            yield batch.part(first, min(first + size, len(batch)))


@torch.no_grad()
def mean_cosine(vectors: Tensor) -> Tensor:
    """(u, d) -> (): the mean cosine of two different rows; 0 where there is one row alone."""
    count = len(vectors)
    total = F.normalize(vectors, dim=-1).sum(0).square().sum()
    return (total - count) / max(1, count * (count - 1))
