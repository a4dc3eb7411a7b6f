"""A prepared data set: flat sequences and the split, memory-mapped, with its card. Needs NumPy and pyarrow only."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq

from benchmark.errors import UserError

FORMAT_VERSION = 1
Protocol = Literal["hllm", "meta", "temporal"]
Split = Literal["validation", "test"]
Int8 = np.ndarray[Any, np.dtype[np.int8]]
Int32 = np.ndarray[Any, np.dtype[np.int32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]


class Ids(typing.Protocol):
    """A list of ids, or what slices like one, such as a series."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice) -> Iterable[str]: ...


_ITEMS_AT_ONCE = 8192

# The columns of split.npy.
TRAIN_END, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class SourceFile:
    """A raw file that was read: its name, size and SHA-256."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """items: the catalogue, that is, all candidates."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class SequenceLength:
    """Events a user, held-out ones included."""

    mean: float
    median: float
    max: int


@dataclass(frozen=True)
class LabelFacts:
    """labels.npy: the column that it comes from, the smallest positive value (None: the column is 0 or 1), the share of
    positive events, and its SHA-256."""

    column: str
    positive_from: float | None
    positive: float
    sha256: str


@dataclass(frozen=True)
class DataCard:
    """dataset.json: what the data set is, and what about its split a reader of results must know.

    event_times: whether timestamps are times, and not only an order. training_interactions: events of all users'
    training parts. tie_rate: share of rows that share (user, timestamp) with another row. tied_targets: share of users
    whose test target has the timestamp of the event before it. unhittable_targets: for each split, the share of users
    whose target already stands in their history (None without such targets). items_without_text: items of the
    catalogue whose text fields are all empty. dropped: rows and users left out, by reason. filter: the filter's
    settings or "none". created_by: versions of the packages that wrote the folder. labels: what labels.npy holds, None
    without it. targets: for each split, the users who have one. cold_targets: for each split, the share of them whose
    target has no training event. cutoffs: the times at which validation and test begin, of protocol temporal.
    text_changes: texts that were cleaned, by field and what was changed. count_deviations: how the counts differ from
    those that the definition expects, where that was accepted.
    """

    format_version: int
    name: str
    protocol: Protocol
    counts: Counts
    training_interactions: int
    event_times: bool
    tie_rate: float
    tied_targets: float
    unhittable_targets: dict[str, float | None]
    sequence_length: SequenceLength
    text_fields: list[str]
    items_without_text: int
    dropped: dict[str, int]
    filter: dict[str, Any] | str
    sources: list[SourceFile]
    split_sha256: str
    licence: str
    terms: str | None
    created_by: dict[str, str]
    labels: LabelFacts | None = None
    targets: dict[str, int] | None = None
    cold_targets: dict[str, float | None] | None = None
    text_changes: dict[str, int] = field(default_factory=dict)
    cutoffs: dict[str, int] | None = None
    count_deviations: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> DataCard:
        """Raises ValueError, KeyError or TypeError for anything but what to_json writes."""
        content = json.loads(text)
        known = {item.name for item in fields(cls)}
        newer = {item.name for item in fields(cls) if item.default is None or callable(item.default_factory)}
        if not known - newer <= set(content) <= known:
            raise ValueError("its keys are not those of a data card")
        content["counts"] = Counts(**content["counts"])
        content["sequence_length"] = SequenceLength(**content["sequence_length"])
        content["sources"] = [SourceFile(**source) for source in content["sources"]]
        if content.get("labels") is not None:
            content["labels"] = LabelFacts(**content["labels"])
        return cls(**content)


@dataclass(frozen=True)
class EvaluationCases:
    """One entry a user who has a target, in user order; (m,) each.

    history_start, history_end: the history is events [start, end) of the data set's flat arrays; the history of a test
    case includes the validation event. request_timestamp: the time of the target event.
    """

    user: Int64
    history_start: Int64
    history_end: Int64
    target: Int32
    request_timestamp: Int64

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. items: (n,) int32 catalogue indices and timestamps: (n,) int64 of all events, by user and
    time; user i's are [offsets[i], offsets[i + 1]) of them; split: (users, 3) int32, positions within the user's
    events: training is [0, train_end), then the validation and the test event, -1 if there is none. labels: (n,) int8,
    1 for a positive event and 0 for another one, None if the data set's definition has no label."""

    folder: Path
    card: DataCard
    items: Int32
    timestamps: Int64
    offsets: Int64
    split: Int32
    labels: Int8 | None = None

    @property
    def user_count(self) -> int:
        return self.card.counts.users

    @property
    def item_count(self) -> int:
        return self.card.counts.items

    def user_ids(self) -> list[str]:
        """The users' ids, in index order."""
        return self._column("users.parquet", "user_id")

    def item_ids(self) -> list[str]:
        """The items' ids, in index order."""
        return self._column("items.parquet", "item_id")

    def item_texts(self, fields: Sequence[str] | None = None) -> list[dict[str, str]]:
        """For every item of the catalogue its fields, all or those named, in this order; empty ones are left out."""
        return list(self.iterate_item_texts(fields))

    def iterate_item_texts(self, fields: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
        """As item_texts, an item at a time: the texts of a large catalogue do not fit in memory comfortably."""
        names = list(self.card.text_fields if fields is None else fields)
        for name in names:
            if name not in self.card.text_fields:
                known = ", ".join(self.card.text_fields) or "none"
                raise UserError(f"data set {self.card.name} has no text field {name!r}; its fields are: {known}")
        if not names:
            yield from ({} for _ in range(self.item_count))
            return
        file = pq.ParquetFile(self.folder / "items.parquet", memory_map=True)
        for batch in file.iter_batches(batch_size=_ITEMS_AT_ONCE, columns=names):
            columns = [batch.column(name).to_pylist() for name in names]
            for values in zip(*columns, strict=True):
                yield {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def training_frequency(self) -> Int64:
        """(items,) int64: training events of each item of the catalogue."""
        return np.bincount(self.items[training_events(self.offsets, self.split)], minlength=self.item_count)

    def cases(self, split: Split) -> EvaluationCases:
        """The targets to rank; users without one are left out."""
        if split not in get_args(Split):
            raise ValueError(f"split {split!r} is neither validation nor test")
        position = np.asarray(self.split[:, VALIDATION if split == "validation" else TEST], dtype=np.int64)
        users = np.flatnonzero(position >= 0)
        start = self.offsets[users]
        end = start + position[users]
        return EvaluationCases(users, start, end, self.items[end], self.timestamps[end])

    def _column(self, file: str, name: str) -> list[Any]:
        values: list[Any] = pq.read_table(self.folder / file, columns=[name]).column(0).to_pylist()
        return values


def training_events(offsets: Int64, split: Int32) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) whether an event is in its user's training part; offsets and split as in Dataset."""
    change = np.zeros(int(offsets[-1]) + 1, dtype=np.int8)  # a part's start and the end of another may coincide
    np.add.at(change, offsets[:-1], 1)
    np.subtract.at(change, offsets[:-1] + split[:, TRAIN_END], 1)
    return np.cumsum(change[:-1], dtype=np.int8).view(np.bool_)


def split_hash(
    protocol: str,
    item_ids: Ids,
    user_ids: Ids,
    offsets: Int64,
    items: Int32,
    timestamps: Int64,
    split: Int32,
) -> str:
    """SHA-256 of everything that decides a result's data: the protocol, the ids in index order, and the arrays as
    little-endian bytes. Each list of ids is preceded by its length; every id ends its line."""
    digest = hashlib.sha256(f"hllm-bench split 1 {protocol}\n".encode("ascii"))
    for ids in (item_ids, user_ids):
        digest.update(f"{len(ids)}\n".encode("ascii"))
        for start in range(0, len(ids), 65_536):
            digest.update("".join(f"{name}\n" for name in ids[start : start + 65_536]).encode())
    for array, kind in ((offsets, "<i8"), (items, "<i4"), (timestamps, "<i8"), (split, "<i4")):
        digest.update(np.ascontiguousarray(array, dtype=kind).data)
    return digest.hexdigest()


def labels_hash(labels: Int8) -> str:
    """SHA-256 of the labels of all events, in the order of items.npy, a byte each."""
    return hashlib.sha256(b"hllm-bench labels 1\n" + labels.tobytes()).hexdigest()


def load_dataset(folder: Path) -> Dataset:
    """Open a prepared folder; arrays are memory-mapped, and read-only."""
    mend = f"prepare it with `python -m benchmark prepare {folder.parent.name} --protocol {folder.name}`"
    if not (folder / "dataset.json").is_file():
        raise UserError(f"{folder} holds no prepared data set (no dataset.json); {mend}")
    try:
        card = DataCard.from_json((folder / "dataset.json").read_text(encoding="utf-8"))
        if card.format_version != FORMAT_VERSION:
            raise ValueError(f"its format is {card.format_version}, this version reads {FORMAT_VERSION}")
        users, events = card.counts.users, card.counts.interactions
        items = _array(folder / "items.npy", "<i4", (events,))
        timestamps = _array(folder / "timestamps.npy", "<i8", (events,))
        offsets = _array(folder / "offsets.npy", "<i8", (users + 1,))
        split = _array(folder / "split.npy", "<i4", (users, 3))
        labels = _array(folder / "labels.npy", "|i1", (events,)) if card.labels is not None else None
        for name, rows in (("users.parquet", users), ("items.parquet", card.counts.items)):
            if pq.read_metadata(folder / name).num_rows != rows:
                raise ValueError(f"{name} does not have {rows} rows")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the data set in {folder} is damaged or incomplete ({error}); {mend}") from error
    return Dataset(folder, card, items, timestamps, offsets, split, labels)


def _array(path: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.dtype(kind) or array.shape != shape:
        raise ValueError(f"{path.name} is {array.dtype}{array.shape}, and not {np.dtype(kind)}{shape}")
    return np.asarray(array)
