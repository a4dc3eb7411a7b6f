"""Claims of the paper, each put as a contrast of methods and tested on the users of one data set.

config/claims/<preset>.yaml states a claim, where the paper makes it, and the tests that would show it: a sum of rows'
metrics with weights, such as {HLLM: 1, HLLM from scratch: -1}, which the claim says is above zero. Weights need not be
1: with {cached: 1, end to end: -0.95} the claim is that less than 5 % is lost, and with four rows that one method gains
more than another. Every user contributes the weighted sum of its own values, so that the test is a paired t-test over
users (scipy), corrected by Holm's method over all tests of all claims. Where every row has several seeds, Welch's
t-test of the same sum over seeds stands beside it, and a verdict that it does not bear says so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import stats

from benchmark.analysis import rendering
from benchmark.analysis.runs import LoadedRun, check_comparable
from benchmark.analysis.significance import CONFIDENCE, holm, welch_contrast
from benchmark.analysis.views import MINUS, NONE, Cell, Line, Section, View, metric_title, p_text, signed
from benchmark.errors import UserError
from benchmark.evaluation.metrics import Float64, Metric
from benchmark.files import write_text
from benchmark.settings import Settings, read_yaml, validated

if TYPE_CHECKING:
    from benchmark.experiments import PlannedTable

Rows = dict[tuple[str, str], dict[str, list[LoadedRun]]]  # (table, data set) -> label -> runs, one a seed
Verdict = Literal["confirmed", "confirmed over users", "contradicted", "contradicted over users", "not shown"]
LEVEL = 0.05
UNTESTED = "not testable here"
COLUMNS = (
    "claim", "paper", "table", "dataset", "metric", "contrast", "estimate", "ci_low", "ci_high", "p_value", "p_holm",
    "p_seeds", "users", "seeds", "verdict", "dataset_hash",
)  # fmt: skip
CLAIM_COLUMNS = (
    "Verdict", "Contrast", "Data", "Metric", "Estimate (points)", "95 % interval (points)", "p (Holm)", "p over seeds",
    "Seeds",
)  # fmt: skip


class ClaimTest(Settings):
    """table, dataset: the block whose rows, by label, the contrast weighs; it is above zero if the claim holds."""

    table: str
    dataset: str
    contrast: dict[str, float] = Field(min_length=1)


class Claim(Settings):
    """paper: where it stands there. not_testable: why these data cannot show it; it has then no tests."""

    claim: str
    paper: str
    metric: str = "ndcg@10"
    tests: list[ClaimTest] = []
    not_testable: str | None = None

    @model_validator(mode="after")
    def _tests_or_a_reason(self) -> Claim:
        Metric.parse(self.metric)
        if bool(self.tests) == (self.not_testable is not None):
            raise ValueError("give either tests or not_testable, the reason why there are none")
        return self


class ClaimsFile(Settings):
    claims: list[Claim] = Field(min_length=1)

    @staticmethod
    def read(path: Path) -> ClaimsFile:
        return validated(ClaimsFile, read_yaml(path), str(path))


@dataclass(frozen=True)
class Evidence:
    """estimate: mean of the contrast over users, with its 95 % t interval and p-value against zero, as fractions.

    seeds: the fewest that a row of the contrast has. p_seeds: of Welch's test over seeds, NaN where a row has a single
    one. p_holm: corrected over all tests of all claims.
    """

    claim: Claim
    test: ClaimTest
    estimate: float
    low: float
    high: float
    p_value: float
    p_seeds: float
    users: int
    seeds: int
    dataset_hash: str
    p_holm: float = np.nan

    @property
    def verdict(self) -> Verdict:
        if self.p_holm >= LEVEL:
            return "not shown"
        if self.p_seeds < LEVEL:  # not so where there is none
            return "confirmed" if self.estimate > 0 else "contradicted"
        return "confirmed over users" if self.estimate > 0 else "contradicted over users"


def weigh(claim: Claim, test: ClaimTest, rows: Mapping[str, Sequence[LoadedRun]]) -> Evidence:
    """rows: label -> its runs, one a seed; a user's value under a row is its mean over the seeds."""
    for label in test.contrast:
        if label not in rows:
            raise UserError(f"claim {claim.claim!r}: table {test.table} has no row {label!r} on {test.dataset}; "
                            f"it has: {', '.join(rows)}")  # fmt: skip
    used = [run for label in test.contrast for run in rows[label]]
    check_comparable(used)
    metric = Metric.parse(claim.metric)
    weights = list(test.contrast.values())
    by_row = [np.array([metric.values(run.ranks) for run in rows[label]]) for label in test.contrast]  # (seeds, users)
    values: Float64 = np.sum([weight * one.mean(0) for weight, one in zip(weights, by_row, strict=True)], axis=0)
    seeds = min(len(one) for one in by_row)
    p_seeds = welch_contrast([one.mean(1) for one in by_row], weights)[2] if seeds > 1 else np.nan
    dataset_hash = used[0].dataset_hash
    if not values.any():  # no user differs, of which scipy's test makes NaN
        return Evidence(claim, test, 0.0, 0.0, 0.0, 1.0, p_seeds, len(values), seeds, dataset_hash)
    found = stats.ttest_1samp(values, 0.0)
    interval = found.confidence_interval(CONFIDENCE)
    return Evidence(
        claim, test, float(values.mean()), float(interval.low), float(interval.high), float(found.pvalue), p_seeds,
        len(values), seeds, dataset_hash,
    )  # fmt: skip


def corrected(results: Sequence[Evidence]) -> list[Evidence]:
    """The results with Holm's correction over all of them."""
    adjusted = holm(np.array([result.p_value for result in results]))
    return [replace(result, p_holm=float(p)) for result, p in zip(results, adjusted, strict=True)]


def evaluate_claims(claims: Sequence[Claim], rows: Rows) -> list[Evidence]:
    """Every test of every claim, with p-values corrected over all of them."""
    results = []
    for claim in claims:
        for test in claim.tests:
            if (test.table, test.dataset) not in rows:
                raise UserError(f"claim {claim.claim!r}: table {test.table} has no block on data set {test.dataset}")
            results.append(weigh(claim, test, rows[test.table, test.dataset]))
    return corrected(results)


def overall(verdicts: Sequence[str]) -> str:
    """A claim's verdict: what all its tests say, the weakest of them if they agree, or how many confirm it."""
    for sign in ("confirmed", "contradicted"):
        if all(verdict.startswith(sign) for verdict in verdicts):
            return max(verdicts, key=len)  # the one that holds over users alone
    confirmed = sum(verdict.startswith("confirmed") for verdict in verdicts)
    return f"not confirmed: {confirmed} of {len(verdicts)} tests" if confirmed else "not confirmed"


def write_claims(claims: Sequence[Claim], results: Sequence[Evidence], folder: Path) -> str:
    """Write claims.csv, .md and .html into folder, and return the text for a terminal."""
    view = _view(claims, results)
    write_text(folder / "claims.csv", _csv(claims, results))
    write_text(folder / "claims.md", rendering.markdown([view]))
    write_text(folder / "claims.html", rendering.html([view]))
    return rendering.text([view])


def runs_of(plan: PlannedTable, load: Mapping[str, LoadedRun]) -> Rows:
    """The rows of a planned table; load: run id -> run. UserError where a data set has two blocks in it."""
    datasets = [planned.block.dataset for planned in plan.blocks]
    if repeated := sorted({name for name in datasets if datasets.count(name) > 1}):
        raise UserError(f"claims cannot name the rows of table {plan.name}: it has two blocks on {repeated[0]}")
    return {
        (plan.name, planned.block.dataset): {row.label: [load[run.id] for run in row.runs] for row in planned.rows}
        for planned in plan.blocks
    }


def _view(claims: Sequence[Claim], results: Sequence[Evidence]) -> View:
    sections = []
    for claim in claims:
        own = [result for result in results if result.claim == claim]
        lines = [untested_line(claim.not_testable)] if claim.not_testable else [_line(result) for result in own]
        sections.append(claim_section(claim.claim, claim.paper, lines, [result.verdict for result in own]))
    return claims_view(sections, len(results))


def claims_view(sections: Sequence[Section], tests: int) -> View:
    """The page of claims. tests: how many Holm's correction is over."""
    notes = (
        "A claim holds if its contrast, a weighted sum of methods' metrics, is above zero. Estimates and intervals are "
        "in points of the metric in percent.",
        f"Confirmed, contradicted: above, below zero with p < {LEVEL}, over users and over seeds. Over users: by the "
        "test over users alone, which does not cover how training varies with the seed; a difference as small as "
        "that variation is no evidence. Not shown: neither.",
        f"p: paired t-test over users, Holm's correction over all {tests} tests of this page; interval: 95 %, "
        "Student's t, each for itself. p over seeds: Welch's t-test of the same contrast, for itself, where every row "
        "has two seeds or more; with three it seldom finds small differences.",
    )
    return View("claims", "Claims of the paper", CLAIM_COLUMNS, tuple(sections), notes, text_columns=4)


def claim_section(claim: str, paper: str, lines: Sequence[Line], verdicts: Sequence[str]) -> Section:
    """A claim with its lines. verdicts: of its tests, none where it cannot be tested."""
    return Section(f"{claim} (paper, {paper}): {overall(verdicts) if verdicts else UNTESTED}", tuple(lines))


def untested_line(reason: str) -> Line:
    """The line of a claim that these data cannot show."""
    return Line((Cell(UNTESTED), Cell(reason), *(Cell(NONE) for _ in CLAIM_COLUMNS[2:])))


def _line(result: Evidence) -> Line:
    return claim_line(
        (result.verdict, contrast_text(result.test.contrast), result.test.dataset, result.claim.metric),
        (result.estimate, result.low, result.high), (result.p_holm, result.p_seeds), result.seeds,
    )  # fmt: skip


def claim_line(
    names: tuple[str, str, str, str], estimate: tuple[float, float, float], p_values: tuple[float, float], seeds: int
) -> Line:
    """A line under CLAIM_COLUMNS. names: verdict, contrast, data set, metric. estimate: with its bounds, fractions.
    p_values: by Holm's method over users, and over seeds, NaN where there are too few."""
    verdict, contrast, dataset, metric = names
    value, low, high = (signed(100 * number, 2) for number in estimate)
    p_holm, p_seeds = (NONE if np.isnan(p) else p_text(p) for p in p_values)
    texts = (verdict, contrast, dataset, metric_title(metric), value, f"{low} to {high}", p_holm, p_seeds, str(seeds))
    return Line(tuple(map(Cell, texts)))


def contrast_text(contrast: Mapping[str, float]) -> str:
    """{"A": 1, "B": -0.95} -> "A − 0.95 B"."""
    parts: list[str] = []
    for label, weight in contrast.items():
        sign = MINUS if weight < 0 else "+" if parts else ""
        parts.append(f"{sign} {'' if abs(weight) == 1 else f'{abs(weight):g} '}{label}".strip())
    return " ".join(parts)


def _csv(claims: Sequence[Claim], results: Sequence[Evidence]) -> str:
    """A line a test; a claim without any has one, with the reason instead of a contrast."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims:
        if claim.not_testable:
            known = {"claim": claim.claim, "paper": claim.paper, "metric": claim.metric, "verdict": UNTESTED}
            writer.writerow([known.get(name, claim.not_testable if name == "contrast" else "") for name in COLUMNS])
        for result in (result for result in results if result.claim == claim):
            numbers = (result.estimate, result.low, result.high, result.p_value, result.p_holm, result.p_seeds)
            writer.writerow([
                claim.claim, claim.paper, result.test.table, result.test.dataset, claim.metric,
                contrast_text(result.test.contrast), *("" if np.isnan(n) else f"{n:.12g}" for n in numbers),
                result.users, result.seeds, result.verdict, result.dataset_hash,
            ])  # fmt: skip
    return text.getvalue()
