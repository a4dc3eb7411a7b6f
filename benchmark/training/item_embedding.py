"""Embedding a step's items with memory for a chunk of them instead of for all (GradCache, Gao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from benchmark.recommender import SequentialRecommender


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


class ItemEmbedder:
    """Embeds the distinct items of a step, and carries the loss's gradient into the item model.

    chunk: when a step has more items, they are embedded chunk by chunk without gradient for the loss, and once more
    with gradient, each chunk against its share of the loss's gradient: the same loss and gradients, dropout included,
    with memory for one chunk. None embeds all at once.
    precision: the context that the item model runs in.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
        chunk: int | None,
    ) -> None:
        self.model, self.device, self.precision, self.chunk = model, device, precision, chunk
        self._pending: tuple[Tensor, Tensor, list[RandomState]] | None = None

    def embed(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, d). Call `backward` after the loss's own backward pass."""
        self._pending = None
        if self.chunk is None or len(items) <= self.chunk:
            with self.precision():
                return self.model.embed_items(items)
        states, parts = [], []
        with torch.no_grad(), self.precision():
            for chunk in items.split(self.chunk):
                states.append(RandomState(self.device))
                parts.append(self.model.embed_items(chunk))
        embedded = torch.cat(parts).requires_grad_()
        self._pending = (items, embedded, states)
        return embedded

    def backward(self) -> None:
        """Add to the item model's gradients what `embed` left out."""
        if self._pending is None:
            return
        items, embedded, states = self._pending
        self._pending = None
        if self.chunk is None or embedded.grad is None:
            return
        after = RandomState(self.device)
        for chunk, gradient, state in zip(
            items.split(self.chunk), embedded.grad.split(self.chunk), states, strict=True
        ):
            state.restore()
            with self.precision():
                again = self.model.embed_items(chunk)
            if again.requires_grad:  # not so for a frozen item model
                again.backward(gradient.to(again.dtype))
        after.restore()
