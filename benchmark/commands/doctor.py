"""The verb that looks before anything is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import DataRoot, OverridesFile, Preset, Seeds, configuration, parse_seeds


def doctor(
    table: Annotated[str | None, typer.Option(help="check what the runs of this table need, too")] = None,
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    data: DataRoot = Path("data"),
    results: Annotated[Path, typer.Option(help="folder that holds the presets' results")] = Path("results"),
) -> None:
    """Check this machine, what is installed, and what runs need: a line a check, and status 1 if there is a problem."""
    from benchmark.data.sources import load_definitions
    from benchmark.doctor import machine, needs
    from benchmark.doctor.findings import Finding, examined, summary
    from benchmark.experiments import Run

    checks: list[Callable[[], Iterator[Finding]]] = [
        machine.code,
        partial(machine.packages, Path("requirements.lock")),
        machine.gpus,
        machine.memory,
        partial(machine.folder, results),
        machine.slurm,
        needs.hub,
    ]
    runs: list[Run] = []
    if table is not None:
        runs = configuration(overrides).plan(table, preset, parse_seeds(seeds)).runs()
        definitions = load_definitions(Path("config/datasets.yaml"))
        checks += [
            partial(needs.data, runs, definitions, data),
            partial(needs.weights, runs),
            partial(needs.devices, runs),
        ]
    checks.append(partial(needs.disk, runs, results / preset))
    findings: list[Finding] = []
    for finding in examined(checks):
        findings.append(finding)
        print(finding.line(), flush=True)
    print(summary(findings))
    sys.exit(any(finding.state == "problem" for finding in findings))
