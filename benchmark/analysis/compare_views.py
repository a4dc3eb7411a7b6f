"""What a comparison shows: the answer, the verdicts by method, and every number; and its CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmark.analysis import rendering
from benchmark.analysis.compare import WITHIN, Compared, Verdict
from benchmark.analysis.compare_matching import Matching
from benchmark.analysis.compare_sources import Entry
from benchmark.analysis.views import NONE, Cell, Line, Section, View, metric_title, p_text, signed
from benchmark.errors import UserError
from benchmark.files import write_text

COLUMNS = (
    "quantity", "table", "dataset", "protocol", "method", "label", "variant", "settings", "metric", "counterpart",
    "value", "counterpart_value", "difference", "relative_difference", "ci_low", "ci_high", "interval_from", "seeds",
    "counterpart_seeds", "test", "p_value", "p_holm", "verdict", "reason", "dataset_hash", "counterpart_dataset_hash",
)  # fmt: skip

DETAILS_BELOW = "What the columns say stands below the table of every number."
NUMBER_COLUMNS = (
    "Metric", "Verdict", "A", "B", "Difference", "Relative", "95 % interval", "Interval over", "p (Holm)", "Test",
)  # fmt: skip


def answer(results: Sequence[Compared]) -> str:
    """Whether the numbers hold, in one sentence."""
    counts = Counter(result.verdict for result in results)
    judged = len(results) - counts[Verdict.REFUSED]
    refused = f"; {counts[Verdict.REFUSED]} cannot be compared" if counts[Verdict.REFUSED] else ""
    if not judged:
        return "it cannot be told: no number can be compared"
    noise = f", {counts[Verdict.NOISE]} of them only within the authors' noise" if counts[Verdict.NOISE] else ""
    if not counts[Verdict.DEVIATES]:
        reach = _reach(results)
        limit = f" within intervals of \N{PLUS-MINUS SIGN} {reach}" if reach else ""
        return f"yes: {_all(judged)} reproduced{limit}{noise}{refused}"
    verb = "deviates" if counts[Verdict.DEVIATES] == 1 else "deviate"
    held = judged - counts[Verdict.DEVIATES]
    return f"no: {counts[Verdict.DEVIATES]} of {judged} numbers {verb}, {held} are reproduced{noise}{refused}"


def exit_status(results: Sequence[Compared]) -> int:
    """0 where every number is reproduced, 3 where one deviates, 4 where none does and some cannot be compared."""
    verdicts = {result.verdict for result in results}
    return 3 if Verdict.DEVIATES in verdicts else 4 if Verdict.REFUSED in verdicts else 0


def write_comparison(
    matching: Matching, results: Sequence[Compared], gains: Sequence[Compared], reference: str, out: Path, noise: float
) -> str:
    """Write <out>.csv, .md and .html, and return the text for a terminal."""
    shown = [_summary(matching, results)]
    deviating = [result for result in results if result.verdict == Verdict.DEVIATES]
    if 0 < len(deviating) < len(results):
        shown.append(_numbers_view("comparison-deviating", "What deviates", deviating, (DETAILS_BELOW,)))
    shown.append(_numbers(results, noise))
    if gains:
        shown.append(_gains(gains, reference))
    write_text(out.with_name(f"{out.name}.csv"), comparison_csv([*results, *gains]))
    write_text(out.with_name(f"{out.name}.md"), rendering.markdown(shown))
    write_text(out.with_name(f"{out.name}.html"), rendering.html(shown))
    return rendering.text(shown)


def comparison_csv(results: Sequence[Compared]) -> str:
    """A row a number, in fractions. quantity: "metric", or "gain" over the reference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        of, other = result.first.of, result.second
        cells = (
            "gain" if result.gain else "metric", of.table, of.dataset, of.protocol, of.method, of.label, of.variant,
            ", ".join(result.first.settings), of.metric, _counterpart(other), result.value, result.reference,
            result.difference, result.relative, result.low, result.high, result.basis, len(result.first.values),
            len(other.values), result.test, result.p_value, result.p_holm, result.verdict, result.reason,
            " ".join(sorted(result.first.hashes)), " ".join(sorted(other.hashes)),
        )  # fmt: skip
        writer.writerow("" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells)
    return text.getvalue()


def _summary(matching: Matching, results: Sequence[Compared]) -> View:
    first, second = matching.first.path, matching.second.path
    lines = []
    short = Counter(_title(members[0]).partition(" (B: ")[0] for members in _by_method(results))
    for members in _by_method(results):
        title = _title(members[0])
        counts = Counter(result.verdict for result in members)
        judged = [result for result in members if result.verdict != Verdict.REFUSED and math.isfinite(result.relative)]
        largest = max(judged, key=lambda result: abs(result.relative), default=None)
        texts = (
            name if short[name := title.partition(" (B: ")[0]] == 1 else title,
            answer(members).partition(":")[0].removeprefix("it "),
            *(str(counts[verdict]) for verdict in Verdict),
            f"{signed(100 * largest.relative, 2)} % ({_metric(largest)})"
            if largest and abs(largest.relative) > 1e-9
            else NONE,
            f"\N{PLUS-MINUS SIGN} {reach}" if (reach := _reach(members)) else NONE,
        )
        lines.append(Line(tuple(Cell(text) for text in texts)))
    columns = (
        "Method", "Holds?", "Reproduced", "Within noise", "Deviates", "Not comparable", "Largest difference",
        "Intervals",
    )  # fmt: skip
    notes = (
        f"A: {first}. B: {second}.",
        *(f"{note}." for note in (*matching.first.notes, *matching.second.notes)),
        *_reasons(results),
        *_other_settings(results),
        _only("A", matching.only_first),
        _only("B", matching.only_second),
    )
    title = f"Does A reproduce B? {answer(results).capitalize()}"
    return View("comparison", title, columns, (Section("Numbers by verdict", tuple(lines)),), notes, text_columns=2)


def _numbers_view(name: str, title: str, results: Sequence[Compared], notes: Sequence[str]) -> View:
    """A line a number; the columns of tests only where there is a test."""
    columns = NUMBER_COLUMNS if any(result.test != "none" for result in results) else NUMBER_COLUMNS[:-2]
    sections = tuple(
        Section(_title(members[0]), tuple(Line(_line(result).cells[: len(columns)]) for result in members))
        for members in _by_method(results)
    )
    return View(name, title, columns, sections, tuple(notes), text_columns=2)


def _numbers(results: Sequence[Compared], noise: float) -> View:
    tests = sum(math.isfinite(result.p_value) for result in results)
    notes = [
        "Percentages; differences A - B in points, and relative to B. Intervals are of the difference; where users and "
        "seeds both give one, the wider. Rounding of printed numbers is added.",
        f"Reproduced: the interval holds 0, or the numbers are equal as printed. Within noise: not so, but within "
        f"{100 * noise:g} % of B, as far as the paper's own tables differ for one model. Deviates: neither.",
    ]
    if tests:
        notes.append(f"p: two-sided, Holm's correction over the {tests} tests here; a verdict does not depend on it.")
    if untested := len(results) - tests - sum(result.verdict == Verdict.REFUSED for result in results):
        notes.append(
            f"{untested} numbers have no test: it needs ranks of the same users, or several seeds, on both sides."
        )
    if any(len(entry.values) == 1 for result in results for entry in (result.first, result.second)):
        notes.append("A single seed's interval covers the choice of users and not how a method varies with seeds.")
    return _numbers_view("comparison-numbers", "Every number", results, notes)


def _gains(gains: Sequence[Compared], reference: str) -> View:
    columns = ("Metric", "Verdict", "A", "B", "Difference", "95 % interval", "Interval over")
    sections = []
    for members in _by_method(gains):
        lines = []
        for result in members:
            texts = (
                _metric(result), str(result.verdict), f"{signed(100 * result.value, 2)} %",
                f"{signed(100 * result.reference, 2)} %", signed(100 * result.difference, 2),
                _interval(result, 2), result.basis,
            )  # fmt: skip
            lines.append(Line(tuple(Cell(text) for text in texts)))
        sections.append(Section(_title(members[0]), tuple(lines)))
    notes = (
        f"Gain: relative difference from {reference}, in percent; differences of gains in points. Intervals are of A's "
        "and B's ranks where there are any, as of independent gains.",
    )
    title = f"Do the gains over {reference} hold? {answer(gains).capitalize()}"
    return View("comparison-gains", title, columns, tuple(sections), notes, text_columns=2)


def _line(result: Compared) -> Line:
    decimals = 3 if 0 < result.second.rounding < 4e-5 or 0 < result.first.rounding < 4e-5 else 2
    scale, places = (1, 0) if max(result.value, result.reference) > 1 else (100, decimals)
    verdict = f"{result.verdict} ({result.reason})" if result.reason.startswith("equal") else str(result.verdict)
    texts = (
        _metric(result), verdict, f"{scale * result.value:,.{places}f}", f"{scale * result.reference:,.{places}f}",
        signed(scale * result.difference, places),
        NONE if math.isnan(result.relative) else f"{signed(100 * result.relative, 2)} %",
        _interval(result, places), NONE if result.basis == "none" else result.basis,
        NONE if math.isnan(result.p_holm) else p_text(result.p_holm), NONE if result.test == "none" else result.test,
    )  # fmt: skip
    return Line(tuple(Cell(text) for text in texts))


def _interval(result: Compared, places: int) -> str:
    if not math.isfinite(result.low + result.high):
        return NONE
    return f"{signed(100 * result.low, places)} to {signed(100 * result.high, places)}"


def _reach(results: Sequence[Compared]) -> str:
    """How far the intervals reach that numbers were judged by, relative to B: what is less would not have shown."""
    halves = [
        (result.high - result.low) / 2 / result.reference
        for result in results
        if result.reason == WITHIN and not result.gain and 0 < result.reference <= 1
    ]
    if not halves:
        return ""
    least, most = f"{100 * min(halves):.1f}", f"{100 * max(halves):.1f}"
    return f"{least} %" if least == most else f"{least} to {most} %"


def _reasons(results: Sequence[Compared]) -> list[str]:
    """Why numbers cannot be compared, or contradict themselves: a sentence a reason."""
    grouped: dict[tuple[str, str], list[Compared]] = {}
    for result in results:
        if result.verdict == Verdict.REFUSED or result.contradicted:
            grouped.setdefault((str(result.verdict), result.reason), []).append(result)
    metrics = Counter(_title(result) for result in results)
    sentences = []
    for (verdict, reason), members in grouped.items():
        named = [
            title if len(of) == metrics[title] else f"{title} ({', '.join(map(_metric, of))})"
            for of in _by_method(members)
            for title in [_title(of[0])]
        ]
        sentences.append(f"{verdict.capitalize()}: {', '.join(named)}: {reason}.")
    return sentences


def _other_settings(results: Sequence[Compared]) -> list[str]:
    """Settings that both sides state, and state otherwise: a difference may be theirs."""
    sentences = {}
    for result in results:
        ours, theirs = dict(result.first.of.details), dict(result.second.of.details)
        differing = [
            f"{key} {ours[key]} against {theirs[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key]
        ]
        if differing:
            title = _title(result)
            sentences[title] = f"Other settings: {title.partition(' (B: ')[0]}: {', '.join(differing)}."
    return list(sentences.values())


def _by_method(results: Sequence[Compared]) -> list[list[Compared]]:
    grouped: dict[str, list[Compared]] = {}
    for result in results:
        grouped.setdefault(_title(result), []).append(result)
    return list(grouped.values())


def _title(result: Compared) -> str:
    """The method, its data set, what tells it from others of its name, and the counterpart's name if it is another."""
    of = result.first.of
    dataset = of.dataset or result.second.of.dataset
    name = result.first.name if result.first.name != "(unnamed)" else result.second.name
    settings = result.first.settings
    title = ", ".join([f"{name} on {dataset}" if dataset else name, *settings])
    other = _counterpart(result.second)
    return title if other == ", ".join([name, *settings]) else f"{title} (B: {other})"


def _counterpart(entry: Entry) -> str:
    shown = entry.settings if entry.of.method else [f"{key}={value}" for key, value in entry.of.details]
    return ", ".join([entry.name, *shown])


def _metric(result: Compared) -> str:
    try:
        return metric_title(result.first.of.metric)
    except UserError:
        return result.first.of.metric


def _only(side: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"Only in {side}: {shown}." if names else ""


def _all(count: int) -> str:
    return {1: "the one number is", 2: "both numbers are"}.get(count, f"all {count} numbers are")
