"""What is compared: the numbers of a run's folder, of a folder of runs, or of a file in any format, as entries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from benchmark.analysis.compare_formats import FileRow, Unit, read_format, read_rows, recognised
from benchmark.analysis.runs import LoadedRun, load_run, settings_but_seed
from benchmark.errors import UserError
from benchmark.evaluation.metrics import read_metrics
from benchmark.experiments import Configuration
from benchmark.settings import read_yaml

DETAILS = ("negatives", "global_batch", "sequence_length", "parameters")  # fields that tell rows of a method apart
NAMES = ("table", "dataset", "protocol", "method", "label", "variant")


@dataclass(frozen=True)
class Measured:
    """One run's number. low, high: its 95 % interval over users, NaN if unknown. run: its folder, if that is there."""

    value: float
    seed: str
    low: float = math.nan
    high: float = math.nan
    dataset_hash: str = ""
    run: Path | None = None
    where: str = ""


@dataclass(frozen=True)
class Identity:
    """Which number it is; what the source does not state is empty. details: what else tells it from others.

    method: the name of a file in config/methods; label: what people call it.
    """

    metric: str
    table: str = ""
    dataset: str = ""
    protocol: str = ""
    method: str = ""
    label: str = ""
    variant: str = ""
    details: tuple[tuple[str, str], ...] = ()

    def named(self, field: str, name: str) -> Identity:
        """The same with a name filled in."""
        changes: dict[str, Any] = {field: name}
        return replace(self, **changes)


@dataclass(frozen=True)
class Entry:
    """A number of a source, with a value a seed.

    rounding: half a unit of its last printed digit. problem: why it cannot be compared, whatever with.
    """

    of: Identity
    values: tuple[Measured, ...]
    rounding: float = 0.0
    problem: str = ""

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return math.fsum(one.value for one in self.values) / len(self.values)

    @property
    def name(self) -> str:
        return self.of.label or " ".join(filter(None, (self.of.method, self.of.variant))) or "(unnamed)"

    @property
    def settings(self) -> tuple[str, ...]:
        """What tells it from others of this project's that are called the same."""
        return tuple(f"{key}={value}" for key, value in self.of.details if self.of.method and key not in DETAILS)

    @property
    def hashes(self) -> set[str]:
        return {one.dataset_hash for one in self.values} - {""}

    def scaled(self, factor: float) -> Entry:
        """The same number in another unit."""
        values = tuple(
            replace(one, value=one.value * factor, low=one.low * factor, high=one.high * factor) for one in self.values
        )
        return replace(self, values=values, rounding=self.rounding * factor)


@dataclass(frozen=True)
class Source:
    """path: as the user names it. notes: what was found out about it. sure: its unit is stated and fits its numbers."""

    path: Path
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    sure: bool = True
    percent: bool = False

    def in_the_other_unit(self) -> Source:
        """Read as percent what was read as fractions, or the reverse, with a note."""
        other = "fractions" if self.percent else "percent"
        entries = tuple(entry.scaled(100 if self.percent else 0.01) for entry in self.entries)
        note = f"{self.path.name} is recognised as in {other} by the numbers that it is compared with"
        return Source(self.path, entries, (note,), percent=not self.percent)


class RunFolders:
    """Runs' folders, each read once."""

    def __init__(self) -> None:
        self._loaded: dict[Path, LoadedRun] = {}

    def load(self, folder: Path) -> LoadedRun:
        key = folder.resolve()
        if key not in self._loaded:
            self._loaded[key] = load_run(folder)
        return self._loaded[key]


def read_source(
    path: Path,
    runs: RunFolders,
    config: Path,
    *,
    layout: str | None = None,
    unit: Unit | None = None,
    where: Mapping[str, str] | None = None,
) -> Source:
    """Read a source.

    layout: the format's name or file; None recognises it. unit: instead of the format's. where: details that its
    numbers must have, and names, which they are taken to have where the file itself (not its format) states none.
    """
    source = _folder(path, runs) if path.is_dir() else _file(path, config, layout, unit, where or {})
    kept = list(source.entries)
    for key, value in (where or {}).items():
        if key in NAMES:
            said = [(entry, str(getattr(entry.of, key))) for entry in kept]
            kept = [
                entry if stated else replace(entry, of=entry.of.named(key, value))
                for entry, stated in said
                if not stated or same_name(stated, value)
            ]
        else:
            kept = [entry for entry in kept if same_name(dict(entry.of.details).get(key, ""), value)]
    if not kept:
        asked = ", ".join(f"{key}={value}" for key, value in (where or {}).items())
        raise UserError(f"{path} has no number with {asked}")
    return replace(source, entries=tuple(kept))


def same_name(first: str, second: str) -> bool:
    """Whether two names are the same but for capitals, spaces and punctuation: ML-1M and ml_1m."""
    return plain_name(first) == plain_name(second)


def plain_name(name: str) -> str:
    return re.sub(r"[^0-9a-z+]+", "", name.casefold()) or name


def _folder(path: Path, runs: RunFolders) -> Source:
    """A run's folder, or a folder that has finished runs in it, or in its folder `runs`."""
    inside = path / "runs" if (path / "runs").is_dir() else path
    folders = [path] if (path / "run.yaml").is_file() else sorted(p.parent for p in inside.glob("*/ranks.parquet"))
    if not folders:
        raise UserError(f"{path} is no finished run and has none; name a run's folder, a folder of runs, or a file")
    named: dict[Identity, list[Path]] = {}
    for folder in folders:
        run = runs.load(folder)
        of = Identity("", "", run.dataset, run.protocol, run.method, run.label, run.variant)
        named.setdefault(of, []).append(folder)
    grouped: dict[Identity, list[Measured]] = {}
    for of, members in named.items():
        alike = [one for one in named if (one.dataset, one.label) == (of.dataset, of.label)]
        names = tuple((key, getattr(of, key)) for key in NAMES if len({getattr(one, key) for one in alike}) > 1)
        for folder, differing in zip(members, _differing(members), strict=True):
            run = runs.load(folder)
            stated = (run.negatives, run.global_batch, run.sequence_length, run.parameters)
            details = tuple((name, str(value)) for name, value in zip(DETAILS, stated, strict=True) if value)
            for metric, value in read_metrics(folder / "metrics.csv")[0].items():
                own = replace(of, metric=metric, details=(*details, *names, *differing))
                one = Measured(value, str(run.seed), dataset_hash=run.dataset_hash, run=folder, where=str(folder))
                grouped.setdefault(own, []).append(one)
    return Source(path, tuple(_entry(of, values) for of, values in grouped.items()))


def _differing(folders: Sequence[Path]) -> list[tuple[tuple[str, str], ...]]:
    """Of each run the settings, by their paths, that are not alike in all of them; those of seeds are."""
    flat = [dict(_flat(settings_but_seed(folder, [folder.parent]))) for folder in folders]
    paths = dict.fromkeys(path for settings in flat for path in settings)
    apart = [path for path in paths if len({settings.get(path) for settings in flat}) > 1]
    return [tuple((path, settings.get(path, "none")) for path in apart) for settings in flat]


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", "none" if value is None else str(value)


def _file(path: Path, config: Path, layout: str | None, unit: Unit | None, where: Mapping[str, str]) -> Source:
    name = layout or recognised(path)
    chosen = read_format(name, path, config / "formats")
    known = {field: value for field, value in chosen.constants.items() if field not in where}
    chosen = chosen.model_copy(update={"constants": known})
    rows = read_rows(path, chosen)
    unit = unit or chosen.unit
    written = {
        (row.where, metric): _number(text, metric, row.where) for row in rows for metric, text in row.numbers.items()
    }
    percent, sure, note = _percent(path, unit, written)
    digits = _digits(rows) if name != "results" else {}
    label_of = _Labels(path, config)
    grouped: dict[Identity, list[Measured]] = {}
    about: dict[Identity, tuple[float, str]] = {}
    for row in rows:
        fields = row.fields
        details = {**{key: fields[key] for key in DETAILS if fields.get(key, "0") != "0"}, **row.details}
        table, dataset, method, variant = (fields.get(key, "") for key in ("table", "dataset", "method", "variant"))
        label = fields.get("label", "") or label_of(fields)
        protocol = fields.get("protocol", "") or _protocol_of(fields)
        run = path.parent / "runs" / fields["run_id"] if fields.get("run_id") else None
        for metric, text in row.numbers.items():
            of = Identity(metric, table, dataset, protocol, method, label, variant, tuple(details.items()))
            low, high = (
                _number(fields.get(bound) or "nan", bound, row.where) * (0.01 if percent else 1)
                for bound in ("ci_low", "ci_high")
            )
            value = float(Decimal(text.strip()).scaleb(-2)) if percent else written[row.where, metric]
            one = Measured(
                value, fields.get("seed", ""), low, high, fields.get("dataset_hash", ""),
                run if run and (run / "ranks.parquet").is_file() else None, row.where,
            )  # fmt: skip
            grouped.setdefault(of, []).append(one)
            places = digits.get((dataset, metric))
            problem = ""
            if unit != "count" and value > 1:
                problem = f"fraction against percent: {row.where} has {value:g} among fractions"
            about.setdefault(of, (0.0 if places is None else 0.5 * 10.0 ** -(places + 2 * percent), problem))
    entries = tuple(_entry(of, values, *about[of]) for of, values in grouped.items())
    return Source(path, entries, (note,) if note else (), sure, percent)


def _entry(of: Identity, values: Sequence[Measured], rounding: float = 0.0, problem: str = "") -> Entry:
    entry = Entry(of, tuple(values), rounding, problem)
    seeds: dict[str, str] = {}
    for one in values:
        if one.seed in seeds:
            raise UserError(
                f"{seeds[one.seed]} and {one.where} are both {entry.name}, {of.metric}, seed {one.seed or '(none)'}; "
                "leave one out, or name a column that tells them apart in the details of a format"
            )
        seeds[one.seed] = one.where
    return entry


def _number(text: str, what: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{where}: {what} is {text!r}, and must be a number") from error


def _digits(rows: Sequence[FileRow]) -> dict[tuple[str, str], int]:
    """Digits after the point by data set and metric, as the most precise number has them: 17.2 by 16.03 is 17.20."""
    digits: dict[tuple[str, str], int] = {}
    for row in rows:
        for metric, text in row.numbers.items():
            try:
                exponent = Decimal(text.strip()).as_tuple().exponent
            except InvalidOperation:
                continue
            key = (row.fields.get("dataset", ""), metric)
            digits[key] = max(digits.get(key, 0), -exponent if isinstance(exponent, int) else 0)
    return digits


def _percent(path: Path, unit: Unit, written: Mapping[tuple[str, str], float]) -> tuple[bool, bool, str]:
    """Whether the numbers are percentages, whether that is sure, and what to say of it."""
    if unit == "count":
        return False, True, ""
    for (where, metric), value in written.items():
        if not 0 <= value <= 100:
            raise UserError(f"{where}: {metric} is {value:g}, which is neither a fraction nor a percentage")
    above, count = sum(value > 1 for value in written.values()), len(written)
    if unit == "percent":
        return True, above > 0, f"{path.name} is in percent"
    if unit == "fraction" and 2 * above < count:
        return False, True, ""
    if above:
        stated = "should be in fractions and is in percent" if unit == "fraction" else "is in percent"
        return True, True, f"{path.name} {stated}: {above} of its {count} numbers are above 1"
    return False, False, f"{path.name} does not state its unit; no number is above 1: read as fractions"


def _protocol_of(fields: Mapping[str, str]) -> str:
    """The protocol in a run's id, `<data set>-<protocol>-<method>-seed...`."""
    start, run_id = f"{fields.get('dataset', '')}-", fields.get("run_id", "")
    middle, found, _ = run_id.removeprefix(start).partition(f"-{fields.get('method', '')}-seed")
    return middle if found and run_id.startswith(start) else ""


class _Labels:
    """What people call the methods of a result CSV: as its runs say, else its table's file, else the method's."""

    def __init__(self, path: Path, config: Path) -> None:
        self._runs, self._folder, self._configuration = path.parent / "runs", config, Configuration(config)
        self._known: dict[tuple[str, ...], str] = {}

    def __call__(self, fields: Mapping[str, str]) -> str:
        key = tuple(fields.get(name, "") for name in ("table", "dataset", "method", "variant", "run_id"))
        if key not in self._known:
            self._known[key] = self._find(*key)
        return self._known[key]

    def _find(self, table: str, dataset: str, method: str, variant: str, run_id: str) -> str:
        if run_id and (self._runs / run_id / "run.yaml").is_file():
            return str(read_yaml(self._runs / run_id / "run.yaml").get("label", ""))
        if (self._folder / "tables" / f"{table}.yaml").is_file():
            blocks = [b for each in self._configuration.table(table).presets.values() for b in each]
            rows = [row for b in blocks if b.dataset == dataset for row in b.rows]
            named = {row.label for row in rows if (row.method, row.variant) == (method, variant) and row.label}
            if len(named) == 1:
                return named.pop()
        if method and not variant and (self._folder / "methods" / f"{method}.yaml").is_file():
            return self._configuration.method(method).label
        return ""
