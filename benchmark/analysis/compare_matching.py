"""Which number of one source is to be compared with which of another, and why a pair cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.analysis.compare_sources import Entry, Source, same_name
from benchmark.errors import UserError
from benchmark.experiments import Configuration, Row

PERCENT_RATIO = (30.0, 300.0)  # numbers of one thing that lie so far apart are in two units
Selector = Callable[[Entry], Mapping[str, str] | None]


@dataclass(frozen=True)
class Match:
    """A number of the first source and its counterpart. refusal: why the two cannot be compared, or empty."""

    first: Entry
    second: Entry
    refusal: str = ""


@dataclass(frozen=True)
class Matching:
    """only_first, only_second: names of methods (with their data sets) that have no counterpart at all."""

    first: Source
    second: Source
    matches: tuple[Match, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def match_sources(first: Source, second: Source, same: Mapping[str, str], config: Path) -> Matching:
    """Pair the numbers of two sources by table, data set, method, variant and metric.

    same: names of methods in the first source that have another in the second. A unit that is not sure follows from
    the numbers of the other source. UserError where no number has a counterpart.
    """
    selector = _selector(second.path, config)
    _check_names(first, second)
    matches = [match for entry in first.entries if (match := _match(entry, second, same, selector))]
    if not matches:
        raise UserError(
            f"no number of {first.path} has a counterpart in {second.path}: the first has {_overview(first)}, the "
            f"second {_overview(second)}; a method that has two names is told by --same 'NAME IN A=NAME IN B'"
        )
    ratios = [m.first.value / m.second.value for m in matches if m.first.value > 0 and m.second.value > 0]
    ratio = float(np.median(ratios)) if ratios else 1.0
    if any(PERCENT_RATIO[0] < size < PERCENT_RATIO[1] for size in (ratio, 1 / ratio)):
        large, small = (first, second) if ratio > 1 else (second, first)
        for source, misread in ((large, not large.percent), (small, small.percent)):
            if misread and not source.sure:
                mended = source.in_the_other_unit()
                pair = (mended, second) if source is first else (first, mended)
                return match_sources(*pair, same, config)
        reason = (
            f"fraction against percent: the numbers of {large.path.name} are {max(ratio, 1 / ratio):.0f} times those "
            f"of {small.path.name}; state the wrong one's unit with --unit-a or --unit-b"
        )
        matches = [Match(m.first, m.second, reason) for m in matches]
    used = {id(m.first) for m in matches}, {id(m.second) for m in matches}
    return Matching(first, second, tuple(matches), _unused(first, used[0]), _unused(second, used[1]))


def _match(entry: Entry, second: Source, same: Mapping[str, str], selector: Selector) -> Match | None:
    found = [
        other
        for other in second.entries
        if other.of.metric == entry.of.metric and _known_alike(entry.of.dataset, other.of.dataset)
    ]
    wanted = selector(entry)
    if wanted is not None:
        found = [other for other in found if _has(other, wanted)]
    else:
        found = _of_the_method(entry, found, same)
    if not found:
        return None
    details = dict(entry.of.details)
    for fits in (
        lambda other: _known_alike(entry.of.protocol, other.of.protocol),
        lambda other: not (entry.hashes and other.hashes) or entry.hashes == other.hashes,
        lambda other: bool(other.of.table) and entry.of.table == other.of.table,
        lambda other: all(details.get(key, value) == value for key, value in other.of.details),
        lambda other: same_name(entry.of.label, other.of.label),
    ):
        found = [other for other in found if fits(other)] or found
    if len(found) > 1:
        said = "; ".join(_distinction(other) for other in found[:4])
        return Match(
            entry, found[0], f"{len(found)} rows of {second.path.name} fit ({said}): choose one with --where-b"
        )
    return Match(entry, found[0], _refusal(entry, found[0]))


def _of_the_method(entry: Entry, others: Sequence[Entry], same: Mapping[str, str]) -> list[Entry]:
    """Of this project's results, those of the same method and variant; of others, those that are called the same.

    A label goes before the name of a method's file: our `hstu` is labelled "HSTU (with bias)", and is not what the
    paper calls HSTU.
    """
    renamed = next((new for old, new in same.items() if same_name(old, entry.name) or old == entry.of.method), None)
    if renamed is not None:
        return [other for other in others if same_name(renamed, other.name) or renamed == other.of.method]
    ours = [o for o in others if entry.of.method and (o.of.method, o.of.variant) == (entry.of.method, entry.of.variant)]
    foreign = [o for o in others if not (o.of.method and entry.of.method)]
    named = [o for o in foreign if _names(o) and _names(entry) and same_name(o.name, entry.name)]
    return ours or named or [o for o in foreign if not _names(o) or not _names(entry)]


def _names(entry: Entry) -> list[str]:
    """What it may be called: its label, or where it has none, method and variant."""
    method = " ".join(filter(None, (entry.of.method, entry.of.variant)))
    return [entry.of.label or method] if entry.of.label or method else []


def _known_alike(one: str, other: str) -> bool:
    return not one or not other or same_name(one, other)


def _has(entry: Entry, wanted: Mapping[str, str]) -> bool:
    stated = {"dataset": entry.of.dataset, "method": entry.of.label, **dict(entry.of.details)}
    return all(key not in stated or stated[key] == value for key, value in wanted.items())


def _distinction(entry: Entry) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.of.details) or entry.values[0].where


def _refusal(first: Entry, second: Entry) -> str:
    if problem := first.problem or second.problem:
        return problem
    if not _known_alike(first.of.protocol, second.of.protocol):
        return f"other protocol: {first.of.protocol} against {second.of.protocol}"
    for entry in (first, second):
        if len(entry.hashes) > 1:
            return (
                f"the seeds of {entry.name} are of different splits: {', '.join(h[:12] for h in sorted(entry.hashes))}"
            )
    if first.hashes and second.hashes and first.hashes != second.hashes:
        return f"other split: {min(first.hashes)[:12]} against {min(second.hashes)[:12]}"
    return ""


def _check_names(first: Source, second: Source) -> None:
    """A source that does not say which method (data set) it is of can be compared with one method's numbers only."""
    for one, other, option in ((first, second, "a"), (second, first, "b")):
        unnamed = any(not _names(entry) for entry in one.entries)
        methods = sorted({entry.name for entry in other.entries})
        if unnamed and len(methods) > 1:
            raise UserError(
                f"{one.path} does not say which method its numbers are of, and {other.path} has {', '.join(methods)}: "
                f"add --where-{option} label=NAME"
            )
        datasets = sorted({entry.of.dataset for entry in other.entries})
        if len(datasets) > 1 and any(not entry.of.dataset for entry in one.entries):
            raise UserError(
                f"{one.path} does not say which data set its numbers are of, and {other.path} has "
                f"{', '.join(datasets)}: add --where-{option} dataset=NAME"
            )


def _overview(source: Source) -> str:
    seen = dict.fromkeys(f"{entry.name} on {entry.of.dataset or 'an unnamed data set'}" for entry in source.entries)
    listed = list(seen)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _unused(source: Source, used: set[int]) -> tuple[str, ...]:
    """Methods of which no number has a counterpart."""
    seen: dict[str, bool] = {}
    for entry in source.entries:
        name = f"{entry.name} on {entry.of.dataset}" if entry.of.dataset else entry.name
        seen[name] = seen.get(name, False) or id(entry) in used
    return tuple(name for name, matched in seen.items() if not matched)


def _selector(path: Path, config: Path) -> Selector:
    """Which row of a published table a row of ours refers to, where its table (config/tables) says so."""
    configuration = Configuration(config)

    def rows(entry: Entry) -> list[Row]:
        if not (config / "tables" / f"{entry.of.table}.yaml").is_file():
            return []
        table = configuration.table(entry.of.table)
        if table.published is None or Path(table.published).name != path.name:
            return []
        found = [
            row
            for blocks in table.presets.values()
            for block in blocks
            if block.dataset == entry.of.dataset
            for row in block.rows
            if row.method == entry.of.method and row.variant == entry.of.variant
        ]
        return [row for row in found if (row.label or "") == entry.of.label] or found

    def wanted(entry: Entry) -> Mapping[str, str] | None:
        stated = {id(row.published): row.published for row in rows(entry) if row.published}
        return next(iter(stated.values())) if len(stated) == 1 else None

    return wanted
