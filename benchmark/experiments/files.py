"""The files under config/ as typed settings: methods, presets and tables."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from benchmark.data.dataset import Protocol
from benchmark.experiments.run import ReleasedCheckpoint
from benchmark.settings import Settings


class MethodFile(Settings):
    """config/methods/<method>.yaml. label: its name in tables; class: module path and class name in models or
    baselines; source: paper, code and revision that it follows; deviations: from that source, and why."""

    label: str
    class_: str = Field(alias="class")
    model: dict[str, Any] = {}
    text: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    training: dict[str, Any] = {}
    source: str
    deviations: list[str] = []


class MethodOverride(Settings):
    model: dict[str, Any] = {}
    text: dict[str, Any] = {}
    images: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    execution: dict[str, Any] = {}


class StartsFrom(Settings):
    """A row above in the same block, by label, whose run with the same seed this row's run starts from.

    parts and cached_items: see SourceRun.
    """

    row: str
    parts: list[str] | None = None
    cached_items: bool = False


class Row(Settings):
    """choices: settings, such as training.patience, that the row's source leaves open -> why they have this value.

    released: the authors' checkpoint that the row starts from; with training.epochs 0 it is ranked as it is.
    counterpart: label of the row of the same table on preset paper that this one stands for, if it is not the same;
    "none" where the paper has no such row.
    """

    method: str
    label: str | None = None
    variant: str = ""
    published: dict[str, str] | None = None
    starts_from: StartsFrom | None = None
    released: ReleasedCheckpoint | None = None
    choices: dict[str, str] = {}
    counterpart: str | None = None
    model: dict[str, Any] = {}
    text: dict[str, Any] = {}
    images: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    execution: dict[str, Any] = {}


class Block(Settings):
    """Rows of a table on one data set. reference: the row, by label, that improvements and tests are against. seeds:
    instead of the preset's. methods: settings of every row of a method. choices: of all rows; see Row."""

    dataset: str
    protocol: Protocol = "hllm"
    title: str = ""
    reference: str
    seeds: list[int] | None = Field(None, min_length=1)
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    methods: dict[str, MethodOverride] = {}
    choices: dict[str, str] = {}
    rows: list[Row] = Field(min_length=1)


class TableFile(Settings):
    """config/tables/<table>.yaml: the blocks of a table on each preset.

    published: a file of published numbers. chosen_from: settings are chosen from its rows, so that a page tells what
    each reached on validation.
    """

    title: str
    metrics: list[str] = Field(min_length=1)
    published: str | None = None
    chosen_from: bool = False
    presets: dict[str, list[Block]]


class PresetFile(Settings):
    """config/presets/<preset>.yaml: settings of every run at one size. choices: of all rows; see Row."""

    description: str
    seeds: list[int] = Field(min_length=1)
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    execution: dict[str, Any] = {}
    methods: dict[str, MethodOverride] = {}
    choices: dict[str, str] = {}


class Overrides(Settings):
    """A user's own YAML file, which has the last word: on all runs, on those of a method, on rows by their label."""

    seeds: list[int] | None = Field(None, min_length=1)
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    execution: dict[str, Any] = {}
    methods: dict[str, MethodOverride] = {}
    rows: dict[str, MethodOverride] = {}
