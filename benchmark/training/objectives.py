"""What a step minimises: the protocol of an objective, and the generative one, InfoNCE over sampled negatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.data.batches import TrainingBatch
from benchmark.experiments import TrainingSettings
from benchmark.recommender import PackedSequences
from benchmark.training.precision import compiled

_PAIRS_AT_ONCE = 1 << 22  # (position, negative) pairs whose gathered vectors are in memory at once


@dataclass(frozen=True)
class Temperature:
    """Scores are divided by it. Learned, its inverse stays within [1, 100] as in the released code."""

    initial: float = 0.07
    learnable: bool = True


@dataclass(frozen=True)
class StepItems:
    """The embeddings of a step's distinct items. ids: (u,) catalogue indices, ascending; vectors: (u, d) float32;
    whole: they are the whole catalogue."""

    ids: Tensor
    vectors: Tensor
    whole: bool = False

    def rows(self, items: Tensor) -> Tensor:
        """Catalogue indices of any shape, all of them among ids -> their rows of vectors."""
        return items if self.whole else torch.searchsorted(self.ids, items)

    def of(self, items: Tensor, sparse: bool = False) -> Tensor:
        """(n,) catalogue indices -> (n, d) their embeddings. sparse: give vectors a sparse gradient, for a loss that
        has used all of vectors before: torch adds it to their dense gradient in place."""
        return F.embedding(self.rows(items), self.vectors, sparse=sparse)


@dataclass(frozen=True)
class ObjectiveOutput:
    """What a part of a global batch adds to the step; the sums over all parts are the step's.

    loss: () with gradient, the part's share of the global batch's loss. figures: () each, by the name of their column
    in training.csv, the part's shares of what else the step reports.
    """

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class RunningModel(Protocol):
    """The method as an engine runs it: in the run's precision, and through the hooks of whatever shards it."""

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor: ...

    def comparable(self, embeddings: Tensor) -> Tensor: ...

    def call(self, function: str, *arguments: Any) -> Tensor:
        """Another function of the method by its name, for objectives that know more of it than the contract."""


class Objective(nn.Module, ABC):
    """What a step minimises. Its parameters, if any, are few: every process holds all of them.

    The engine asks for the items that the global batch needs, embeds each distinct one once, cuts the batch into parts
    (processes, history chunks), and adds up the losses of the parts. So that the parts' losses sum to the loss of the
    global batch, a mean divides by `batch.totals`, not by the part's own count.

    compiled: set by the engine, whether torch.compile may make kernels. static: for batches of one shape the loss runs
    the same kernels on the same parameters, whatever the batch holds, and of what is known of the global batch it reads
    `batch.shares` and `batch.totals.windows` alone; then it may be recorded, see `RecordedHistories`.
    """

    compiled = False
    static = False

    @abstractmethod
    def items(self, batch: TrainingBatch) -> Tensor:
        """(k,) catalogue indices whose embeddings the loss of the batch reads, repeats allowed."""

    @abstractmethod
    def loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> ObjectiveOutput:
        """The share of a part of the global batch; items: the distinct items of the whole global batch."""

    def before_step(self) -> None:
        """Bring parameters back within their bounds; called before every step."""

    def state_figures(self) -> dict[str, float]:
        """Figures of the parameters themselves for training.csv, such as the temperature."""
        return {}


class TemperedObjective(Objective):
    """An objective whose scores are divided by a temperature, fixed or learned; logit_scale: () the logarithm of its
    inverse."""

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(
            torch.tensor(math.log(1 / temperature.initial)), requires_grad=temperature.learnable
        )

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep a learned inverse temperature within [1, 100]."""
        if self.logit_scale.requires_grad:
            self.logit_scale.clamp_(0, math.log(100))

    def state_figures(self) -> dict[str, float]:
        return {"temperature": math.exp(-self.logit_scale.item())}


class InfoNCE(TemperedObjective):
    """Cross-entropy of the positive among sampled negatives, mean over all positions (paper section 3.2, equation 1).

    similar_threshold: a negative whose score with the positive item exceeds it is left out ("cosine" masking, 0.99 in
    the released code, meant for false negatives); "id" leaves out negatives that are the positive item itself (Meta's
    protocol); "both" does both, "none" neither. Everything is computed in float32, whatever the embeddings' type; the
    released code computes it in bfloat16.
    """

    static = True

    def __init__(
        self,
        temperature: Temperature,
        masking: Literal["cosine", "id", "both", "none"] = "cosine",
        similar_threshold: float = 0.99,
    ) -> None:
        super().__init__(temperature)
        self.masking, self.similar_threshold = masking, similar_threshold

    def items(self, batch: TrainingBatch) -> Tensor:
        return torch.cat([batch.sequences.items, batch.targets, batch.negatives.flatten()])

    def loss(self, model: RunningModel, batch: TrainingBatch, items: StepItems) -> ObjectiveOutput:
        table = model.comparable(items.vectors)  # before the histories, whose gradient it takes up
        predicted = model.embed_histories(batch.sequences, items.of(batch.sequences.items, sparse=items.whole))
        output: ObjectiveOutput = self(
            model.comparable(predicted),
            table,
            items.rows(batch.targets),
            items.rows(batch.negatives),
            items.ids,
            batch.shares,
        )
        return output

    def forward(
        self, predicted: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, ids: Tensor, shares: Tensor
    ) -> ObjectiveOutput:
        """The sum of the t positions' losses times shares: (t,), and likewise surviving_negatives, the number of
        negatives that no rule masks.

        Embeddings must be comparable already: their dot products are the scores.

        predicted: (t, d) embeddings of the next item. table: (u, d) the distinct items of the step, whose catalogue
        indices are ids: (u,). positives: (t,) and negatives: (n,) shared or (t, n) a position, both rows of table.
        """
        scale = self.logit_scale.exp()
        if negatives.dim() == 1:
            positive = table[positives]
            own = (predicted * positive).sum(-1, keepdim=True)
            rest, masked = self._shared(predicted, positive, table, positives, negatives, ids)
        else:
            own, rest, masked = self._per_position(predicted, table, positives, negatives, ids)
        loss = compiled(_cross_entropy) if self.compiled else _cross_entropy
        surviving = ((~masked).sum(1) * shares).sum()
        return ObjectiveOutput(loss(own, rest, masked, scale, shares), {"surviving_negatives": surviving})

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
        self, predicted: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        candidates = torch.cat([positives[:, None], negatives], dim=1)
        masked = torch.zeros_like(negatives, dtype=torch.bool)
        if self.compiled and table.is_cuda and not _few_rows(table, candidates):
            scores, similar = _ScoresOfOwn.apply(predicted, table[positives].detach(), table, candidates)
            similar = similar[:, 1:]
        else:
            scores, similar = _scores_of_own(predicted, table, candidates), None
        if self.masking in ("cosine", "both"):
            with torch.no_grad():
                similar = _scores_of_own(table[positives], table, negatives) if similar is None else similar
                masked |= similar > self.similar_threshold
        if self.masking in ("id", "both"):
            masked |= ids[positives][:, None] == ids[negatives]
        return scores[:, :1], scores[:, 1:], masked


def _few_rows(table: Tensor, chosen: Tensor) -> bool:
    """Whether all products with the table's rows take less memory than the rows that are chosen."""
    return table.shape[0] <= chosen.shape[1] * table.shape[1]


def _scores_of_own(vectors: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
    """vectors: (t, d); table: (u, d); chosen: (t, n) rows of table -> (t, n) dot products of each vector with its own.

    With few distinct items all products are made and n of them picked; with many, the n vectors are gathered. What
    decides is which of the two writes less to memory.
    """
    if _few_rows(table, chosen):
        return (vectors @ table.T).gather(1, chosen)
    step = max(1, _PAIRS_AT_ONCE // chosen.shape[1])
    parts = zip(vectors.split(step), chosen.split(step), strict=True)
    return torch.cat([torch.einsum("cd,cnd->cn", part, F.embedding(own, table)) for part, own in parts])


class _ScoresOfOwn(torch.autograd.Function):
    """`_scores_of_own` of vectors, and without gradient of others, on CUDA, by kernels that never write the (t, n, d)
    chosen vectors to memory, neither forward nor, as the ordinary gradient would, backward."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, others: Tensor, table: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(vectors, table, chosen)
        scores, similar = compiled(_gathered_products)(vectors, others, table, chosen)
        ctx.mark_non_differentiable(similar)
        return scores, similar

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        from benchmark.training.candidates import candidate_gradients  # Triton is there with CUDA alone

        vectors, table, chosen = ctx.saved_tensors
        to_vectors, to_table = candidate_gradients(gradients[0], vectors, table, chosen)
        return to_vectors, None, to_table, None


def _gathered_products(vectors: Tensor, others: Tensor, table: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    rows = table[chosen]
    return (vectors[:, None, :] * rows).sum(-1), (others[:, None, :] * rows).sum(-1)


def _cross_entropy(own: Tensor, rest: Tensor, masked: Tensor, scale: Tensor, shares: Tensor) -> Tensor:
    """own: (t, 1) scores of the positives, rest: (t, n) of the negatives, shares: (t,) -> () the weighted loss."""
    own, rest = own * scale, (rest * scale).masked_fill(masked, torch.finfo(rest.dtype).min)
    return ((torch.cat([own, rest], dim=1).logsumexp(1) - own.squeeze(1)) * shares).sum()


def objective_for(training: TrainingSettings) -> Objective:
    """The objective that a run's settings name."""
    temperature = Temperature(training.temperature.initial, training.temperature.learnable)
    # These build on this module.
    from benchmark.training.click import ClickObjective
    from benchmark.training.dense_all_action import DenseAllAction
    from benchmark.training.one_negative import OneNegative

    if training.objective == "dense_all_action":
        dense = training.dense_all_action
        return DenseAllAction(temperature, dense.history_events, dense.target_events)
    if training.objective != "infonce":
        return OneNegative(training.objective)
    generative = InfoNCE(temperature, training.negatives.mask)
    if training.click is None:
        return generative
    return ClickObjective(generative, training.click.generative_weight, training.click.history)
