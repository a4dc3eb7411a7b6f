"""One optimisation step on one device: embed the step's distinct items, run the histories, apply the objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.recommender import SequentialRecommender
from benchmark.training.item_embedding import ItemEmbedder
from benchmark.training.objectives import InfoNCE, ObjectiveOutput


@dataclass(frozen=True)
class StepFigures:
    """What one step reports; tensors stay on the device until they are logged."""

    loss: Tensor
    surviving_negatives: Tensor
    distinct_items: int


class Engine:
    """Model, objective and optimizer on one device.

    item_chunk: most items embedded at once; see `ItemEmbedder`.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        objective: InfoNCE,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        bf16: bool,
        item_chunk: int | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device, self.bf16 = device, bf16
        self.items = ItemEmbedder(model, device, self.precision, item_chunk)

    def precision(self) -> AbstractContextManager[object]:
        """bf16 matrix products over float32 weights, or nothing; the objective is float32 either way."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def step(self, batch: TrainingBatch) -> StepFigures:
        """One optimisation step; batch is on the engine's device."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.clamp_temperature()
        sequences, events = batch.sequences, batch.sequences.items.numel()
        everything = torch.cat([sequences.items, batch.targets, batch.negatives.flatten()])
        distinct, place = everything.unique(return_inverse=True)
        inputs, targets = place[:events], place[events : 2 * events]
        negatives = place[2 * events :].view(batch.negatives.shape)

        items = self.items.embed(distinct)
        output = self._loss(batch, items, distinct, inputs, targets, negatives)
        output.loss.backward()
        self.items.backward()
        self.optimizer.step()
        return StepFigures(output.loss.detach(), output.surviving_negatives.detach(), len(distinct))

    def _loss(
        self,
        batch: TrainingBatch,
        items: Tensor,
        distinct: Tensor,
        inputs: Tensor,
        targets: Tensor,
        negatives: Tensor,
    ) -> ObjectiveOutput:
        with self.precision():
            predicted = self.model.embed_histories(batch.sequences, items[inputs])
        table = self.model.comparable(items)
        output: ObjectiveOutput = self.objective(self.model.comparable(predicted), table, targets, negatives, distinct)
        return output

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.objective.parameters()
