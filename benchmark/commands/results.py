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
    from benchmark.analysis.click_tables import is_click_table, make_click_table
    from benchmark.analysis.tables import make_table
    from benchmark.analysis.validation import write_validation

    log_to(None, name)
    plan = configuration(overrides).plan(name, preset, parse_seeds(seeds))
    make = make_click_table if is_click_table(plan.file.metrics) else make_table
    print(make(plan, results / preset))
    if plan.file.chosen_from:
        print(write_validation(plan, results / preset))


def breakdown(
    name: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Break a table down by how often the target was trained on: cold, tail, middle, head."""
    from benchmark.analysis.breakdown import breakdown as of_table
    from benchmark.files import write_text

    csv, text = of_table(configuration(overrides).plan(name, preset, parse_seeds(seeds)), results / preset)
    write_text(results / preset / "breakdown" / f"{name}.csv", csv)
    write_text(results / preset / "breakdown" / f"{name}.md", text)
    print(text)


def scale(
    name: Annotated[str, typer.Argument(help="a table whose rows differ in training.user_share")] = "figure3",
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Draw results against the number of users trained on, and say how many a method needs to reach another's best."""
    from benchmark.analysis.data_scale import data_scale
    from benchmark.analysis.figures import write_figure
    from benchmark.files import write_text

    drawing, text = data_scale(configuration(overrides).plan(name, preset, parse_seeds(seeds)), results / preset)
    write_figure(drawing, results / preset)
    write_text(results / preset / f"{name}_data_needed.csv", text)
    print(drawing.description)
