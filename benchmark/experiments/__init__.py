"""Configuration: the files under config/, and the runs that they resolve to."""

from benchmark.experiments.files import Block, MethodFile, MethodOverride, PresetFile, Row, TableFile
from benchmark.experiments.planning import Configuration, PlannedBlock, PlannedRow, PlannedTable, merge
from benchmark.experiments.run import (
    EvaluationSettings,
    ExecutionSettings,
    NegativeSettings,
    OptimizerSettings,
    Run,
    ScheduleSettings,
    TemperatureSettings,
    TrainingSettings,
    dump_run,
    load_run_file,
)

__all__ = [
    "Block",
    "Configuration",
    "EvaluationSettings",
    "ExecutionSettings",
    "MethodFile",
    "MethodOverride",
    "NegativeSettings",
    "OptimizerSettings",
    "PlannedBlock",
    "PlannedRow",
    "PlannedTable",
    "PresetFile",
    "Row",
    "Run",
    "ScheduleSettings",
    "TableFile",
    "TemperatureSettings",
    "TrainingSettings",
    "dump_run",
    "load_run_file",
    "merge",
]
