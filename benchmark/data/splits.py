"""Events in order and split: sequences by user and time, what each protocol holds out, and the facts of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmark.data import randomness
from benchmark.data.dataset import TEST, TRAIN_END, VALIDATION, Int8, Int32, Int64, SequenceLength, training_events
from benchmark.data.events import Bools, Events
from benchmark.data.randomness import Stream
from benchmark.data.sources import TiedOrder
from benchmark.errors import UserError

# Protocol temporal: the shares of all interactions, in the order of time, at which validation and test begin.
VALIDATION_FROM, TEST_FROM = 0.8, 0.9
# Fewest events of a user: hllm holds two out and trains on the rest, meta holds one out.
SHORTEST = {"hllm": 3, "meta": 2}

_DIGIT = 16  # bits; NumPy's stable sort of integers up to this size is a radix sort


@dataclass(frozen=True)
class Sequences:
    """The canonical form; see `benchmark.data.dataset.Dataset`. users: (known users,) which of them are in it.

    cutoffs: of protocol temporal, the first times of validation and test.
    """

    users: Bools
    items: Int32
    timestamps: Int64
    offsets: Int64
    split: Int32
    labels: Int8 | None
    cutoffs: dict[str, int] | None = None


def split_events(
    events: Events, user_count: int, protocol: str, tied_order: TiedOrder, dropped: dict[str, int]
) -> Sequences:
    """Sort the events of user_count users by (user, timestamp, tied order) and hold out what the protocol says.

    hllm: the last event is the test target, the last but one the validation target, the rest is for training. meta: the
    last event is the test target, the rest is for training. temporal: validation begins at the time of the event that
    has VALIDATION_FROM of all interactions before it in the order of time, test likewise at TEST_FROM; training events
    are those before validation begins, a user's validation and test target are the first events in these periods, and
    a user who has no earlier event, or none in a period, has no target there. No training event is then as late as any
    target. A test target's history is all that comes before it; events after it are kept and not used.

    Users from whom nothing can be learned or asked are left out and counted in `dropped`: with fewer than three (hllm)
    or two events (meta), or with neither two training events nor a target (temporal). Raises UserError if none is left.
    """
    if not len(events):
        raise UserError("no interaction is left after `filter`; loosen it")
    lengths = np.bincount(events.users, minlength=user_count)
    order = _order(events, tied_order)
    timestamps = events.timestamps[order]
    present = lengths > 0
    lengths, cutoffs = lengths[present], None
    if protocol == "temporal":
        cutoffs = _cutoffs(timestamps)
        split = _temporal_split(timestamps, lengths, cutoffs)
        useful = (split[:, TRAIN_END] >= 2) | (split[:, VALIDATION] >= 0) | (split[:, TEST] >= 0)
        reason = "with neither two training events nor a target"
    else:
        useful = lengths >= SHORTEST[protocol]
        validation = lengths - 2 if protocol == "hllm" else np.full_like(lengths, -1)
        split = np.stack([lengths - SHORTEST[protocol] + 1, validation, lengths - 1], axis=1)
        reason = f"with fewer than {SHORTEST[protocol]} interactions"
    if not useful.any():
        raise UserError(
            f"no user has the {SHORTEST[protocol]} interactions that protocol {protocol} needs; add interactions or "
            "loosen `filter`"
        )
    if not useful.all():
        dropped[f"users {reason}"] = int((~useful).sum())
        dropped[f"interactions of users {reason}"] = int(lengths[~useful].sum())
        kept = np.repeat(useful, lengths)
        order, timestamps, lengths, split = order[kept], timestamps[kept], lengths[useful], split[useful]
        present[present] = useful
    return Sequences(
        users=present,
        items=events.items[order].astype("<i4", copy=False),
        timestamps=timestamps.astype("<i8", copy=False),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
        split=split.astype("<i4"),
        labels=events.labels[order] if events.labels is not None else None,
        cutoffs=cutoffs,
    )


def _order(events: Events, tied_order: TiedOrder) -> Int64:
    """(n,) rows by user and time; tied rows keep the file's order unless told otherwise."""
    keys = (events.users, events.timestamps)
    if tied_order == "file":
        return stable_order(keys)
    rows = np.arange(len(events.users))
    if tied_order == "reversed":
        before = rows[::-1]
    else:
        hashes = randomness.hashes(randomness.key(0, Stream.TIED_ORDER), torch.from_numpy(rows)).numpy()
        before = np.argsort(hashes, kind="stable")
    return before[stable_order([key[before] for key in keys])]


def stable_order(keys: Sequence[np.ndarray[Any, Any]]) -> Int64:
    """(n,) the rows sorted by integer keys, the first one most significant; equal rows keep their order.

    Sorts by 16 bits at a time, which takes time in proportion to n.
    """
    order: np.ndarray[Any, Any] | None = None
    for key in reversed(keys):
        if not len(key):
            continue
        lowest, highest = int(key.min()), int(key.max())
        above = key.astype(np.int64, copy=False).view(np.uint64) - np.uint64(lowest % (1 << 64))
        for shift in range(0, (highest - lowest).bit_length(), _DIGIT):
            digit = (above >> np.uint64(shift)).astype(np.uint16)  # keeps the low bits
            if order is None:
                order = np.argsort(digit, kind="stable")
            else:
                order = order[np.argsort(digit[order], kind="stable")]
    return order if order is not None else np.arange(len(keys[0]))


def _cutoffs(timestamps: Int64) -> dict[str, int]:
    places = {"validation": int(VALIDATION_FROM * len(timestamps)), "test": int(TEST_FROM * len(timestamps))}
    times = np.partition(timestamps, list(places.values()))
    return {name: int(times[place]) for name, place in places.items()}


def _temporal_split(timestamps: Int64, lengths: Int64, cutoffs: dict[str, int]) -> Int64:
    """(users, 3) train_end, validation and test of events sorted by user and time."""
    ends = np.cumsum(lengths)

    def before(time: int) -> Int64:
        count = np.concatenate([[0], np.cumsum(timestamps < time)])
        return np.asarray(count[ends] - count[ends - lengths])

    train_end, test = before(cutoffs["validation"]), before(cutoffs["test"])
    validation = np.where((train_end < test) & (train_end > 0), train_end, -1)
    test = np.where((test < lengths) & (test > 0), test, -1)
    for name, missing in (
        ("training event", not train_end.any()),
        ("validation target", (validation < 0).all()),
        ("test target", (test < 0).all()),
    ):
        if missing:
            raise UserError(
                f"protocol temporal finds no {name}: validation begins at time {cutoffs['validation']} and test at "
                f"{cutoffs['test']}, and no user has events on both sides; use another protocol"
            )
    return np.stack([train_end, validation, test], axis=1)


def split_facts(sequences: Sequences, item_count: int) -> dict[str, Any]:
    """The figures of a data card that describe order and split."""
    offsets, timestamps, items = sequences.offsets, sequences.timestamps, sequences.items
    starts, lengths = offsets[:-1], np.diff(offsets)
    as_before = np.concatenate([[False], timestamps[1:] == timestamps[:-1]])
    as_before[starts] = False
    tied = as_before | np.append(as_before[1:], False)
    trained = np.bincount(items[training_events(offsets, sequences.split)], minlength=item_count) > 0
    unhittable: dict[str, float | None] = {"validation": None, "test": None}
    cold: dict[str, float | None] = {"validation": None, "test": None}
    for name, column in (("validation", VALIDATION), ("test", TEST)):
        position = sequences.split[:, column].astype(np.int64)
        users = np.flatnonzero(position >= 0)
        if not len(users):
            continue
        target = starts[users] + position[users]
        target_items = np.full(len(starts), -1, dtype=np.int32)
        target_items[users] = items[target]
        same = np.flatnonzero(items == np.repeat(target_items, lengths))
        owner = np.searchsorted(offsets, same, side="right") - 1
        seen = np.unique(owner[same < starts[owner] + position[owner]])
        unhittable[name] = len(seen) / len(users)
        cold[name] = float((~trained[items[target]]).mean())
    with_test: Int64 = np.flatnonzero(sequences.split[:, TEST] >= 0)
    tests = starts[with_test] + sequences.split[with_test, TEST]
    return {
        "training_interactions": int(sequences.split[:, TRAIN_END].sum(dtype=np.int64)),
        "tie_rate": float(tied.mean()),
        "tied_targets": float(as_before[tests].mean()),
        "unhittable_targets": unhittable,
        "targets": {
            "validation": int((sequences.split[:, VALIDATION] >= 0).sum()),
            "test": len(tests),
        },
        "cold_targets": cold,
        "sequence_length": SequenceLength(float(lengths.mean()), float(np.median(lengths)), int(lengths.max())),
    }
