"""Requests: histories that end with the event whose label is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.data.dataset import Dataset
from benchmark.recommender import PackedSequences

Int64 = np.ndarray[Any, np.dtype[np.int64]]


def packed_requests(dataset: Dataset, rows: Int64, lengths: Int64, events: Int64) -> PackedSequences:
    """The histories of b cases, each followed by its request.

    rows: (k,) the event numbers of all histories, one history after another; lengths: (b,) events of each, which may be
    none; events: (b,) the event number of each case's target.
    """
    items, times = (torch.from_numpy(x[rows].astype(np.int64)) for x in (dataset.items, dataset.timestamps))
    targets, now = (torch.from_numpy(x[events].astype(np.int64)) for x in (dataset.items, dataset.timestamps))
    ends = torch.from_numpy(lengths.cumsum())
    return with_requests(items, times, ends - torch.from_numpy(lengths), ends, targets, now)


def with_requests(
    items: Tensor, timestamps: Tensor, starts: Tensor, ends: Tensor, targets: Tensor, request_times: Tensor
) -> PackedSequences:
    """As `packed_requests`, of ranges that may overlap.

    items, timestamps: (k,) events that histories are ranges [start, end) of; starts, ends: (b,), which may be empty;
    targets, request_times: (b,) the item and the time of the request's event. The time that follows the request's is
    not known there, so its next_timestamp is its own.
    """
    lengths = ends - starts
    offsets = F.pad((lengths + 1).cumsum(0), (1, 0))
    total, longest = torch.stack([offsets[-1], lengths.max() + 1]).tolist()  # the one wait for the device
    case = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths + 1, output_size=total)
    place = torch.arange(total, device=starts.device) - offsets[case]
    request = place == lengths[case]
    source = torch.where(request, 0, starts[case] + place)
    items, timestamps = F.pad(items, (0, 1)), F.pad(timestamps, (0, 1))  # so that no events at all are a range too
    times = torch.where(request, request_times[case], timestamps[source])
    following = torch.where(request, times, times.roll(-1))
    return PackedSequences(torch.where(request, targets[case], items[source]), times, following, offsets, longest)
