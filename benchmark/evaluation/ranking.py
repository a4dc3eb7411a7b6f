"""The rank of each user's held-out item in the full catalogue: float32 scores (unless a run asks for bfloat16), no
sampling, ties counted by half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.data.batches import Int64, flat_ranges, packed
from benchmark.data.dataset import Dataset, EvaluationCases
from benchmark.errors import NotFiniteError
from benchmark.evaluation.shared_cases import write_parquet
from benchmark.files import write_atomically
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender, item_chunks

ROWS_AT_ONCE = 4096  # items that are embedded at once where they are rows of a table
_SIZE_AT_ONCE = 1 << 15  # of items, such as tokens, that are embedded at once

HistoryMask = Literal["whole", "truncated", "none"]

_LEAST_BLOCKS = 16  # of users, so that several processes have something to do on a small data set


@dataclass(frozen=True)
class RankingSettings:
    """sequence_length: events of the history that the method reads, the newest ones.

    mask: which events of the history cannot be recommended: the user's "whole" history (protocol hllm), the
    "truncated" one that the method reads (protocol meta), or "none" (RecBole's evaluation).
    block_scores: float32 scores in memory at once; users are ranked in blocks of block_scores / catalogue size.
    item_chunk: items embedded at once.
    shuffle_key: puts the events that the method reads in a random order; None leaves them as they are.
    scores: "bf16" multiplies embeddings rounded to bfloat16, as the released code does in its bf16 runs.
    """

    sequence_length: int
    mask: HistoryMask = "whole"
    block_scores: int = 1 << 25
    item_chunk: int = ROWS_AT_ONCE
    shuffle_key: int | None = None
    scores: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class Ranks:
    """One entry a case. rank: 1 + items scored higher + half the items that tie, the target itself left out.

    A target that stands in the masked history cannot be recommended: hittable is False and its rank is one more than
    the number of items that can.
    """

    rank: np.ndarray[tuple[int], np.dtype[np.float64]]
    ties: np.ndarray[tuple[int], np.dtype[np.int32]]
    hittable: np.ndarray[tuple[int], np.dtype[np.bool_]]


def rank_block(scores: Tensor, targets: Tensor, masked_rows: Tensor, masked_items: Tensor) -> tuple[Tensor, ...]:
    """Ranks from a block of scores, which is overwritten.

    scores: (b, n) float32; targets: (b,) item indices; (masked_rows, masked_items): (m,) pairs that cannot be
    recommended, repeats allowed. Returns (rank (b,) float64, ties (b,) int64, hittable (b,) bool).
    """
    rows = torch.arange(len(targets), device=scores.device)
    target_scores = scores[rows, targets].clone()
    scores[masked_rows, masked_items] = -torch.inf
    hittable = ~torch.isneginf(scores[rows, targets])
    candidates = scores.shape[1] - torch.isneginf(scores).sum(1)
    greater = (scores > target_scores[:, None]).sum(1)
    ties = (scores == target_scores[:, None]).sum(1) - 1
    rank = torch.where(hittable, 1 + greater + ties / 2, (candidates + 1).to(torch.float64))
    return rank.to(torch.float64), torch.where(hittable, ties, 0), hittable


@torch.no_grad()
def embed_catalogue(
    model: SequentialRecommender, size: int, chunk: int, device: torch.device, processes: Processes | None = None
) -> Tensor:
    """(size, d) the embeddings of all items, as `embed_items` gives them; chunks take turns among the processes.

    chunk: items embedded at once, where they are rows of a table. Others go in chunks of like sizes, with memory for a
    bounded total size. They are cut as one process cuts them, so that the embeddings are the same to the last bit.
    """
    processes, sizes = processes or Processes(), model.item_sizes(torch.arange(size))
    if sizes is None:
        chunks = list(torch.arange(size, device=device).split(min(chunk, size)))
    else:
        chunks = item_chunks(sizes, -(-int(sizes.sum()) // _SIZE_AT_ONCE))
    rows, parts = max(map(len, chunks)), []
    for number in processes.turns(len(chunks)):
        part = model.embed_items(chunks[number])
        if processes.count > 1:  # every process gives as many rows
            part = processes.gather_rows(F.pad(part, (0, 0, 0, rows - len(part))))
        parts.append(part)
    embedded = torch.cat(parts)
    if sizes is None:
        return embedded[:size]
    if processes.count > 1:
        filled = [number * rows + torch.arange(len(chunk)) for number, chunk in enumerate(chunks)]
        embedded = embedded[torch.cat(filled).to(embedded.device)]
    return embedded[torch.cat(chunks).argsort().to(embedded.device)]


def blocks(cases: EvaluationCases, size: int, settings: RankingSettings) -> Iterator[Int64]:
    """Case numbers in blocks, users with histories of similar length together; the same for any number of processes."""
    per_block = max(1, min(settings.block_scores // size, -(-len(cases) // _LEAST_BLOCKS)))
    order = np.argsort(cases.history_end - cases.history_start, kind="stable")
    for start in range(0, len(order), per_block):
        yield order[start : start + per_block]


@torch.no_grad()
def rank_cases(
    model: SequentialRecommender,
    dataset: Dataset,
    cases: EvaluationCases,
    settings: RankingSettings,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Ranks:
    """Rank the target of every case. progress is called with the number of cases done after each block; precision: the
    context that the model runs in, scores are computed outside of it.

    processes: those of the job, all of which call this; each embeds its share of the catalogue and ranks its share of
    the cases, and all return the ranks of all. Raises NotFiniteError if a score is none.
    """
    device, training, processes = torch.device(device), model.training, processes or Processes()
    model.eval()
    with precision():
        items = embed_catalogue(model, dataset.item_count, settings.item_chunk, device, processes)
    kind = torch.bfloat16 if settings.scores == "bf16" else torch.float32
    comparable = model.comparable(items).to(kind)
    _check_finite(bool(torch.isfinite(items).all()))  # of which every process has all
    count, finite = len(cases.target), True
    rank, ties, hittable = np.zeros(count), np.zeros(count, np.int32), np.zeros(count, np.bool_)
    every = list(blocks(cases, dataset.item_count, settings))
    for number in processes.turns(len(every)):
        block = every[number]
        start, end = cases.history_start[block], cases.history_end[block]
        read = np.maximum(start, end - settings.sequence_length)
        sequences = packed(dataset, read, end - read, settings.shuffle_key).to(device)
        with precision():
            predicted = model.embed_histories(sequences, items[sequences.items])[sequences.last]
        scores = (model.comparable(predicted).to(kind) @ comparable.T).float()
        finite = finite and bool(torch.isfinite(scores).all())
        rows, masked = _masked_pairs(dataset, start if settings.mask == "whole" else read, end, settings.mask)
        targets = torch.from_numpy(cases.target[block].astype(np.int64)).to(device)
        found = rank_block(scores, targets, rows.to(device), masked.to(device))
        rank[block], ties[block], hittable[block] = (x.cpu().numpy() for x in found)
        if progress:
            progress(len(block) * processes.count)
    model.train(training)
    _check_finite(not processes.any(not finite))  # asked once: a block's ranks take less time than an answer
    for array in (rank, ties, hittable.view(np.uint8)):
        processes.take_most(torch.from_numpy(array))
    return Ranks(rank, ties, hittable)


def _check_finite(finite: bool) -> None:
    if not finite:
        raise NotFiniteError("a score")


def _masked_pairs(dataset: Dataset, start: Int64, end: Int64, mask: HistoryMask) -> tuple[Tensor, Tensor]:
    if mask == "none":
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    lengths = end - start
    items = dataset.items[flat_ranges(start, lengths)].astype(np.int64)
    return torch.from_numpy(np.repeat(np.arange(len(start)), lengths)), torch.from_numpy(items)


def write_ranks(path: Path, dataset: Dataset, cases: EvaluationCases, ranks: Ranks) -> None:
    """Write ranks.parquet, one row a user in the data set's order."""
    frequency = dataset.training_frequency()[cases.target]
    table = pa.table(
        {
            "user_id": pa.array(dataset.user_ids()).take(pa.array(cases.user)),
            "target_item": pa.array(dataset.item_ids()).take(pa.array(cases.target)),
            "rank": pa.array(ranks.rank, pa.float64()),
            "ties": pa.array(ranks.ties, pa.int32()),
            "history_length": pa.array((cases.history_end - cases.history_start).astype(np.int32)),
            "target_frequency": pa.array(frequency.astype(np.int32)),
            "hittable": pa.array(ranks.hittable),
        }
    )
    write_atomically(path, lambda temporary: write_parquet(table, temporary))
