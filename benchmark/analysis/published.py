"""Numbers that papers and repositories published, from results/published/*.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError


@dataclass(frozen=True)
class PublishedRow:
    """metrics: as fractions; digits: as the file writes them, in percent.

    improvement: in percent, as the authors state it. negatives, batch and reported (what of a training the numbers are,
    such as "last epoch"): as the file writes them, empty where it has none.
    """

    metrics: dict[str, float]
    digits: dict[str, str]
    improvement: float | None = None
    negatives: str = ""
    batch: str = ""
    reported: str = ""

    @property
    def decimals(self) -> int:
        """Digits after the point, of the metric that has most."""
        return max((len(text.partition(".")[2]) for text in self.digits.values()), default=0)


def find_published(path: Path, wanted: Mapping[str, str], metrics: Sequence[str]) -> PublishedRow:
    """The one row whose columns hold what is wanted, such as {"dataset": "Books", "negatives": "512"}."""
    rows = _read(path)
    asked = ", ".join(f"{column}={value}" for column, value in wanted.items())
    for column in wanted:
        if column not in rows[0]:
            raise UserError(f"{path} has no column {column!r} for the published numbers; it has: {', '.join(rows[0])}")
    found = [row for row in rows if all(row[column] == value for column, value in wanted.items())]
    if len(found) != 1:
        raise UserError(f"{path} has {len(found)} rows with {asked}; name columns and values that pick out one row")
    digits = {name: found[0][name] for name in metrics if found[0].get(name)}
    where = f"{path}, row with {asked}"
    fractions = {name: _number(f"{text}e-2", name, where) for name, text in digits.items()}  # not / 100: exact
    stated = found[0].get("improvement_percent")
    improvement = _number(stated, "improvement_percent", where) if stated else None
    texts = (found[0].get(column, "") for column in ("negatives", "batch_size", "reported"))
    return PublishedRow(fractions, digits, improvement, *texts)


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {column} is {text.removesuffix('e-2')!r} and must be a number in percent")
    return value


def _read(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), restval="")
        rows = [{key: value for key, value in row.items() if key is not None} for row in reader]
    except FileNotFoundError as error:
        raise UserError(f"{path} with the published numbers does not exist; mend the table's `published`") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} with the published numbers is not UTF-8 text") from error
    if not rows:
        raise UserError(f"{path} with the published numbers has no row")
    return rows
