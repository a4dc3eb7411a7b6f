"""How the runs of a preset differ from the paper's, and why: deviations.md.

A row's counterpart is the row of the same label, or of the label that it names, in the same table on preset paper. Why
a setting differs is what the row, its block or its preset says under `choices` of that setting or of what holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.experiments import Configuration, PlannedBlock, PlannedRow, PlannedTable, Run

PAPER = "paper"
NO_COUNTERPART = "none"
UNSAID = "not said"
_ABOUT = ("dataset", "protocol", "class", "model", "text", "training", "evaluation", "starts_from", "seed")


@dataclass(frozen=True)
class Difference:
    """A setting, its value here, the paper's (None where none is told), and why it is as it is."""

    setting: str
    here: str
    there: str | None
    why: str


def deviations(configuration: Configuration, plans: Sequence[PlannedTable]) -> str:
    """Markdown over all tables of a preset; for preset paper itself, the settings that are this project's choice."""
    preset, everywhere = plans[0].preset, configuration.preset(plans[0].preset).choices
    lines = [f"# Preset {preset} beside the paper", ""]
    if preset == PAPER:
        lines += ["Settings that the paper and its scripts leave open, and what was chosen here.", ""]
        lines += [f"In every table, `{name}`: {_cell(why)}" for name, why in everywhere.items()] + [""]
    else:
        lines += [
            "Each row beside its counterpart on preset paper, which follows the paper's scripts: the settings that "
            "differ, each with its value here and, in brackets, the paper's.", "",
        ]  # fmt: skip
    methods: dict[str, None] = {}
    for plan in plans:
        papers = _paper_rows(configuration, plan.name)
        lines += [f"## {plan.name}: {plan.file.title}", ""]
        for block in plan.blocks:
            methods |= dict.fromkeys(row.row.method for row in block.rows)
            lines += [f"**{block.block.title or block.block.dataset}**", ""]
            lines += _choices(block, everywhere) if preset == PAPER else _beside(block, papers)
    lines += ["## Methods", "", "What a method does otherwise than its source, on every preset.", ""]
    for name in methods:
        file = configuration.method(name)
        lines += [f"**{file.label}** (`{name}`). Source: {' '.join(file.source.split())}.", ""]
        lines += [f"- {' '.join(text.split())}" for text in file.deviations] or ["- No deviation is known."]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def differences(run: Run, paper: Run) -> list[tuple[str, Any, Any]]:
    """(setting, here, paper's) wherever two runs differ in what decides their results; None where one has no such
    setting."""
    here, there = (dict(_flat(_decisive(one))) for one in (run, paper))
    names = dict.fromkeys((*here, *there))
    found = [(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)]
    # Shapes of models of different kinds have no setting in common, and where they come from says it all.
    return [one for one in found if ".config." not in one[0] or (one[0] in here and one[0] in there)]


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


def _choices(block: PlannedBlock, everywhere: Mapping[str, str]) -> list[str]:
    """What is this project's choice in the rows of a block of preset paper, but for what is in every table."""
    found = {}
    for row in block.rows:
        values = dict(_flat(_decisive(row.runs[0])))
        found[row.label] = [
            Difference(*((name, _told(values[name])) if name in values else (f"{name}.all", "")), None, why)
            for name, why in row.choices.items()
            if everywhere.get(name) != why
        ]
    return _told_together(found, block, "Chosen here in", "All as in their sources: ")


def _beside(block: PlannedBlock, papers: Mapping[str, PlannedRow]) -> list[str]:
    """How the rows of a block differ from the paper's."""
    found, pairs, alone = {}, [], []
    for row in block.rows:
        wanted = row.row.counterpart or row.label
        if wanted == NO_COUNTERPART or wanted not in papers:
            alone.append(row.label)
            continue
        paper = papers[wanted].runs[0]
        pairs.append(f"*{row.label}* beside *{wanted}*" if wanted != row.label else f"*{row.label}*")
        found[row.label] = [
            Difference(name, _told(here), _told(there), reason(name, row.choices))
            for name, here, there in differences(row.runs[0], paper)
        ]
    lines = [f"Without a counterpart on preset paper: {_listed(alone)}.", ""] if alone else []
    if pairs:
        lines += [f"Beside the paper's rows: {', '.join(pairs)}.", ""]
    return lines + _told_together(found, block, "Other settings in", "All as in the paper's rows: ")


def _told_together(found: Mapping[str, Sequence[Difference]], block: PlannedBlock, of: str, none: str) -> list[str]:
    """What holds for all rows, then what else holds for all of a method, then what else holds for each."""
    lines, rest = [], dict(found)
    methods: dict[str, list[str]] = {}
    for row in block.rows:
        if row.label in found:
            methods.setdefault(row.row.method, []).append(row.label)
    groups = [list(found), *(labels for labels in methods.values() if 1 < len(labels) < len(found))]
    for labels in groups:
        common = [one for one in rest[labels[0]] if all(one in rest[label] for label in labels)] if labels else []
        if common:
            names = _listed(labels) if labels != groups[0] else "every row" if len(labels) > 1 else "the row"
            lines += [f"{of} {names}:", "", *_table([("", common)])]
        rest |= {label: [one for one in rest[label] if one not in common] for label in labels}
    if own := [(label, differs) for label, differs in rest.items() if differs]:
        lines += [f"{of} single rows:", "", *_table(own)]
    if alike := [label for label, differs in found.items() if not differs]:
        lines += [f"{none}{_listed(alike)}.", ""]
    return lines


def _table(rows: Sequence[tuple[str, Sequence[Difference]]]) -> list[str]:
    """A line a row and reason, with the settings that it holds for; without rows' names where there is one alone."""
    named = any(label for label, _ in rows)
    lines = ["| Row | Settings | Why |", "| :-- | :-- | :-- |"] if named else ["| Settings | Why |", "| :-- | :-- |"]
    for label, differs in rows:
        reasons: dict[str, list[Difference]] = {}
        for one in differs:
            reasons.setdefault(one.why, []).append(one)
        start = f"| {_cell(label)} " if named else ""
        lines += [f"{start}| {_settings(group)} | {_cell(why)} |" for why, group in reasons.items()]
    return [*lines, ""]


def _settings(group: Sequence[Difference]) -> str:
    """Settings by what they are part of; parts with the same settings together, such as two models of one kind."""
    parts: dict[str, list[str]] = {}
    for one in group:
        part, _, name = one.setting.replace(".config.", ".").rpartition(".")
        value = one.here if one.there is None else f"{one.here} ({one.there})"
        parts.setdefault(part, []).append(f"{name} {value}".rstrip())
    same: dict[str, list[str]] = {}
    for part, settings in parts.items():
        same.setdefault(", ".join(settings), []).append(part)
    return _cell("; ".join(
        f"{' and '.join(f'`{part}`' for part in of)}: {settings}" if of != [""] else settings
        for settings, of in same.items()
    ))  # fmt: skip


def _decisive(run: Run) -> dict[str, Any]:
    content = run.model_dump(mode="json", by_alias=True)
    found = {name: content[name] for name in _ABOUT} | {"execution": {"precision": run.execution.precision}}
    if found["text"] is not None:
        found["text"] = {"fields": None, **found["text"]}
        found["text"]["fields"] = found["text"]["fields"] or list(run.dataset_definition.get("text_fields", []))
    return found


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their paths. Where weights or a tokenizer come from is one setting, `from`."""
    is_model = "config" in content
    if is_model and content.get("kind", "language_model") != "language_model":
        yield f"{prefix}from", content["kind"]
    elif "source" in content:
        yield f"{prefix}from", " ".join(str(content[key]) for key in ("source", "path") if content.get(key))
    for key, value in content.items():
        if prefix == "starts_from." and key == "run":  # other rows, other ids
            continue
        if (is_model and key == "kind") or ("source" in content and key in ("source", "package", "path", "revision")):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _told(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(_told(one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"*{label}*" for label in labels)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
