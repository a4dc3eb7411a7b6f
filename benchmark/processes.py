"""The processes of a job, as torchrun starts them, and what they tell each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from benchmark.errors import OneProcessError

_TIMEOUT = timedelta(minutes=30)  # of one exchange: the longest is the wait for rank 0 to write the whole weights
_BUCKET = 1 << 26  # elements of gradients that are summed at once
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|NCCL|Gloo|ProcessGroup|Socket Timeout|Timed out waiting", re.I
)

# Newer releases of torch have renamed them.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Processes:
    """This process among those of its job. With one process every method returns what it was given.

    All of them must be called by all processes, in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that talks and writes what is not written by all."""
        return self.rank == 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """(n, d), as many rows in each process -> (count n, d), those of process 0 first."""
        if self.count == 1:
            return rows
        every = rows.new_empty(self.count * len(rows), *rows.shape[1:])
        _gather(every, rows.contiguous())
        return every

    def sum_own_rows(self, rows: Tensor) -> Tensor:
        """(count n, d) -> (n, d): this process's rows of the sum over all processes; the gradient of gather_rows."""
        if self.count == 1:
            return rows
        own = rows.new_empty(len(rows) // self.count, *rows.shape[1:])
        _scatter(own, rows.contiguous())
        return own

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, many small ones in one exchange."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                dist.all_reduce(bucket[0])
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def send_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of process 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def turns(self, count: int) -> Iterator[int]:
        """This process's share of the numbers below count, dealt in turn. At the end, whoever has none left does the
        last one again, so that all run the model equally often, which weights that are spread over them need."""
        for first in range(0, count, self.count):
            yield min(first + self.rank, count - 1)

    def take_most(self, numbers: Tensor) -> None:
        """Replace each number, on the host, by the largest of the processes' own."""
        if self.count > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX)

    def most(self, numbers: Sequence[int]) -> list[int]:
        """For each number the largest of the processes' own. Between hosts, without waiting for their GPUs."""
        largest = torch.tensor(numbers)
        self.take_most(largest)
        found: list[int] = largest.tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; also a point that none leaves before all have come to it."""
        return bool(self.most([int(flag)])[0])


@contextmanager
def joined() -> Iterator[Processes]:
    """This process as torchrun's environment tells (RANK, WORLD_SIZE, MASTER_ADDR, ...), joined with the others; alone
    without that environment. When another process is lost, the exchange that fails for it is told in one sentence."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        dist.init_process_group(_backend(), timeout=_TIMEOUT)
    try:
        yield Processes(rank, count)
    except RuntimeError as error:
        if count > 1 and _LOST.search(str(error)):
            raise OneProcessError(
                f"process {rank} of {count} lost another one ({' '.join(str(error).split())[:200]}); "
                "the same command continues from the last saved state"
            ) from error
        raise
    else:
        leave_group()


def join_alone() -> None:
    """Set up a process group of one, where there is none, for libraries that want one."""
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(_backend(), store=alone, rank=0, world_size=1)


def leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def local_rank() -> int:
    """Which GPU of its host is this process's."""
    return int(os.environ.get("LOCAL_RANK", 0))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, tensors of one type and _BUCKET elements at most together; a larger one by itself."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
