"""The verb that makes the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import DataRoot, Preset, configuration, log, log_to


def report(
    preset: Preset = "laptop",
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
    data: DataRoot = Path("data"),
    out: Annotated[Path | None, typer.Option(help="instead of report.html beside the preset's tables")] = None,
) -> None:
    """Write one HTML file that shows every table of a preset with its charts, and works offline."""
    from benchmark.analysis.report import make_report

    log_to(None, "report")
    folder = results / preset
    page = out or folder / "report.html"
    names = make_report(folder, preset, configuration(), data, page)
    log.info("wrote %s, of %s", page, ", ".join(names))
