"""The gradient of the scores of every position's own candidates, as one kernel in Triton for CUDA.

The candidates' vectors are read where they stand in the table and are never written out: (t, n, d) numbers, 840 MB for
the Books baselines' 6,400 x 513 candidates of width 64. What torch.compile makes of it takes 1.8 times the time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of table rows that are in registers at once


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    gradient,
    chosen,
    vectors,
    table,
    to_vectors,
    to_table,
    candidates,
    width,
    columns: tl.constexpr,
    rows: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, columns)
    inside = column < width
    vector = tl.load(vectors + position * width + column, mask=inside, other=0.0)
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for first in range(0, candidates, rows):
        candidate = first + tl.arange(0, rows)
        some = candidate < candidates
        row = tl.load(chosen + position * candidates + candidate, mask=some, other=0)
        weight = tl.load(gradient + position * candidates + candidate, mask=some, other=0.0)
        place, there = row[:, None] * width + column[None, :], some[:, None] & inside[None, :]
        total += weight[:, None] * tl.load(table + place, mask=there, other=0.0)
        tl.atomic_add(to_table + place, weight[:, None] * vector[None, :], mask=there, sem="relaxed")
    tl.store(to_vectors + position * width + column, tl.sum(total, 0), mask=inside)


def candidate_gradients(gradient: Tensor, vectors: Tensor, table: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """gradient: (t, n) of the dot products of vectors: (t, d) with their rows chosen: (t, n) of table: (u, d), all but
    chosen float32 -> (t, d) and (u, d), the gradients of vectors and table."""
    gradient, vectors, table, chosen = (x.contiguous() for x in (gradient, vectors, table, chosen))
    to_vectors, to_table = torch.empty_like(vectors), torch.zeros_like(table)
    count, width = vectors.shape
    columns = triton.next_power_of_2(width)
    rows = max(1, min(32, _ELEMENTS // columns))
    _kernel[(count,)](gradient, chosen, vectors, table, to_vectors, to_table, chosen.shape[1], width, columns, rows)
    return to_vectors, to_table
