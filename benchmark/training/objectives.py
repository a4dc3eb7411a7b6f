"""The generative objective: InfoNCE with a temperature over sampled negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PAIRS_AT_ONCE = 1 << 22  # (position, negative) pairs whose gathered vectors are in memory at once


@dataclass(frozen=True)
class Temperature:
    """Scores are divided by it. Learned, its inverse stays within [1, 100] as in the released code."""

    initial: float = 0.07
    learnable: bool = True


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss: () with gradient; surviving_negatives: () mean number of negatives a position that no rule masks."""

    loss: Tensor
    surviving_negatives: Tensor


class InfoNCE(nn.Module):
    """Cross-entropy of the positive among sampled negatives, mean over all positions (paper section 3.2, equation 1).

    similar_threshold: a negative whose score with the positive item exceeds it is left out ("cosine" masking, 0.99 in
    the released code, meant for false negatives); "id" leaves out negatives that are the positive item itself (Meta's
    protocol); "both" does both, "none" neither. Everything is computed in float32, whatever the embeddings' type; the
    released code computes it in bfloat16.
    """

    def __init__(
        self,
        temperature: Temperature,
        masking: Literal["cosine", "id", "both", "none"] = "cosine",
        similar_threshold: float = 0.99,
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(
            torch.tensor(math.log(1 / temperature.initial)), requires_grad=temperature.learnable
        )
        self.masking, self.similar_threshold = masking, similar_threshold

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep a learned inverse temperature within [1, 100]; called before every step."""
        if self.logit_scale.requires_grad:
            self.logit_scale.clamp_(0, math.log(100))

    def forward(
        self, predicted: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, ids: Tensor
    ) -> ObjectiveOutput:
        """Embeddings must be comparable already: their dot products are the scores.

        predicted: (t, d) embeddings of the next item. table: (u, d) the distinct items of the step, whose catalogue
        indices are ids: (u,). positives: (t,) and negatives: (n,) shared or (t, n) a position, both rows of table.
        """
        positive = table[positives]
        scale = self.logit_scale.exp()
        own = (predicted * positive).sum(-1, keepdim=True) * scale
        if negatives.dim() == 1:
            rest, masked = self._shared(predicted, positive, table, positives, negatives, ids)
        else:
            rest, masked = self._per_position(predicted, positive, table, positives, negatives, ids)
        rest = (rest * scale).masked_fill(masked, torch.finfo(rest.dtype).min)
        loss = (torch.cat([own, rest], dim=1).logsumexp(1) - own.squeeze(1)).mean()
        return ObjectiveOutput(loss, (~masked).sum(1).float().mean())

    def _shared(
        self, predicted: Tensor, positive: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        vectors = table[negatives]
        with torch.no_grad():
            masked = torch.zeros(len(predicted), len(negatives), dtype=torch.bool, device=predicted.device)
            if self.masking in ("cosine", "both"):
                masked |= positive @ vectors.T > self.similar_threshold
            if self.masking in ("id", "both"):
                masked |= ids[positives][:, None] == ids[negatives]
        return predicted @ vectors.T, masked

    def _per_position(
        self, predicted: Tensor, positive: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = _scores_of_own(predicted, table, negatives)
        masked = torch.zeros_like(negatives, dtype=torch.bool)
        if self.masking in ("cosine", "both"):
            with torch.no_grad():
                masked |= _scores_of_own(positive, table, negatives) > self.similar_threshold
        if self.masking in ("id", "both"):
            masked |= ids[positives][:, None] == ids[negatives]
        return scores, masked


def _scores_of_own(vectors: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
    """vectors: (t, d); table: (u, d); chosen: (t, n) rows of table -> (t, n) dot products of each vector with its own.

    With few distinct items all products are made and n of them picked; with many, the n vectors are gathered. What
    decides is which of the two writes less to memory.
    """
    if table.shape[0] <= chosen.shape[1] * table.shape[1]:
        return (vectors @ table.T).gather(1, chosen)
    step = max(1, _PAIRS_AT_ONCE // chosen.shape[1])
    parts = zip(vectors.split(step), chosen.split(step), strict=True)
    return torch.cat([torch.einsum("cd,cnd->cn", part, F.embedding(own, table)) for part, own in parts])
