"""Cases of click prediction: (history, target, label), who they are and how they are packed.

The protocol, which is the same for every method:

- Parts are cut by time, over all users at once: the latest `test_share` of the events are the test part, the
  `validation_share` before them the validation part, and what is earlier is trained on. A part begins at a time:
  events of equal times are never in different parts.
- Every event that has an earlier one of the same user is a case of its part: its item is the target, its label the
  label. Users' first events are none, because there is nothing to predict them from.
- A case's history are the user's earlier events, those of earlier parts included, as they would be at the request; of
  events at the same time, those that stand earlier in the file. History "positive" leaves out the events that are not
  labelled 1. Labels are no input in either case, and a target is never in its own history: what a method knows of a
  label is at most that an *earlier* event was positive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.data.batches import flat_ranges
from benchmark.data.dataset import Dataset, Int8, Int64
from benchmark.data.requests import packed_requests
from benchmark.errors import UserError
from benchmark.recommender import PackedSequences

ClickHistory = Literal["all", "positive"]


@dataclass(frozen=True)
class ClickCases:
    """(m,) each, in the data set's order: the target's event number in the flat arrays, its user and its label; and the
    history, events [history_start, history_end) of the flat arrays that `events` picks from."""

    event: Int64
    user: Int64
    label: Int8
    history_start: Int64
    history_end: Int64

    def __len__(self) -> int:
        return len(self.event)


@dataclass(frozen=True)
class ClickData:
    """A data set cut by time. dataset: with a split that trains on the earliest part alone. history_events: the events,
    in order, that histories are made of. validation, test: their cases, histories as ranges of history_events."""

    dataset: Dataset
    history_events: Int64
    validation: ClickCases
    test: ClickCases


def click_data(dataset: Dataset, validation_share: float, test_share: float, history: ClickHistory) -> ClickData:
    """Cut a data set with labels by time."""
    if dataset.labels is None:
        raise UserError(
            f"data set {dataset.card.name} has no labels, so clicks cannot be predicted: give it a `label` in "
            "config/datasets.yaml and prepare it again"
        )
    times = np.sort(dataset.timestamps)
    validation_from, test_from = (
        times[min(int(len(times) * (1 - share)), len(times) - 1)]
        for share in (validation_share + test_share, test_share)
    )
    lengths = np.diff(dataset.offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    first = np.zeros(len(users), dtype=np.bool_)
    first[dataset.offsets[:-1][lengths > 0]] = True
    kept = np.arange(len(users)) if history == "all" else np.flatnonzero(dataset.labels == 1)
    training = np.bincount(users[dataset.timestamps < validation_from], minlength=len(lengths))
    split = np.full((len(lengths), 3), -1, dtype=np.int32)
    split[:, 0] = training
    parts = []
    for name, part in (
        ("training", dataset.timestamps < validation_from),
        ("validation", (dataset.timestamps >= validation_from) & (dataset.timestamps < test_from)),
        ("test", dataset.timestamps >= test_from),
    ):
        event = np.flatnonzero(part & ~first)
        if not len(event):
            raise UserError(
                f"data set {dataset.card.name} has no case in the {name} part, because too many of its events are at "
                "the same time; change training.click.validation_share or test_share"
            )
        user = users[event]
        start, end = np.searchsorted(kept, dataset.offsets[:-1][user]), np.searchsorted(kept, event)
        parts.append(ClickCases(event, user, np.asarray(dataset.labels[event]), start, end))
    return ClickData(replace(dataset, split=split), kept, parts[1], parts[2])


def blocks(
    data: ClickData, cases: ClickCases, sequence_length: int, size: int
) -> Iterator[tuple[Int64, PackedSequences, Tensor]]:
    """Case numbers, their sequences (the newest sequence_length events of the history, and the request) and the
    targets' (b,) catalogue indices, `size` cases at a time, cases with histories of similar length together."""
    dataset = data.dataset
    lengths = np.minimum(cases.history_end - cases.history_start, sequence_length)
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        length, event = lengths[chosen], cases.event[chosen]
        rows = data.history_events[flat_ranges(cases.history_end[chosen] - length, length)]
        targets = torch.from_numpy(dataset.items[event].astype(np.int64))
        yield chosen, packed_requests(dataset, rows, length, event), targets
