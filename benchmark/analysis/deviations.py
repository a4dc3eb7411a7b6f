"""How the runs of a preset differ from the paper's, and why: deviations.md.

A row's counterpart is the row of the same label, or of the label that it names, in the same table on preset paper. Why
a setting differs is what the row, its block or its preset says under `choices` of that setting or of what holds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.experiments import Configuration, PlannedRow, PlannedTable, Run

PAPER = "paper"
NO_COUNTERPART = "none"
UNSAID = "not said"
_ABOUT = ("dataset", "protocol", "class", "model", "text", "training", "evaluation", "starts_from", "seed")


def deviations(configuration: Configuration, plans: Sequence[PlannedTable]) -> str:
    """Markdown over all tables of a preset; for preset paper itself, the settings that are this project's choice."""
    preset = plans[0].preset
    lines = [f"# Preset {preset} beside the paper", ""]
    if preset == PAPER:
        lines += ["Settings that the paper and its scripts leave open, and what was chosen here.", ""]
    else:
        lines += [
            "For each row, the settings that differ from those of its counterpart on preset paper, which follows the "
            "paper's scripts. A row without counterpart is one that the paper does not have.", "",
        ]  # fmt: skip
    methods: dict[str, None] = {}
    for plan in plans:
        papers = _paper_rows(configuration, plan.name)
        lines += [f"## {plan.name}: {plan.file.title}", ""]
        for block in plan.blocks:
            lines += [f"**{block.block.title or block.block.dataset}**", ""]
            for row in block.rows:
                methods[row.row.method] = None
                lines += [*_row(row, papers, preset), ""]
    lines += ["## Methods", "", "What a method does otherwise than its source, on every preset.", ""]
    for name in methods:
        file = configuration.method(name)
        lines += [f"**{file.label}** (`{name}`), after {file.source}:", ""]
        lines += [f"- {text}" for text in file.deviations] or ["- nothing known"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def differences(run: Run, paper: Run) -> list[tuple[str, Any, Any]]:
    """(setting, here, paper's) wherever two runs differ in what decides their results; None where one has no such
    setting."""
    here, there = (dict(_flat(_decisive(one))) for one in (run, paper))
    names = dict.fromkeys((*here, *there))
    return [(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)]


def reason(setting: str, choices: Mapping[str, str]) -> str:
    """Why a setting is as it is: what is said of it or, failing that, of the least that it is part of."""
    parts = setting.split(".")
    for end in range(len(parts), 0, -1):
        if found := choices.get(".".join(parts[:end])):
            return found
    return UNSAID


def _paper_rows(configuration: Configuration, table: str) -> dict[str, PlannedRow]:
    """Rows of a table on preset paper by label, the first block's first; empty without such blocks."""
    if PAPER not in configuration.table(table).presets:
        return {}
    rows: dict[str, PlannedRow] = {}
    for block in configuration.plan(table, PAPER).blocks:
        for row in block.rows:
            rows.setdefault(row.label, row)
    return rows


def _row(row: PlannedRow, papers: Mapping[str, PlannedRow], preset: str) -> list[str]:
    run, title = row.runs[0], f"*{row.label}* (`{row.row.method}`)"
    if preset == PAPER:
        if not row.choices:
            return [f"{title}: all as in its source."]
        chosen = [(name, _value(run, name), why) for name, why in row.choices.items()]
        return [f"{title}:", "", *_table(("Setting", "Here", "Why"), chosen)]
    wanted = row.row.counterpart or row.label
    if wanted == NO_COUNTERPART or wanted not in papers:
        return [f"{title}: the paper has no such row."]
    paper = papers[wanted].runs[0]
    found = [(name, here, there, reason(name, row.choices)) for name, here, there in differences(run, paper)]
    if not found:
        return [f"{title}: all as in the paper's row."]
    return [
        f"{title} beside the paper's *{wanted}* on {paper.dataset}:", "",
        *_table(("Setting", "Here", "Paper", "Why"), found),
    ]  # fmt: skip


def _decisive(run: Run) -> dict[str, Any]:
    content = run.model_dump(mode="json", by_alias=True)
    return {name: content[name] for name in _ABOUT} | {"execution": {"precision": run.execution.precision}}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if prefix == "starts_from." and key == "run":  # other rows, other ids
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(run: Run, path: str) -> Any:
    at: Any = run.model_dump(mode="json", by_alias=True)
    for part in path.split("."):
        at = at[part]
    return at


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{' :-- |' * len(columns)}"]
    return lines + [f"| {' | '.join(_cell(value, n, columns) for n, value in enumerate(row))} |" for row in rows]


def _cell(value: Any, place: int, columns: Sequence[str]) -> str:
    if place == 0:
        return f"`{value}`"
    if columns[place] == "Why":
        return str(value).replace("|", "\\|")
    text = "\N{EN DASH}" if value is None else json.dumps(value) if not isinstance(value, str) else value
    return text.replace("|", "\\|")
