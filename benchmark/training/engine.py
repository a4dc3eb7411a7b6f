"""One optimisation step on one device: embed the step's distinct items, run the histories, apply the objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.recommender import SequentialRecommender
from benchmark.training.objectives import InfoNCE, ObjectiveOutput


@dataclass(frozen=True)
class StepFigures:
    """What one step reports; tensors stay on the device until they are logged."""

    loss: Tensor
    surviving_negatives: Tensor
    distinct_items: int


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


class Engine:
    """Model, objective and optimizer on one device.

    item_chunk: when a step has more distinct items, they are embedded chunk by chunk without gradient for the loss,
    and once more with gradient, each chunk against its share of the loss's gradient (GradCache, Gao et al., 2021): the
    same loss and gradients, with memory for one chunk.
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
        self.device, self.bf16, self.item_chunk = device, bf16, item_chunk

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

        if self.item_chunk is None or len(distinct) <= self.item_chunk:
            with self.precision():
                items = self.model.embed_items(distinct)
            output = self._loss(batch, items, distinct, inputs, targets, negatives)
            output.loss.backward()
        else:
            states, parts = [], []
            with torch.no_grad(), self.precision():
                for chunk in distinct.split(self.item_chunk):
                    states.append(RandomState(self.device))
                    parts.append(self.model.embed_items(chunk))
            items = torch.cat(parts).requires_grad_()
            output = self._loss(batch, items, distinct, inputs, targets, negatives)
            output.loss.backward()
            self._backward_through_items(distinct, items, states)
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

    def _backward_through_items(self, distinct: Tensor, items: Tensor, states: list[RandomState]) -> None:
        if items.grad is None:
            return
        after = RandomState(self.device)
        for chunk, gradient, state in zip(
            distinct.split(self.item_chunk), items.grad.split(self.item_chunk), states, strict=True
        ):
            state.restore()
            with self.precision():
                embedded = self.model.embed_items(chunk)
            if embedded.requires_grad:  # not so for a frozen item model
                embedded.backward(gradient.to(embedded.dtype))
        after.restore()

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.objective.parameters()
