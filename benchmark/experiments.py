"""Experiments as data: preset + table -> the list of runs, every setting resolved, typed and validated.

A run's settings come, later over earlier, from the method's file, the preset's defaults, the preset's entry for the
method, the table's block, its row, and the user's overrides. A run's id is a hash of what decides its result: data,
method, training, evaluation and seed; how it is executed (device, threads, chunks) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from benchmark.data.sources import load_definitions
from benchmark.errors import UserError
from benchmark.settings import Settings, read_yaml, validated

FORMAT = 1  # of what a run's id covers; raise it when the same settings come to mean another result


class NegativeSettings(Settings):
    count: int = Field(gt=0)
    sharing: Literal["shared", "per_position"] = "shared"
    mask: Literal["cosine", "id", "both", "none"] = "cosine"


class TemperatureSettings(Settings):
    initial: float = Field(0.07, gt=0)
    learnable: bool = True


class OptimizerSettings(Settings):
    """AdamW."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float] = (0.9, 0.999)


class ScheduleSettings(Settings):
    """The learning rate rises linearly over the first share of all steps, then stays or decays to 0 as a cosine."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)


class TrainingSettings(Settings):
    """sequence_length: events a window's input may hold; a window has one more, its last target.

    patience: epochs without a better validation score after which training stops. selection: "best" keeps the weights
    of the best epoch on validation, "last" those of the last (protocols without validation).
    """

    sequence_length: int = Field(gt=0)
    windows: Literal["all", "last"] = "all"
    global_batch: int = Field(gt=0)
    negatives: NegativeSettings
    temperature: TemperatureSettings = TemperatureSettings()
    optimizer: OptimizerSettings
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: int = Field(gt=0)
    patience: int = Field(gt=0)
    selection: Literal["best", "last"] = "best"
    selection_metric: str = "ndcg@200"
    minimum_surviving_negatives: float = Field(0.5, ge=0)


class EvaluationSettings(Settings):
    sequence_length: int = Field(gt=0)
    mask: Literal["whole", "truncated", "none"] = "whole"


class ExecutionSettings(Settings):
    """How a run is executed; its result does not depend on it (up to rounding)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(1, gt=0)
    item_chunk: int | None = Field(None, gt=0)
    checkpoint_minutes: float = Field(10.0, gt=0)


class MethodFile(Settings):
    """config/methods/<method>.yaml. label: its name in tables; class: module path and class name in models or
    baselines; source: paper, code and revision that it follows; deviations: from that source, and why."""

    label: str
    class_: str = Field(alias="class")
    model: dict[str, Any] = {}
    text: dict[str, Any] | None = None
    training: dict[str, Any] = {}
    source: str
    deviations: list[str] = []


class Row(Settings):
    method: str
    label: str | None = None
    variant: str = ""
    published: dict[str, str] | None = None
    model: dict[str, Any] = {}
    text: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Block(Settings):
    """Rows of a table on one data set. reference: the row, by label, that improvements and tests are against."""

    dataset: str
    protocol: Literal["hllm", "meta"] = "hllm"
    title: str = ""
    reference: str
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    rows: list[Row] = Field(min_length=1)


class TableFile(Settings):
    """config/tables/<table>.yaml: the blocks of a table on each preset."""

    title: str
    metrics: list[str] = Field(min_length=1)
    published: str | None = None
    presets: dict[str, list[Block]]


class MethodOverride(Settings):
    model: dict[str, Any] = {}
    text: dict[str, Any] = {}
    training: dict[str, Any] = {}


class PresetFile(Settings):
    """config/presets/<preset>.yaml: settings of every run at one size."""

    description: str
    seeds: list[int] = Field(min_length=1)
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    execution: ExecutionSettings = ExecutionSettings()
    methods: dict[str, MethodOverride] = {}


class Run(Settings):
    """Everything that decides one run's result, and how it is executed; written as run.yaml beside its results."""

    id: str
    method: str
    label: str
    variant: str = ""
    class_: str = Field(alias="class")
    dataset: str
    protocol: Literal["hllm", "meta"]
    dataset_definition: dict[str, Any]
    model: dict[str, Any]
    text: dict[str, Any] | None
    training: TrainingSettings
    evaluation: EvaluationSettings
    seed: int = Field(ge=0)
    execution: ExecutionSettings = ExecutionSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Run:
        if self.protocol == "meta" and self.training.selection == "best":
            raise ValueError("protocol meta has no validation events: set training.selection to last")
        return self

    def identity(self) -> str:
        """The hash of what decides the result."""
        decisive = self.model_dump(mode="json", by_alias=True, exclude={"id", "label", "variant", "execution"})
        decisive["precision"] = self.execution.precision
        text = json.dumps({"format": FORMAT, **decisive}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


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
        """What decides a data set's content."""
        path = self.folder / "datasets.yaml"
        definitions = load_definitions(path)
        if name not in definitions:
            raise UserError(f"{path} has no data set {name!r}; it has: {', '.join(sorted(definitions))}")
        return definitions[name].decisive()

    def plan(self, table: str, preset: str, seeds: Iterable[int] | None = None) -> PlannedTable:
        """Resolve every run of a table on a preset; seeds: instead of the preset's."""
        preset_file, table_file = self.preset(preset), self.table(table)
        if preset not in table_file.presets:
            known = ", ".join(sorted(table_file.presets))
            raise UserError(f"config/tables/{table}.yaml has no blocks for preset {preset!r}; it has: {known}")
        use = list(seeds) if seeds is not None else preset_file.seeds
        blocks = []
        for number, block in enumerate(table_file.presets[preset]):
            where = f"{self.folder}/tables/{table}.yaml, preset {preset}, block {number + 1}"
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
            "execution": preset.execution.model_copy(update=self.overrides.get("execution", {})).model_dump(),
        }
        runs = []
        for seed in seeds:
            run = validated(Run, {**content, "seed": seed}, f"{where}, row {label!r}")
            name = f"{run.dataset}-{run.protocol}-{run.method}-seed{seed}-{run.identity()}"
            runs.append(run.model_copy(update={"id": name}))
        return PlannedRow(row=row, label=label, runs=runs)


def load_run_file(path: Path) -> Run:
    """run.yaml as written beside a run's results."""
    return validated(Run, read_yaml(path), str(path))


def dump_run(run: Run) -> str:
    """run.yaml's text: every resolved setting."""
    return yaml.safe_dump(run.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
