"""Experiments as data: preset + table -> the list of runs, every setting resolved.

A run's settings come, later over earlier, from the method's file, the preset's defaults, the preset's entry for the
method, the table's block, its row, and the user's overrides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmark.data.sources import load_definitions
from benchmark.errors import UserError
from benchmark.experiments.files import Block, MethodFile, MethodOverride, PresetFile, Row, TableFile
from benchmark.experiments.run import Run
from benchmark.settings import Settings, read_yaml, validated


class PlannedRow(Settings):
    row: Row
    label: str
    runs: list[Run]


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
    """The files under config/, read once, and the runs that they resolve to."""

    def __init__(self, folder: Path = Path("config"), overrides: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.overrides = dict(overrides or {})

    def preset(self, name: str) -> PresetFile:
        path = self.folder / "presets" / f"{name}.yaml"
        return validated(PresetFile, read_yaml(path), str(path))

    def method(self, name: str) -> MethodFile:
        path = self.folder / "methods" / f"{name}.yaml"
        return validated(MethodFile, read_yaml(path), str(path))

    def table(self, name: str) -> TableFile:
        path = self.folder / "tables" / f"{name}.yaml"
        return validated(TableFile, read_yaml(path), str(path))

    def tables(self, preset: str) -> list[str]:
        """Names of the tables that have blocks for a preset."""
        names = sorted(path.stem for path in (self.folder / "tables").glob("*.yaml"))
        return [name for name in names if preset in self.table(name).presets]

    def dataset_definition(self, name: str) -> dict[str, Any]:
        """What decides a data set's content; licence and terms do not."""
        path = self.folder / "datasets.yaml"
        definitions = load_definitions(path)
        if name not in definitions:
            raise UserError(f"{path} has no data set {name!r}; it has: {', '.join(sorted(definitions))}")
        return definitions[name].model_dump(mode="json", exclude={"licence", "terms"}, exclude_defaults=True)

    def plan(self, table: str, preset: str, seeds: Iterable[int] | None = None) -> PlannedTable:
        """Resolve every run of a table on a preset; seeds: instead of those that its blocks or the preset name."""
        preset_file, table_file = self.preset(preset), self.table(table)
        if preset not in table_file.presets:
            known = ", ".join(sorted(table_file.presets))
            raise UserError(f"config/tables/{table}.yaml has no blocks for preset {preset!r}; it has: {known}")
        asked = None if seeds is None else list(seeds)
        blocks = []
        for number, block in enumerate(table_file.presets[preset]):
            where = f"{self.folder}/tables/{table}.yaml, preset {preset}, block {number + 1}"
            use = asked or block.seeds or preset_file.seeds
            rows = [self._planned_row(row, block, preset_file, use, where) for row in block.rows]
            labels = [row.label for row in rows]
            if block.reference not in labels:
                raise UserError(f"{where}: reference {block.reference!r} is no row's label; they are: {labels}")
            if repeated := sorted({label for label in labels if labels.count(label) > 1}):
                raise UserError(f"{where}: more than one row is labelled {repeated[0]!r}; give one another label")
            blocks.append(PlannedBlock(block=block, rows=rows))
        return PlannedTable(name=table, preset=preset, file=table_file, blocks=blocks)

    def _planned_row(self, row: Row, block: Block, preset: PresetFile, seeds: list[int], where: str) -> PlannedRow:
        method = self.method(row.method)
        override = preset.methods.get(row.method, MethodOverride())
        label = row.label or (f"{method.label} ({row.variant})" if row.variant else method.label)
        training = merge(
            method.training, preset.training, override.training, block.training, row.training,
            self.overrides.get("training", {}),
        )  # fmt: skip
        evaluation = merge(
            {"sequence_length": training.get("sequence_length")}, preset.evaluation, block.evaluation, row.evaluation
        )
        content = {
            "id": "",
            "method": row.method,
            "label": label,
            "variant": row.variant,
            "class": method.class_,
            "dataset": block.dataset,
            "protocol": block.protocol,
            "dataset_definition": self.dataset_definition(block.dataset),
            "model": merge(method.model, override.model, row.model),
            "text": merge(method.text, override.text, row.text) if method.text is not None else None,
            "training": training,
            "evaluation": evaluation,
            "execution": merge(
                preset.execution.model_dump(), override.execution, row.execution, self.overrides.get("execution", {})
            ),
        }
        runs = []
        for seed in seeds:
            run = validated(Run, {**content, "seed": seed}, f"{where}, row {label!r}")
            name = f"{run.dataset}-{run.protocol}-{run.method}-seed{seed}-{run.identity()}"
            runs.append(run.model_copy(update={"id": name}))
        return PlannedRow(row=row, label=label, runs=runs)
