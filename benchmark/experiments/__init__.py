"""Configuration: the files under config/, and the runs that they resolve to."""

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
from benchmark.experiments.planning import Configuration, PlannedBlock, PlannedRow, PlannedTable, merge
from benchmark.experiments.run import (
    EvaluationSettings,
    ExecutionSettings,
    NegativeSettings,
    OptimizerSettings,
    Run,
    ScheduleSettings,
    SourceRun,
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
    "Overrides",
    "PlannedBlock",
    "PlannedRow",
    "PlannedTable",
    "PresetFile",
    "Row",
    "Run",
    "ScheduleSettings",
    "SourceRun",
    "StartsFrom",
    "TableFile",
    "TemperatureSettings",
    "TrainingSettings",
    "dump_run",
    "load_run_file",
    "merge",
]
