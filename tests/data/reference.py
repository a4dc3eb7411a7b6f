"""The preparation of a data set once more, in plain Python: what the tests compare with."""

import hashlib
import re
import struct
from collections import Counter
from dataclasses import dataclass

WHITE_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")


@dataclass
class Expected:
    item_ids: list[str]
    user_ids: list[str]
    offsets: list[int]
    items: list[int]
    timestamps: list[int]
    split: list[list[int]]
    texts: list[dict[str, str]]
    bad: Counter
    figures: dict

    def sha256(self, protocol):
        parts = [f"hllm-bench split 1 {protocol}\n".encode()]
        for ids in (self.item_ids, self.user_ids):
            parts += [f"{len(ids)}\n".encode(), *(name.encode() + b"\n" for name in ids)]
        parts.append(struct.pack(f"<{len(self.offsets)}q", *self.offsets))
        parts.append(struct.pack(f"<{len(self.items)}i", *self.items))
        parts.append(struct.pack(f"<{len(self.timestamps)}q", *self.timestamps))
        parts += [struct.pack("<3i", *row) for row in self.split]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def blank(text):
    return WHITE_SPACE.fullmatch(text) is not None


def whole_number(text):
    if not re.fullmatch(r"[+-]?[0-9]+(\.0+)?", text):
        return None
    number = int(text.split(".")[0])
    return number if -(2**63) <= number < 2**63 else None


def usable_rows(interactions, items, missing_text):
    """(user, item, time) of the good rows in order, item -> fields, and the reasons of the others."""
    bad, records, rows = Counter(), {}, []
    for name, fields in items:
        if blank(name):
            bad["empty item_id"] += 1
        elif "\n" in name:
            bad["line break in item_id"] += 1
        elif name in records:
            bad["item repeated"] += 1
        else:
            records[name] = {key: value for key, value in fields.items() if not blank(value)}
    if missing_text == "fail":
        bad["item without text"] += sum(not fields for fields in records.values())
        records = {name: fields for name, fields in records.items() if fields}
    for user, item, time in interactions:
        if blank(user):
            bad["empty user_id"] += 1
        elif "\n" in user:
            bad["line break in user_id"] += 1
        elif blank(item):
            bad["empty item_id"] += 1
        elif "\n" in item:
            bad["line break in item_id"] += 1
        elif whole_number(time) is None:
            bad["unparsable timestamp"] += 1
        elif missing_text == "fail" and item not in records:
            bad["interaction with an item that items.csv does not have"] += 1
        else:
            rows.append((user, item, whole_number(time)))
    return rows, records, +bad


def k_core(rows, minimum):
    """Rows of rare items and users dropped one after another until none is left."""
    while True:
        item_counts, user_counts = Counter(row[1] for row in rows), Counter(row[0] for row in rows)
        rare = [n for n, row in enumerate(rows) if item_counts[row[1]] < minimum[0] or user_counts[row[0]] < minimum[1]]
        if not rare:
            return rows
        del rows[rare[0]]


def split_of(events, protocol, cutoffs):
    """train_end, validation, test of a user's (time, row, item), None if they are of no use."""
    n = len(events)
    if protocol == "hllm":
        return [n - 2, n - 2, n - 1] if n >= 3 else None
    if protocol == "meta":
        return [n - 1, -1, n - 1] if n >= 2 else None
    periods = ["train" if time < cutoffs[0] else "validation" if time < cutoffs[1] else "test" for time, _, _ in events]
    split = [periods.count("train")]
    for name in ("validation", "test"):
        split.append(periods.index(name) if name in periods and periods[0] != name else -1)
    return split if split[0] >= 2 or max(split[1:]) >= 0 else None


def prepared(interactions, items, protocol, minimum=None, missing_text="fail", kind="one_pass"):
    """interactions: (user, item, timestamp) strings and items: (item, {field: text}), both in the files' order;
    minimum: (item_count, user_count) of the filter. None if nothing is left."""
    rows, records, bad = usable_rows(interactions, items, missing_text)
    candidates = set(records) | {item for _, item, _ in rows}
    if minimum is not None and kind == "iterative":
        rows = k_core(list(rows), minimum)
        candidates = {item for _, item, _ in rows}
    elif minimum is not None:
        item_counts, user_counts = Counter(row[1] for row in rows), Counter(row[0] for row in rows)
        rows = [row for row in rows if item_counts[row[1]] >= minimum[0] and user_counts[row[0]] >= minimum[1]]
        candidates = {item for _, item, _ in rows}
        user_counts = Counter(row[0] for row in rows)
        rows = [row for row in rows if user_counts[row[0]] >= minimum[1]]
    histories = {}
    for number, (user, item, time) in enumerate(rows):
        histories.setdefault(user, []).append((time, number, item))
    histories = {user: sorted(events) for user, events in histories.items()}
    times = sorted(time for _, _, time in rows)
    cutoffs = [times[int(share * len(times))] for share in (0.8, 0.9)] if times else None
    splits = {user: split_of(events, protocol, cutoffs) for user, events in histories.items()}
    histories = {user: events for user, events in histories.items() if splits[user]}
    most = [max((split[place] for split in splits.values() if split), default=0) for place in range(3)]
    if protocol == "temporal" and (most[0] == 0 or -1 in most):
        return None
    if not histories:
        return None
    if protocol != "meta":
        candidates = {item for events in histories.values() for _, _, item in events}
    item_ids = sorted(candidates, key=lambda name: name.encode())
    user_ids = sorted(histories, key=lambda name: name.encode())
    number_of = {name: number for number, name in enumerate(item_ids)}
    offsets, flat, split = [0], [], []
    for user in user_ids:
        events = histories[user]
        flat += events
        offsets.append(len(flat))
        split.append(splits[user])
    return Expected(
        item_ids,
        user_ids,
        offsets,
        [number_of[item] for _, _, item in flat],
        [time for time, _, _ in flat],
        split,
        [records.get(name, {}) for name in item_ids],
        bad,
        _figures([histories[user] for user in user_ids], split) | {"cutoffs": cutoffs},
    )


def _figures(histories, split):
    rows = Counter((number, time) for number, events in enumerate(histories) for time, _, _ in events)
    cases = list(zip(histories, split, strict=True))
    trained = {item for events, (end, _, _) in cases for _, _, item in events[:end]}

    def share(place, condition):
        found = [condition(events, targets[place]) for events, targets in cases if targets[place] >= 0]
        return sum(found) / len(found) if found else None

    def unhittable(events, target):
        return events[target][2] in {item for _, _, item in events[:target]}

    def cold(events, target):
        return events[target][2] not in trained

    return {
        "tie_rate": sum(count for count in rows.values() if count > 1) / sum(map(len, histories)),
        "tied_targets": share(2, lambda events, target: events[target][0] == events[target - 1][0]),
        "unhittable_targets": {"validation": share(1, unhittable), "test": share(2, unhittable)},
        "cold_targets": {"validation": share(1, cold), "test": share(2, cold)},
        "targets": {name: sum(row[place] >= 0 for row in split) for place, name in ((1, "validation"), (2, "test"))},
        "training_interactions": sum(end for end, _, _ in split),
    }
