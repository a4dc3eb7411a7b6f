"""Counter-based randomness: a number depends on (seed, stream, step, position) and on nothing else.

No generator carries state from step to step or from process to process, so windows, their order and the negatives are
the same on any number of processes and after any restart. The mixing function is the finaliser of SplitMix64 (Steele,
Lea and Flood, OOPSLA 2014) in wrapping 64-bit integers, which give the same bits on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BITS = 40  # of randomness for a bounded integer; with a bound below 2^23 no product leaves 63 bits


class Stream(IntEnum):
    """What the numbers are for; streams with different names are independent."""

    PARAMETERS = 1
    WINDOW_ORDER = 2
    NEGATIVES = 3
    DROPOUT = 4
    TIED_ORDER = 5
    USER_SAMPLE = 6
    HISTORY_ORDER = 7
    CLICK_CASES = 8


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # >> copies the sign bit; the mask takes it off again


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def key(seed: int, stream: Stream, step: int = 0) -> int:
    """A 64-bit key of (seed, stream, step), as a signed integer; also good for seeding a generator."""
    value = torch.zeros((), dtype=torch.int64)
    for part in (seed, int(stream), step):
        value = _mix(value + _signed((part * _GOLDEN + 1) & _MASK))
    return int(value)


def hashes(key: int, positions: Tensor) -> Tensor:
    """Independent 64-bit hashes of int64 positions, of the same shape; they may be negative."""
    return _mix(positions * _signed(_GOLDEN) + key)


def integers(key: int, positions: Tensor, bound: int, compiled: bool = False) -> Tensor:
    """Uniform integers in [0, bound) for int64 positions; bound < 2^23. The bias is below bound / 2^40. compiled: let
    torch.compile make one kernel of it, which gives the same numbers."""
    if not 0 < bound < 1 << 23:
        raise ValueError(f"bound {bound} is not between 1 and {(1 << 23) - 1}")
    draw = _compiled_draw() if compiled else _draw
    return draw(torch.tensor(key), positions, bound)


def _draw(key: Tensor, positions: Tensor, bound: int) -> Tensor:
    return (_shift(_mix(positions * _signed(_GOLDEN) + key), 64 - _BITS) * bound) >> _BITS


@cache
def _compiled_draw() -> Callable[[Tensor, Tensor, int], Tensor]:
    return torch.compile(_draw, dynamic=True)


def permutation(key: int, n: int) -> Tensor:
    """(n,) a random order of 0 .. n - 1."""
    return hashes(key, torch.arange(n)).argsort(stable=True)
