"""The top of one history's ranking, with the scores and the mask that the evaluator uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmark.data.batches import Int64, packed
from benchmark.data.dataset import Dataset, EvaluationCases
from benchmark.errors import NotFiniteError
from benchmark.evaluation.ranking import RankingSettings, embed_catalogue, rank_block
from benchmark.recommender import PackedSequences, SequentialRecommender


@dataclass(frozen=True)
class Recommended:
    """items: (k,) catalogue indices, best first; scores: (k,) theirs. rank: of the held-out item, None without one."""

    items: Int64
    scores: np.ndarray[tuple[int], np.dtype[np.float32]]
    rank: float | None = None


@torch.no_grad()
def recommend(
    model: SequentialRecommender,
    size: int,
    history: PackedSequences,
    masked: Tensor,
    settings: RankingSettings,
    top: int,
    target: int | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Recommended:
    """Rank the first `size` items of the catalogue for one history.

    history: one sequence, on the model's device; it may hold items after the first `size`, which are read but not
    recommended. masked: (m,) items that are not recommended. precision: the context that the model runs in, scores are
    computed outside of it. Raises NotFiniteError if a score is none.
    """
    model.eval()
    device = history.items.device
    kind = torch.bfloat16 if settings.scores == "bf16" else torch.float32
    new = torch.unique(history.items[history.items >= size])
    rows = torch.where(history.items < size, history.items, size + torch.searchsorted(new, history.items))
    with precision():
        known = embed_catalogue(model, size, settings.item_chunk, device)
        table = torch.cat([known, model.embed_items(new)]) if len(new) else known
        predicted = model.embed_histories(history, table[rows])[history.last]
    scores = (model.comparable(predicted).to(kind) @ model.comparable(known).to(kind).T).float()
    if not torch.isfinite(scores).all():
        raise NotFiniteError("a score")
    masked = masked.to(device)
    rank = None
    if target is not None:
        targets = torch.tensor([target], device=device)
        found, _, _ = rank_block(scores.clone(), targets, torch.zeros_like(masked), masked)
        rank = float(found[0])
    scores[0, masked] = -torch.inf
    best, items = scores[0].topk(min(top, size - len(torch.unique(masked))))
    return Recommended(items.cpu().numpy(), best.cpu().numpy(), rank)


def history_of(
    dataset: Dataset, cases: EvaluationCases, case: int, settings: RankingSettings
) -> tuple[PackedSequences, Tensor]:
    """The sequence that a method reads for a case, and the items that are masked for it."""
    start, end = int(cases.history_start[case]), int(cases.history_end[case])
    read = max(start, end - settings.sequence_length)
    sequences = packed(dataset, np.array([read]), np.array([end - read]), settings.shuffle_key)
    masked_from = {"whole": start, "truncated": read, "none": end}[settings.mask]
    return sequences, torch.from_numpy(dataset.items[masked_from:end].astype(np.int64))
