"""Interactions as arrays of numbers, how ids become numbers, and the filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from benchmark.data.dataset import Int8, Int32, Int64
from benchmark.data.sources import DatasetDefinition, ExpectedCounts, Filter

Bools = np.ndarray[Any, np.dtype[np.bool_]]


class Ids:
    """Distinct ids, numbered in the order in which they come."""

    def __init__(self) -> None:
        self._dtype = pl.Categorical(pl.Categories.random())
        self._alive = pl.Series([], dtype=self._dtype)  # polars forgets the categories that no series has
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def codes(self, ids: pl.Series) -> Int32:
        """(n,) the number of each id; new ids get the next ones."""
        codes = ids.cast(self._dtype).to_physical().to_numpy().astype(np.int32)
        self._size = max(self._size, int(codes.max(initial=-1)) + 1)
        return codes

    def names(self) -> pl.Series:
        """(len,) the ids in the order of their numbers."""
        return pl.int_range(self._size, dtype=pl.UInt32, eager=True).cat.to(self._dtype).cast(pl.String)


@dataclass(frozen=True)
class Events:
    """The interactions in the file's order, each (n,); users and items as indices. labels: if the data set has any."""

    users: Int32
    items: Int32
    timestamps: Int64
    labels: Int8 | None

    def __len__(self) -> int:
        return len(self.users)

    def where(self, kept: Bools) -> Events:
        if kept.all():
            return self
        labels = self.labels[kept] if self.labels is not None else None
        return Events(self.users[kept], self.items[kept], self.timestamps[kept], labels)


def present(codes: Int32, size: int) -> Bools:
    """(size,) whether each index occurs."""
    found = np.zeros(size, dtype=np.bool_)
    found[codes] = True
    return found


def filtered(events: Events, item_count: int, rule: Filter | None, dropped: dict[str, int]) -> tuple[Events, Bools]:
    """The events that a filter keeps, and (item_count,) the catalogue of protocol meta.

    That catalogue is fixed before users are dropped for being too short: all items without a filter, the items of the
    rows that pass the first step of the one-pass filter, and those that the iterative filter leaves.
    """
    if rule is None:
        return events, np.ones(item_count, dtype=np.bool_)
    before = len(events)
    if rule.kind == "one_pass":
        events = _frequent(events, rule.item_count, rule.user_count)
        candidates = present(events.items, item_count)
        events = _frequent(events, 1, rule.user_count)
    else:
        rows = -1
        while rows != len(events):
            rows = len(events)
            events = _frequent(events, rule.item_count, rule.user_count)
        candidates = present(events.items, item_count)
    dropped[f"interactions left out by the {rule.kind.replace('_', '-')} filter"] = before - len(events)
    return events, candidates


def _frequent(events: Events, item_count: int, user_count: int) -> Events:
    """The rows whose item has item_count rows and whose user has user_count."""
    items, users = np.bincount(events.items), np.bincount(events.users)
    return events.where((items >= item_count)[events.items] & (users >= user_count)[events.users])


def counted(events: Events, candidates: Bools) -> ExpectedCounts:
    """What `expected` of a definition is compared with."""
    return ExpectedCounts.model_construct(
        users=int(np.count_nonzero(np.bincount(events.users))),
        items=int(np.count_nonzero(np.bincount(events.items))),
        interactions=len(events),
        candidates_meta=int(candidates.sum()),
    )


def count_deviations(definition: DatasetDefinition, found: ExpectedCounts) -> list[str]:
    """What differs from the counts that the definition expects, such as "5 users expected and 4 found"."""
    deviations = []
    for name, expected in definition.expected.model_dump(exclude_none=True).items() if definition.expected else ():
        if getattr(found, name) != expected:
            deviations.append(f"{expected} {name} expected and {getattr(found, name)} found")
    return deviations
