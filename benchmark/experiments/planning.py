"""Experiments as data: preset + table -> the list of runs, every setting resolved.

A run's settings come, later over earlier, from the method's file, the preset's defaults, the preset's entry for the
method, the table's block, its row, and the user's overrides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from benchmark.data.sources import DatasetDefinition, find_definition, load_definitions
from benchmark.data.text import TextSettings
from benchmark.errors import UserError
from benchmark.experiments.files import (
    Block,
    MethodFile,
    MethodOverride,
    Overrides,
    PresetFile,
    Row,
    StartsFrom,
    TableFile,
)
from benchmark.experiments.run import Run
from benchmark.settings import Settings, read_yaml, validated

Model = TypeVar("Model", bound=BaseModel)

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"  # of a preset, method or table


class PlannedRow(Settings):
    """choices: of the row and of all that it stands in."""

    row: Row
    label: str
    runs: list[Run]
    choices: dict[str, str]


class PlannedBlock(Settings):
    block: Block
    rows: list[PlannedRow]


class PlannedTable(Settings):
    name: str
    preset: str
    file: TableFile
    blocks: list[PlannedBlock]

    def runs(self) -> list[Run]:
        return [run for block in self.blocks for row in block.rows for run in row.runs]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later mappings over earlier ones, nested mappings key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


class Configuration:
    """The files under config/, read once, and the runs that they resolve to; overrides: a user's own file."""

    def __init__(self, folder: Path = Path("config"), overrides: Path | None = None) -> None:
        self.folder = folder
        self._files: dict[Path, BaseModel] = {}
        self._definitions: dict[str, DatasetDefinition] | None = None
        self.overrides = Overrides()
        if overrides is not None:
            self.overrides = validated(Overrides, read_yaml(overrides), str(overrides))

    def preset(self, name: str) -> PresetFile:
        return self._file("presets", name, PresetFile)

    def method(self, name: str) -> MethodFile:
        return self._file("methods", name, MethodFile)

    def table(self, name: str) -> TableFile:
        return self._file("tables", name, TableFile)

    def _file(self, part: str, name: str, kind: type[Model]) -> Model:
        """A file of a folder under config/, read once. Its name becomes part of paths and commands."""
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"{self.folder / part} has nothing named {name!r}; names are of letters, digits, ., - and _"
            )
        path = self.folder / part / f"{name}.yaml"
        if path not in self._files:
            self._files[path] = validated(kind, read_yaml(path), str(path))
        return cast(Model, self._files[path])

    def tables(self, preset: str) -> list[str]:
        """Names of the tables that have blocks for a preset."""
        names = sorted(path.stem for path in (self.folder / "tables").glob("*.yaml"))
        return [name for name in names if preset in self.table(name).presets]

    def dataset_definition(self, name: str, labels: bool = False) -> dict[str, Any]:
        """What decides a data set's content; labels: that of its labels too."""
        path = self.folder / "datasets.yaml"
        if self._definitions is None:
            self._definitions = load_definitions(path)
        definition = self._definitions.get(name) or find_definition(path, name)
        label = {"label": definition.label.model_dump(mode="json")} if labels and definition.label else {}
        return {**definition.decisive(), **label}

    def plan(self, table: str, preset: str, seeds: Iterable[int] | None = None) -> PlannedTable:
        """Resolve every run of a table on a preset; seeds: instead of the overrides', its blocks' and the preset's."""
        preset_file, table_file = self.preset(preset), self.table(table)
        if preset not in table_file.presets:
            known = ", ".join(sorted(table_file.presets))
            raise UserError(f"config/tables/{table}.yaml has no blocks for preset {preset!r}; it has: {known}")
        asked = list(seeds) if seeds is not None else self.overrides.seeds
        blocks: list[PlannedBlock] = []
        for number, block in enumerate(table_file.presets[preset]):
            where = f"{self.folder}/tables/{table}.yaml, preset {preset}, block {number + 1}"
            use = asked or block.seeds or preset_file.seeds
            rows: list[PlannedRow] = []
            for row in block.rows:
                rows.append(self._planned_row(row, block, preset_file, use, rows, where))
            labels = [row.label for row in rows]
            if block.reference not in labels:
                raise UserError(f"{where}: reference {block.reference!r} is no row's label; they are: {labels}")
            if repeated := sorted({label for label in labels if labels.count(label) > 1}):
                raise UserError(f"{where}: more than one row is labelled {repeated[0]!r}; give one another label")
            for other in blocks:  # the table's CSV files tell blocks apart by these three
                if (other.block.dataset, other.block.protocol, other.block.reference) == (
                    block.dataset, block.protocol, block.reference,
                ):  # fmt: skip
                    raise UserError(
                        f"{where}: another block on {block.dataset} has the reference {block.reference!r} too; "
                        "give one of the two rows another label"
                    )
            blocks.append(PlannedBlock(block=block, rows=rows))
        return PlannedTable(name=table, preset=preset, file=table_file, blocks=blocks)

    def _planned_row(
        self, row: Row, block: Block, preset: PresetFile, seeds: list[int], above: list[PlannedRow], where: str
    ) -> PlannedRow:
        method = self.method(row.method)
        label = row.label or (f"{method.label} ({row.variant})" if row.variant else method.label)
        where = f"{where}, row {label!r}"
        layers = self._layers(row, label, method, block, preset)
        predicts_clicks = (layers["training"] or {}).get("click") is not None
        content = {
            "id": "",
            "method": row.method,
            "label": label,
            "variant": row.variant,
            "class": method.class_,
            "dataset": block.dataset,
            "protocol": block.protocol,
            "dataset_definition": self.dataset_definition(block.dataset, predicts_clicks),
            "released": row.released.model_dump() if row.released else None,
            **layers,
        }
        runs = []
        for place, seed in enumerate(seeds):
            source = _source_run(row.starts_from, above, place, where)
            run = validated(Run, {**content, "seed": seed, "starts_from": source}, where)
            name = f"{run.dataset}-{run.protocol}-{run.method}-seed{seed}-{run.identity()}"
            runs.append(run.model_copy(update={"id": name}))
        if runs[0].text is not None:
            validated(TextSettings, runs[0].text, f"{where}, text")
        choices = {**preset.choices, **block.choices, **row.choices}
        _check_choices(choices, runs[0], where)
        return PlannedRow(row=row, label=label, runs=runs, choices=choices)

    def _layers(
        self, row: Row, label: str, method: MethodFile, block: Block, preset: PresetFile
    ) -> dict[str, dict[str, Any] | None]:
        """The sections of a run's settings, each merged from everything that has a say in it."""
        own, none = self.overrides, MethodOverride()
        layers = (
            method, preset, preset.methods.get(row.method, none), block, block.methods.get(row.method, none), row,
            own, own.methods.get(row.method, none), own.rows.get(label, none),
        )  # fmt: skip

        def section(name: str) -> dict[str, Any]:
            return merge(*(getattr(layer, name, None) or {} for layer in layers))

        sections = {name: section(name) for name in ("model", "text", "images", "training", "evaluation", "execution")}
        length = sections["training"].get("sequence_length")
        return {
            **sections,
            "text": sections["text"] if method.text is not None else None,
            "images": sections["images"] if method.images is not None else None,
            "evaluation": merge({"sequence_length": length}, sections["evaluation"]),
        }


def _source_run(source: StartsFrom | None, above: list[PlannedRow], place: int, where: str) -> dict[str, Any] | None:
    """The run, of the seed at that place in the list of seeds, that a row starts from."""
    if source is None:
        return None
    runs = {row.label: row.runs for row in above}
    if source.row not in runs:
        known = ", ".join(map(repr, runs)) or "none"
        raise UserError(f"{where}: starts_from names {source.row!r}, which is no row above it; they are: {known}")
    return {"run": runs[source.row][place].id, "parts": source.parts, "cached_items": source.cached_items}


def _check_choices(choices: Mapping[str, str], run: Run, where: str) -> None:
    """A choice must be of a setting that the run has."""
    for path in choices:
        at: Any = run.model_dump(by_alias=True)
        for part in path.split("."):
            if not isinstance(at, Mapping) or part not in at:
                raise UserError(f"{where}: choices names {path}, and the run has no such setting; mend its spelling")
            at = at[part]
