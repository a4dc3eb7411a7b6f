"""Does an improvement hold? Each method's gain over a reference method, in one source against the same in another.

A gain is value / reference's value - 1, a fraction, on the same data set and metric. Papers claim gains more often than
numbers, and a gain can hold where both numbers are off by the same factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmark.analysis.compare import Compared, Comparer, Interval, Verdict, judged
from benchmark.analysis.compare_matching import Match
from benchmark.analysis.compare_sources import Entry, plain_name
from benchmark.errors import UserError


@dataclass(frozen=True)
class _Gain:
    """value and its bounds over users, NaN if unknown; slack: how far rounding of printed numbers can move it."""

    value: float
    low: float
    high: float
    slack: float


def compare_gains(matches: Sequence[Match], reference: str, comparer: Comparer, noise: float) -> list[Compared]:
    """The gains of all matched methods over the method called reference (in the first source) on its data set.

    noise: relative, of the ratio that a gain stands for. UserError where no matched method is called so.
    """
    comparable = [match for match in matches if not match.refusal]
    called: dict[tuple[str, str, str], list[Match]] = {}
    for match in comparable:
        if _is(match.first, reference):
            called.setdefault(_place(match), []).append(match)
    base = {place: _reference(found, reference) for place, found in called.items()}
    if not base:
        names = dict.fromkeys(match.first.name for match in matches)
        raise UserError(
            f"--reference {reference} is no comparable method of both; they are: {', '.join(names) or 'none'}"
        )
    results = []
    for match in comparable:
        against = base.get(_place(match))
        if against is None or match is against or min(against.first.value, against.second.value) <= 0:
            continue
        first = _gain(match.first, against.first, comparer)
        second = _gain(match.second, against.second, comparer)
        result = Compared(match.first, match.second, first.value, second.value, gain=True)
        if reason := comparer.contradiction(match.first) or comparer.contradiction(match.second):
            results.append(replace(result, verdict=Verdict.DEVIATES, reason=reason, contradicted=True))
            continue
        results.append(judged(result, _interval(first, second), first.slack + second.slack, noise))
    return results


def _reference(called: Sequence[Match], name: str) -> Match:
    """The one of a place: a label goes before the name of a method's file, which rows of several labels may share."""
    labelled = [match for match in called if plain_name(match.first.name) == plain_name(name)] or called
    if len(labelled) > 1:
        rows = "; ".join(", ".join(m.first.settings) or m.first.values[0].where for m in labelled)
        raise UserError(
            f"--reference {name} is more than one row on {labelled[0].first.of.dataset} ({rows}): choose one with "
            "--where-a, or leave the others out"
        )
    return labelled[0]


def _is(entry: Entry, reference: str) -> bool:
    return plain_name(reference) in {plain_name(entry.name), plain_name(entry.of.method)}


def _place(match: Match) -> tuple[str, str, str]:
    of = match.first.of
    return of.dataset, of.protocol, of.metric


def _gain(entry: Entry, base: Entry, comparer: Comparer) -> _Gain:
    ratio = entry.value / base.value
    slack = ratio * (entry.rounding / entry.value + base.rounding / base.value) if entry.value > 0 else 0.0
    if found := comparer.paired(entry, base):
        index = found.metrics.index(entry.of.metric)
        return _Gain(ratio - 1, float(found.relative_low[index]), float(found.relative_high[index]), slack)
    return _Gain(ratio - 1, math.nan, math.nan, slack)


def _interval(first: _Gain, second: _Gain) -> list[Interval]:
    """Of the difference of two gains, as of independent ones; empty where neither has bounds."""
    sides = [
        (gain.value - gain.low, gain.high - gain.value) if math.isfinite(gain.low + gain.high) else None
        for gain in (first, second)
    ]
    known = [name for name, side in zip("AB", sides, strict=True) if side]
    if not known:
        return []
    (below, above), (other_below, other_above) = (side or (0.0, 0.0) for side in sides)
    difference = first.value - second.value
    basis = f"users of {' and '.join(known)}, paired with the reference"
    return [Interval(difference - math.hypot(below, other_above), difference + math.hypot(above, other_below), basis)]
