"""Verbs on results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import OverridesFile, Preset, Seeds, configuration, log_to, parse_seeds


def table(
    name: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Compute a table from the ranks of its runs, write it as CSV, Markdown, LaTeX and HTML, and print it."""
    from benchmark.analysis.tables import make_table

    log_to(None, name)
    plan = configuration(overrides).plan(name, preset, parse_seeds(seeds))
    print(make_table(plan, results / preset))
