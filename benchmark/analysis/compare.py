"""Does a number hold? Each number of one source against its counterpart in another: difference, interval, verdict.

What a difference is measured against depends on what both sides have:

- **ranks of the same users on the same split**: a paired bootstrap interval over users and a paired t-test;
- **several seeds on both sides**: Welch's interval and t-test over seeds; several on one side only: the interval in
  which one more run of that method would lie, without a test;
- **intervals over users, and splits that are not known to be the same**: the interval of two independent means, and no
  test;
- **none of these**: no interval and no test. Two files without ranks on the same split and one seed are such a case:
  their users are the same, and so no reason for a difference.

Users and seeds are two sources of chance, and each interval covers one. Where there are both, the wider one counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np

from benchmark.analysis.compare_matching import Match
from benchmark.analysis.compare_sources import Entry, RunFolders
from benchmark.analysis.significance import (
    Comparison,
    Outcomes,
    compare,
    holm,
    mean_intervals,
    outcomes,
    single_run_interval,
    welch,
)
from benchmark.errors import UserError
from benchmark.evaluation.metrics import Metric, metric_mean

AUTHORS_NOISE = (
    0.004  # relative: how far the paper's numbers for the same model in its tables 7 and 8, and 2 and 3, lie
)
WITHIN = "within the interval"
NAN = math.nan


class Verdict(StrEnum):
    REPRODUCED = "reproduced"
    NOISE = "within authors' noise"
    DEVIATES = "deviates"
    REFUSED = "not comparable"


@dataclass(frozen=True)
class Compared:
    """One number against its counterpart, in fractions; relative to the counterpart; NaN where there is none.

    low, high: the 95 % interval of the difference, rounding of printed numbers included. basis: what the interval is
    from. test: which test p_value is of. p_holm: corrected over all tests of the comparison. reason: of the verdict.
    contradicted: a source speaks against itself. gain: the values are relative differences from a reference method.
    """

    first: Entry
    second: Entry
    value: float
    reference: float
    low: float = NAN
    high: float = NAN
    basis: str = "none"
    test: str = "none"
    p_value: float = NAN
    p_holm: float = NAN
    verdict: Verdict = Verdict.REFUSED
    reason: str = ""
    contradicted: bool = False
    gain: bool = False

    @property
    def difference(self) -> float:
        return self.value - self.reference

    @property
    def relative(self) -> float:
        """For a gain, of the ratios that the two gains stand for."""
        if self.gain:
            return (1 + self.value) / (1 + self.reference) - 1
        return self.value / self.reference - 1 if self.reference > 0 else NAN


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    basis: str
    test: str = "none"
    p_value: float = NAN


class Comparer:
    """Compares matched numbers; ranks are read, folded and resampled once for all metrics of a pair of methods."""

    def __init__(self, matches: Sequence[Match], runs: RunFolders, noise: float = AUTHORS_NOISE) -> None:
        self._matches, self._runs, self._noise = matches, runs, noise
        self.metrics = tuple(sorted({match.first.of.metric for match in matches if _has_ranks(match.first.of.metric)}))
        self._outcomes, self._paired = cache(self._fold), cache(self._compare_ranks)
        self._alone = cache(lambda folders: mean_intervals(self._outcomes(folders)))

    def results(self) -> list[Compared]:
        """A result a match, in order, with p-values corrected over all of them."""
        results = [self._one(match) for match in self._matches]
        tested = [index for index, result in enumerate(results) if math.isfinite(result.p_value)]
        corrected = holm(np.array([results[index].p_value for index in tested]))
        for index, p_value in zip(tested, corrected, strict=True):
            results[index] = replace(results[index], p_holm=float(p_value))
        return results

    def paired(self, first: Entry, second: Entry) -> Comparison | None:
        """Two entries by their ranks in all of `metrics`, if both have the ranks of the same users."""
        ours, theirs = _folders(first), _folders(second)
        if not (ours and theirs and _has_ranks(first.of.metric)):
            return None
        runs = [self._runs.load(folder) for folder in (*ours, *theirs)]
        same = len({(run.dataset_hash, run.cases_sha256) for run in runs}) == 1
        return self._paired(ours, theirs) if same else None

    def contradiction(self, entry: Entry) -> str:
        """What to say of a number in a file that its own interval or the ranks beside it speak against."""
        for one in entry.values:
            if one.value < one.low - entry.rounding or one.value > one.high + entry.rounding:
                return f"{one.where} says {one.value:.6g}, outside of its own interval {one.low:.6g} to {one.high:.6g}"
            if one.run is not None and _has_ranks(entry.of.metric):
                computed = metric_mean(self._runs.load(one.run).ranks, entry.of.metric)
                if abs(computed - one.value) > max(1e-9, entry.rounding):
                    return f"{one.where} says {one.value:.6g}, and the ranks of its run give {computed:.6g}"
        return ""

    def _one(self, match: Match) -> Compared:
        first, second = match.first, match.second
        result = Compared(first, second, first.value, second.value, reason=match.refusal)
        if match.refusal:
            return result
        for entry in (first, second):
            if reason := self.contradiction(entry):
                return replace(result, verdict=Verdict.DEVIATES, reason=reason, contradicted=True)
        intervals = [found for found in (self._over_users(first, second), _over_seeds(first, second)) if found]
        return judged(result, intervals, first.rounding + second.rounding, self._noise)

    def _over_users(self, first: Entry, second: Entry) -> Interval | None:
        if found := self.paired(first, second):
            index = found.metrics.index(first.of.metric)
            basis = f"{found.users:,} users, paired"
            low, high, p_value = (float(column[index]) for column in (found.low, found.high, found.p_value))
            return Interval(low, high, basis, "paired t", p_value)
        if first.hashes and second.hashes:  # of the same users, whose choice is then no reason for a difference
            return None
        sides = [(entry, self._user_bounds(entry)) for entry in (first, second)]
        known = [name for name, (_, bounds) in zip("AB", sides, strict=True) if bounds]
        if not known:
            return None
        (below, above), (other_below, other_above) = (
            (entry.value - bounds[0], bounds[1] - entry.value) if bounds else (0.0, 0.0) for entry, bounds in sides
        )
        difference, basis = first.value - second.value, f"users of {' and '.join(known)}, unpaired"
        return Interval(difference - math.hypot(below, other_above), difference + math.hypot(above, other_below), basis)

    def _user_bounds(self, entry: Entry) -> tuple[float, float] | None:
        """The interval over users of an entry's mean over seeds, which all have the same users."""
        folders = _folders(entry)
        if folders and _has_ranks(entry.of.metric):
            _, low, high = self._alone(folders)
            index = self.metrics.index(entry.of.metric)
            return float(low[index]), float(high[index])
        if any(math.isnan(one.low) or math.isnan(one.high) for one in entry.values):
            return None
        count = len(entry.values)
        return math.fsum(one.low for one in entry.values) / count, math.fsum(one.high for one in entry.values) / count

    def _compare_ranks(self, ours: tuple[Path, ...], theirs: tuple[Path, ...]) -> Comparison:
        return compare(self._outcomes(ours), self._outcomes(theirs))

    def _fold(self, folders: tuple[Path, ...]) -> Outcomes:
        runs = [self._runs.load(folder) for folder in folders]
        if len({run.cases_sha256 for run in runs}) > 1:
            listed = ", ".join(map(str, folders))
            raise UserError(f"the seeds of {runs[0].label} hold different users or targets: {listed}")
        return outcomes(np.stack([run.ranks for run in runs]), self.metrics)


def judged(result: Compared, intervals: Sequence[Interval], rounding: float, noise: float) -> Compared:
    """The verdict of a number: the widest interval widened by what printing rounded away, then the authors' noise."""
    difference = result.difference
    if intervals:
        widest = max(intervals, key=lambda interval: interval.high - interval.low)
        result = replace(
            result, low=widest.low - rounding, high=widest.high + rounding, basis=widest.basis, test=widest.test,
            p_value=widest.p_value,
        )  # fmt: skip
    if abs(difference) <= rounding + 1e-12:
        return replace(result, verdict=Verdict.REPRODUCED, reason="equal as printed" if rounding else "equal")
    if intervals and result.low <= 0 <= result.high:
        return replace(result, verdict=Verdict.REPRODUCED, reason=WITHIN)
    counted = 1 + result.reference if result.gain else result.reference
    if abs(difference) <= noise * counted + rounding:
        return replace(result, verdict=Verdict.NOISE, reason=f"within {100 * noise:g} %")
    outside = "outside of the interval" if intervals else "no interval: neither ranks of both nor several seeds"
    return replace(result, verdict=Verdict.DEVIATES, reason=f"{outside}, and more than {100 * noise:g} %")


def _over_seeds(first: Entry, second: Entry) -> Interval | None:
    ours, theirs = (np.array([one.value for one in entry.values]) for entry in (first, second))
    if len(ours) > 1 and len(theirs) > 1:
        low, high, p_value = welch(ours, theirs)
        return Interval(low, high, f"{len(ours)} and {len(theirs)} seeds", "Welch's t", p_value)
    if len(ours) > 1:
        return Interval(*single_run_interval(ours, float(theirs[0])), f"{len(ours)} seeds of A")
    if len(theirs) > 1:
        low, high = single_run_interval(theirs, float(ours[0]))
        return Interval(-high, -low, f"{len(theirs)} seeds of B")
    return None


def _folders(entry: Entry) -> tuple[Path, ...]:
    """The folders of all of an entry's runs, or none if one is not there."""
    folders = [one.run for one in entry.values if one.run is not None]
    return tuple(folders) if len(folders) == len(entry.values) else ()


def _has_ranks(metric: str) -> bool:
    try:
        Metric.parse(metric)
    except UserError:
        return False
    return True
