"""How other people's result files are read: a format (config/formats/*.yaml) maps their columns and metrics to ours.

A format says how a file is laid out ("wide": a column a metric; "long": a row a number; "dictionary": RecBole's
result), which of its columns hold what, in which unit its numbers are, and what it does not say itself.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmark.errors import UserError
from benchmark.experiments import merge
from benchmark.settings import Settings, read_yaml, validated

Field = Literal[
    "table", "dataset", "protocol", "method", "label", "variant", "seed", "users", "dataset_hash", "run_id", "ci_low",
    "ci_high", "negatives", "global_batch", "sequence_length", "parameters",
]  # fmt: skip
Unit = Literal["fraction", "percent", "count", "unknown"]
Record = dict[str, str]

ABSENT = ("", "-", "\N{EN DASH}", "\N{EM DASH}", "nan", "n/a")  # how tables say that there is no number
_METRIC = re.compile(r"(recall|r|hr|hit|hits|hit[_ ]?rate|ndcg|n|mrr|auc)(?:[@_ ]?([1-9][0-9]*))?")
_KINDS = {"r": "recall", "hr": "recall", "hit": "recall", "hits": "recall", "hitrate": "recall", "n": "ndcg"}
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_PAIR = re.compile(rf"""["']([\w@.]+)["']\s*[:,]\s*(?:(?:np|numpy)\.float(?:32|64)\(\s*)?({_NUMBER}|nan)""")
_TEXT = re.compile(r"""["'](model|dataset)["']\s*:\s*["']([^"']+)["']""")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")  # colours of a log


class MappedColumn(Settings):
    """column: of the file. values: what its entries stand for; others are a mistake."""

    column: str
    values: dict[str, str]


class Format(Settings):
    """columns: our field -> the file's column. metrics: the file's name -> ours; None recognises what people write.

    unit "unknown" is decided by the numbers. details: columns that tell rows of one method apart; None takes all that
    have no other part and are not to ignore. constants: fields that the file does not have.
    """

    description: str
    layout: Literal["wide", "long", "dictionary"]
    unit: Unit = "unknown"
    delimiter: str = ","
    columns: dict[Field, str | MappedColumn] = {}
    metrics: dict[str, str] | None = None
    details: list[str] | None = None
    ignore: list[str] = []
    constants: dict[Field, str] = {}


class FileRow(Settings):
    """A row of a file: where it stands, its fields and details, and its numbers by metric, as they are written."""

    where: str
    fields: dict[str, str]
    details: dict[str, str]
    numbers: dict[str, str]


def metric_name(text: str) -> str | None:
    """`R@10`, `HR@10`, `Hit_10` or `recall@10` as recall@10, and so on; None for what is no metric.

    With one held-out item a user, as here, hit rate and recall are the same.
    """
    match = _METRIC.fullmatch(text.strip().casefold())
    if match is None:
        return None
    kind = match[1].replace("_", "").replace(" ", "")
    kind, cutoff = _KINDS.get(kind, kind), match[2]
    if cutoff is None:
        return kind if kind in ("mrr", "auc") else None
    return f"{kind}@{cutoff}"


def read_format(name: str, path: Path, folder: Path) -> Format:
    """A format by name (a file of config/formats) or as a YAML file of one's own, for the file path."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    content = read_yaml(file)
    of_files = content.pop("files", {})
    return validated(Format, merge(content, of_files.get(path.stem, {})), str(file))


def recognised(path: Path) -> str:
    """The name of the format that a file without a named one has."""
    if path.suffix.casefold() != ".csv":
        return "recbole"
    if path.parent.name == "published":
        return "published"
    header = [name.strip().strip('"') for name in _text(path).partition("\n")[0].split(",")]
    if {"metric", "value", "run_id", "dataset_hash"} <= set(header):
        return "results"
    if {"metric", "value"} <= set(header):
        return "long"
    if any(metric_name(column) for column in header):
        return "wide"
    raise UserError(
        f"{path}: no column is a metric (its header is {', '.join(header)[:200] or 'empty'}); write a format that maps "
        "its columns, as config/formats/esasrec.yaml does, and name it with --format-a or --format-b"
    )


def read_rows(path: Path, layout: Format) -> list[FileRow]:
    """Every row of a file, by its format; UserError where the two do not fit."""
    if layout.layout == "dictionary":
        return [_dictionary(path, layout)]
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=layout.delimiter, restkey="", restval="")
    header = _header(path, reader)
    used = {field: _column(mapped) for field, mapped in layout.columns.items()}
    own = {"metric", "value"} if layout.layout == "long" else set(_metric_columns(path, header, layout))
    if layout.layout == "long" and not own <= set(header):
        raise UserError(f"{path}: the columns metric and value are missing; it has: {', '.join(header)}")
    free = [name for name in header if name not in own and name not in {*used.values(), *layout.ignore}]
    details = free if layout.details is None else layout.details
    columns = _metric_columns(path, header, layout) if layout.layout == "wide" else {}
    rows = []
    for record in _records(path, reader):
        where = f"{path}, line {reader.line_num}"
        if "" in record:
            raise UserError(f"{where} has more entries than the header has columns")
        if layout.layout == "wide":
            numbers = {metric: record[column] for column, metric in columns.items()}
            numbers = {metric: text for metric, text in numbers.items() if text.strip().casefold() not in ABSENT}
        else:
            known = (layout.metrics or {}).get(record["metric"]) or metric_name(record["metric"])
            numbers = {known or record["metric"]: record["value"]}
        fields = _constants(layout) | _fields(record, layout, where)
        stated = {name: record[name] for name in details if record.get(name)}
        rows.append(FileRow(where=where, fields=fields, details=stated, numbers=numbers))
    if not rows:
        raise UserError(f"{path} has no row")
    return rows


def _column(mapped: str | MappedColumn) -> str:
    return mapped if isinstance(mapped, str) else mapped.column


def _header(path: Path, reader: csv.DictReader[str]) -> list[str]:
    try:
        return list(reader.fieldnames or [])
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}") from error


def _records(path: Path, reader: csv.DictReader[str]) -> Iterator[Record]:
    try:
        yield from reader
    except csv.Error as error:  # a quote that is never closed makes an entry of the rest of the file
        raise UserError(f"{path} is no CSV after line {reader.line_num}: {error}") from error


def _constants(layout: Format) -> Record:
    return {str(field): value for field, value in layout.constants.items()}


def _fields(record: Record, layout: Format, where: str) -> Record:
    fields: Record = {}
    for field, mapped in layout.columns.items():
        entry = record.get(_column(mapped), "").strip()
        if isinstance(mapped, MappedColumn):
            if entry not in mapped.values:
                known = ", ".join(map(repr, mapped.values))
                raise UserError(f"{where}: {mapped.column} is {entry!r}, and the format knows {known}")
            entry = mapped.values[entry]
        if entry:
            fields[field] = entry
    return fields


def _metric_columns(path: Path, header: list[str], layout: Format) -> dict[str, str]:
    if layout.metrics is not None:
        columns = {column: metric for column, metric in layout.metrics.items() if column in header}
    else:
        columns = {column: metric for column in header if (metric := metric_name(column))}
    if not columns:
        raise UserError(f"{path} has none of the format's metrics; its columns are: {', '.join(header)}")
    for metric in columns.values():
        if len(same := [column for column, other in columns.items() if other == metric]) > 1:
            raise UserError(f"{path}: the columns {' and '.join(same)} both mean {metric}; name one in a format")
    return columns


def _dictionary(path: Path, layout: Format) -> FileRow:
    """RecBole's result from JSON, a printed dictionary or a log: pairs after "test_result" or "test result"."""
    text = _ESCAPE.sub("", _text(path))
    starts = [match.end() for match in re.finditer(r"test[_ ]result", text)]
    if len(starts) != 1:
        raise UserError(f"{path} has {len(starts)} test results and must have one; keep the one to compare")
    body = re.match(r"""["']?\s*[:=]\s*(?:OrderedDict)?\(?[\[{](.*?)[\]}]""", text[starts[0] :], re.DOTALL)
    pairs = _PAIR.findall(body[1]) if body else []
    if not pairs:
        raise UserError(f"{path}: no metrics follow its test result; expected pairs such as 'recall@10': 0.1234")
    named = {"model": "label", "dataset": "dataset"}
    fields = _constants(layout) | {named[key]: value for key, value in _TEXT.findall(text)}
    numbers: Record = {}
    for name, number in sorted(pairs, key=lambda pair: not pair[0].casefold().startswith("recall")):
        metric = (layout.metrics or {}).get(name) or metric_name(name) or name
        numbers.setdefault(metric, number)  # hit@10 beside recall@10 says the same
    return FileRow(where=str(path), fields=fields, details={}, numbers=numbers)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder and no file of results") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
