"""Training windows, their order, and the packed batches with negatives that the trainer consumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.data import randomness
from benchmark.data.dataset import Dataset
from benchmark.data.randomness import Stream
from benchmark.data.requests import packed_requests
from benchmark.recommender import PackedSequences, sent

Int64 = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Negatives:
    """How many negatives, and whether all positions of the global batch share them or each has its own. "in_batch"
    draws none: the last targets of the global batch's windows are everybody's negatives."""

    count: int
    sharing: Literal["shared", "per_position", "in_batch"]


@dataclass(frozen=True)
class BatchLabels:
    """events: (t,) int8, the labels of the input events; targets: (t,) those of their next items; cases: (t,) bool,
    which c targets the step predicts the labels of. requests: their users' histories as they were then, however long
    before the window these began, each followed by its request; request_offsets: (b + 1,) int64, on the host: window
    i's requests are [request_offsets[i], request_offsets[i + 1])."""

    events: Tensor
    targets: Tensor
    cases: Tensor
    requests: PackedSequences
    request_offsets: Tensor

    def part(self, first: int, last: int, positions: slice) -> BatchLabels:
        """Of windows first up to, not including, last, whose positions those are."""
        bounds = self.request_offsets[first : last + 1]
        requests = self.requests.part(int(bounds[0]), int(bounds[-1]))
        events, targets, cases = (x[positions] for x in (self.events, self.targets, self.cases))
        return BatchLabels(events, targets, cases, requests, bounds - bounds[0])


@dataclass(frozen=True)
class BatchTotals:
    """What a mean over the global batch divides by."""

    windows: int
    positions: int


@dataclass(frozen=True)
class TrainingBatch:
    """A global batch, or a part of one.

    sequences: t input events of the windows; targets: (t,) each event's next item; negatives: (n,) shared by all
    positions of the global batch, or (t, n) a position. whole: totals of the global batch that this is a part of; None
    where it is the whole. labels: where clicks are predicted. weights: (t,) float32, the positions' shares of the mean
    over the global batch's positions, where they are not all alike because some are padding; see `shares`.
    """

    sequences: PackedSequences
    targets: Tensor
    negatives: Tensor
    whole: BatchTotals | None = None
    labels: BatchLabels | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def totals(self) -> BatchTotals:
        """Of the global batch, whichever part of it this is."""
        return self.whole or BatchTotals(len(self.sequences), len(self.targets))

    @property
    def shares(self) -> Tensor:
        """(t,) float32: what each position counts in the mean over the positions of the global batch."""
        if self.weights is not None:
            return self.weights
        return torch.full((len(self.targets),), 1 / self.totals.positions, device=self.targets.device)

    def part(self, first: int, last: int) -> TrainingBatch:
        """Windows first up to, not including, last, of which there is at least one."""
        if (first, last) == (0, len(self)):
            return self
        sequences = self.sequences.part(first, last)
        start = int(self.sequences.offsets[first])
        positions = slice(start, start + sequences.items.numel())
        negatives = self.negatives if self.negatives.dim() == 1 else self.negatives[positions]
        labels = None if self.labels is None else self.labels.part(first, last, positions)
        weights = None if self.weights is None else self.weights[positions]
        return TrainingBatch(sequences, self.targets[positions], negatives, self.totals, labels, weights)


def training_windows(
    lengths: Int64, offsets: Int64, sequence_length: int, choice: Literal["all", "last", "first"]
) -> tuple[Int64, Int64]:
    """Cut the training events of every user into windows of at most sequence_length + 1 events.

    lengths: (users,) training events; offsets: (users,) where each user's events start. Returns (start, length) of the
    windows, the length between 2 and sequence_length + 1. "all": a user with more than sequence_length + 1 events
    loses the oldest (n mod (sequence_length + 1)) and the rest is cut without overlap; "last": only the newest
    sequence_length + 1 events (released code; PAPER data protocol, "Training windows"); "first": only the oldest
    sequence_length + 1 (the pre-training of paper table 8).
    """
    window = sequence_length + 1
    if choice == "first":
        size = np.minimum(lengths, window)
        keep = size >= 2
        return offsets[keep], size[keep]
    if choice == "last":
        size = np.minimum(lengths, window)
        start, keep = offsets + lengths - size, size >= 2
        return start[keep], size[keep]
    count = np.maximum(lengths // window, 1)
    size = np.minimum(lengths, window)
    first = offsets + np.where(lengths > window, lengths % window, 0)
    index = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    start, size = np.repeat(first, count) + index * window, np.repeat(size, count)
    keep = size >= 2
    return start[keep], size[keep]


def sampled_users(users: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(users,) whether each user is in a share of them; the same users at every seed, and a smaller share's are among
    a larger one's. Exactly round(share * users), at least one."""
    order = randomness.permutation(randomness.key(0, Stream.USER_SAMPLE), users).numpy()
    chosen = np.zeros(users, dtype=np.bool_)
    chosen[order[: max(1, round(share * users))]] = True
    return chosen


def flat_ranges(starts: Int64, lengths: Int64) -> Int64:
    """The integers start, start + 1, ... of each range, one range after another."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def shuffled_ranges(starts: Int64, lengths: Int64, key: int) -> Int64:
    """As `flat_ranges`, each range in a random order that depends on key and on the integers in it alone."""
    rows = flat_ranges(starts, lengths)
    drawn = randomness.hashes(key, torch.from_numpy(rows)).numpy()
    return rows[np.lexsort((drawn, np.repeat(np.arange(len(starts)), lengths)))]


def packed(dataset: Dataset, starts: Int64, lengths: Int64, shuffle_key: int | None = None) -> PackedSequences:
    """The events [start, start + length) of the data set's flat arrays, one sequence a range.

    Every range must be followed by another event of the same user, whose time is the last event's next_timestamp.
    shuffle_key: puts the items of each sequence in a random order and leaves the times where they are.
    """
    rows = flat_ranges(starts, lengths)
    placed = rows if shuffle_key is None else shuffled_ranges(starts, lengths, shuffle_key)
    return PackedSequences(
        items=torch.from_numpy(dataset.items[placed].astype(np.int64)),
        timestamps=torch.from_numpy(dataset.timestamps[rows].astype(np.int64)),
        next_timestamps=torch.from_numpy(dataset.timestamps[rows + 1].astype(np.int64)),
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        max_length=int(lengths.max()),
    )


class TrainingBatches:
    """The batches of a run, by number: batch `step` is the same on every machine and after every restart.

    order: "shuffled" puts every user's training items in one random order before they are cut into windows, the control
    that tells whether a method uses order.
    click_cases: targets a window whose labels a step predicts, drawn anew in every step; 0 where labels play no part.
    click_history: which of a user's earlier events these are predicted from, the newest sequence_length of them.
    compiled: let torch.compile make the kernel that draws negatives.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        sequence_length: int,
        windows: Literal["all", "last", "first"],
        global_batch: int,
        negatives: Negatives,
        seed: int,
        user_share: float = 1.0,
        order: Literal["chronological", "shuffled"] = "chronological",
        click_cases: int = 0,
        click_history: Literal["all", "positive"] = "all",
        compiled: bool = False,
    ) -> None:
        lengths = np.asarray(dataset.split[:, 0], dtype=np.int64)
        lengths = np.where(sampled_users(len(lengths), user_share), lengths, 0)  # no events, no windows
        if order == "shuffled":
            starts, items = np.asarray(dataset.offsets[:-1]), np.array(dataset.items)
            key = randomness.key(seed, Stream.HISTORY_ORDER)
            rows, shuffled = flat_ranges(starts, lengths), shuffled_ranges(starts, lengths, key)
            items[rows] = items[shuffled]
            dataset = replace(dataset, items=items)
            if dataset.labels is not None:  # an item keeps its label
                labels = np.array(dataset.labels)
                labels[rows] = labels[shuffled]
                dataset = replace(dataset, labels=labels)
        self.dataset, self.negatives, self.seed, self.global_batch = dataset, negatives, seed, global_batch
        self.sequence_length, self.click_cases, self.compiled = sequence_length, click_cases, compiled
        self.starts, self.lengths = training_windows(
            lengths, np.asarray(dataset.offsets[:-1]), sequence_length, windows
        )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        if click_cases:
            if dataset.labels is None:
                raise ValueError(f"data set {dataset.card.name} has no labels")
            read = dataset.labels == 1 if click_history == "positive" else np.ones(len(dataset.items), dtype=np.bool_)
            self._history_events = np.flatnonzero(read)

    @property
    def steps_per_epoch(self) -> int:
        """Every window is seen once an epoch; the last batch may be smaller."""
        return -(-len(self.starts) // self.global_batch)

    def windows_of(self, step: int) -> Int64:
        """Window numbers of the global batch `step`, in order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = randomness.permutation(randomness.key(self.seed, Stream.WINDOW_ORDER, epoch), len(self.starts))
            self._epoch, self._order = epoch, order.numpy()
        return self._order[within * self.global_batch : (within + 1) * self.global_batch]

    def batch(self, step: int, device: torch.device | str = "cpu") -> TrainingBatch:
        chosen = self.windows_of(step)
        starts, lengths = self.starts[chosen], self.lengths[chosen] - 1
        sequences = packed(self.dataset, starts, lengths)
        labels = self._labels(step, starts, lengths, sequences, device) if self.click_cases else None
        targets = torch.from_numpy(self.dataset.items[flat_ranges(starts + 1, lengths)].astype(np.int64))
        sequences, targets = sequences.to(device), sent(targets, device)
        if self.negatives.sharing == "in_batch":
            return TrainingBatch(sequences, targets, targets[sequences.last], labels=labels)
        return TrainingBatch(sequences, targets, self._draw_negatives(step, sequences), labels=labels)

    def _labels(
        self, step: int, starts: Int64, lengths: Int64, sequences: PackedSequences, device: torch.device | str
    ) -> BatchLabels:
        """Of each window the click_cases targets whose hashes are least, or all of them if there are fewer."""
        rows = flat_ranges(starts, lengths)
        place = sequences.segments * self.sequence_length + sequences.positions
        by_hash = randomness.hashes(randomness.key(self.seed, Stream.CLICK_CASES, step), place).argsort(stable=True)
        order = by_hash[sequences.segments[by_hash].argsort(stable=True)]  # windows together, in them by hash
        cases = torch.empty_like(place, dtype=torch.bool)
        cases[order] = sequences.positions < self.click_cases
        event = rows[cases.numpy()] + 1
        users = np.searchsorted(self.dataset.offsets, event, side="right") - 1
        begin, end = (
            np.searchsorted(self._history_events, x) for x in (self.dataset.offsets[:-1][users], event)
        )  # of the user's history, in numbers of history events
        size = np.minimum(end - begin, self.sequence_length)
        requests = packed_requests(self.dataset, self._history_events[flat_ranges(end - size, size)], size, event)
        offsets = torch.from_numpy(np.concatenate([[0], np.minimum(lengths, self.click_cases).cumsum()]))
        labels = self.dataset.labels
        assert labels is not None
        events, targets = (sent(torch.from_numpy(labels[at]), device) for at in (rows, rows + 1))
        return BatchLabels(events, targets, sent(cases, device), requests.to(device), offsets)

    def _draw_negatives(self, step: int, sequences: PackedSequences) -> Tensor:
        """Uniform over the catalogue, with replacement, the positives not excluded (the objective masks them)."""
        device, count = sequences.items.device, self.negatives.count
        each = torch.arange(count, device=device)
        if self.negatives.sharing == "per_position":
            place = sequences.segments * self.sequence_length + sequences.positions  # in the global batch
            each = place[:, None] * count + each
        key = randomness.key(self.seed, Stream.NEGATIVES, step)
        return randomness.integers(key, each, self.dataset.item_count, self.compiled)
