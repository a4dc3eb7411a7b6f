"""Predicted clicks of a part's cases, and what a prediction costs when a request has many candidates."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmark.data.click_cases import ClickCases, ClickData, blocks
from benchmark.data.requests import with_requests
from benchmark.errors import NotFiniteError
from benchmark.evaluation.click_metrics import write_clicks
from benchmark.evaluation.metrics import Float64
from benchmark.evaluation.ranking import ROWS_AT_ONCE, embed_catalogue
from benchmark.files import write_text
from benchmark.recommender import ClickRecommender

_EVENTS_AT_ONCE = 1 << 15
_TRIES = 5  # of a request: what else the machine does lengthens some of them, and shortens none


@torch.no_grad()
def predict_clicks(
    model: ClickRecommender,
    data: ClickData,
    cases: ClickCases,
    sequence_length: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float64:
    """(m,) the logit of every case. progress is called with the number of cases done after each block; precision: the
    context that the model runs in, logits are computed outside of it, in float32: bfloat16's would tie by rounding.

    Raises NotFiniteError if a logit is none.
    """
    device, training = torch.device(device), model.training
    model.eval()
    with precision():
        vectors = embed_catalogue(model, data.dataset.item_count, ROWS_AT_ONCE, device)
    logits = np.empty(len(cases))
    size = max(1, _EVENTS_AT_ONCE // (sequence_length + 1))
    for chosen, sequences, targets in blocks(data, cases, sequence_length, size):
        sequences, targets = sequences.to(device), targets.to(device)
        with precision():
            states = model.click_states(sequences, vectors[sequences.items])
        found = model.click_logits(states.float(), vectors[targets].float())
        if not torch.isfinite(found).all():
            raise NotFiniteError("a logit")
        logits[chosen] = found.cpu().numpy()
        if progress:
            progress(len(chosen))
    model.train(training)
    return logits


def write_predictions(path: Path, data: ClickData, cases: ClickCases, logits: Float64, sequence_length: int) -> None:
    """Write clicks.parquet, one row a case in the data set's order."""
    dataset = data.dataset
    history = np.minimum(cases.history_end - cases.history_start, sequence_length)
    columns = {
        "user_id": pa.array(dataset.user_ids()).take(pa.array(cases.user)),
        "target_item": pa.array(dataset.item_ids()).take(pa.array(dataset.items[cases.event])),
        "label": cases.label,
        "logit": logits.astype(np.float32),
        "history_length": history.astype(np.int32),
        "timestamp": np.asarray(dataset.timestamps[cases.event]),
    }
    write_clicks(path, columns)


@dataclass(frozen=True)
class ServingTime:
    """The time of a request with so many candidates, item embeddings at hand: the least of its tries, and the median
    over the requests. sharing: "none", where every candidate is a sequence of its own, or "state", where one state of
    the user serves all candidates."""

    candidates: int
    sharing: Literal["none", "state"]
    requests: int
    history_length: float
    milliseconds: float

    @property
    def milliseconds_per_candidate(self) -> float:
        return self.milliseconds / self.candidates


@torch.no_grad()
def serving_times(
    model: ClickRecommender,
    data: ClickData,
    cases: ClickCases,
    sequence_length: int,
    device: torch.device | str = "cpu",
    candidate_counts: tuple[int, ...] = (1, 10, 100),
    requests: int = 30,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[ServingTime]:
    """Time requests of the cases with the longest histories, one at a time, for the first items as candidates.

    precision: as in predict_clicks. A request's time is the least of several tries, so that work of others on the
    machine is counted little.
    """
    device = torch.device(device)
    model.eval()
    with precision():
        vectors = embed_catalogue(model, data.dataset.item_count, ROWS_AT_ONCE, device)
    length = np.minimum(cases.history_end - cases.history_start, sequence_length)
    longest = np.argsort(-length, kind="stable")[:requests]
    times = []
    for count in candidate_counts:
        candidates = torch.arange(count) % data.dataset.item_count
        for sharing in ("none",) if model.target_in_history else ("none", "state"):
            request = partial(
                _seconds, model, data, cases, candidates=candidates, shared=sharing == "state", vectors=vectors,
                precision=precision,
            )  # fmt: skip
            seconds = [
                min(request(case=int(case), length=int(length[case])) for _ in range(_TRIES))
                for case in (longest[0], *longest)
            ][1:]  # the first one warms up
            milliseconds = 1000 * statistics.median(seconds)
            times.append(ServingTime(count, sharing, len(longest), float(length[longest].mean()), milliseconds))  # type: ignore[arg-type]
    return times


def _seconds(
    model: ClickRecommender,
    data: ClickData,
    cases: ClickCases,
    case: int,
    length: int,
    candidates: Tensor,
    shared: bool,
    vectors: Tensor,
    precision: Callable[[], AbstractContextManager[object]],
) -> float:
    """One request, from the events of the history to the logits on the host."""
    dataset = data.dataset
    rows = data.history_events[cases.history_end[case] - length : cases.history_end[case]]
    items, times = (torch.from_numpy(x[rows].astype(np.int64)) for x in (dataset.items, dataset.timestamps))
    began = time.perf_counter()
    sequences_needed = 1 if shared else len(candidates)
    starts = torch.zeros(sequences_needed, dtype=torch.int64)
    now = torch.full((sequences_needed,), int(dataset.timestamps[cases.event[case]]))
    sequences = with_requests(items, times, starts, starts + length, candidates[:sequences_needed], now)
    sequences, wanted = sequences.to(vectors.device), vectors[candidates.to(vectors.device)]
    with precision():
        states = model.click_states(sequences, vectors[sequences.items])
    model.click_logits(states.float().expand(len(candidates), -1), wanted.float()).cpu()
    return time.perf_counter() - began


def write_serving_times(path: Path, times: list[ServingTime]) -> None:
    """serving.csv: a row a number of candidates and way of sharing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["candidates", "sharing", "requests", "history_length", "milliseconds", "milliseconds_per_candidate"]
    )
    for one in times:
        writer.writerow(
            [one.candidates, one.sharing, one.requests, one.history_length, one.milliseconds,
             one.milliseconds_per_candidate]
        )  # fmt: skip
    write_text(path, text.getvalue())
