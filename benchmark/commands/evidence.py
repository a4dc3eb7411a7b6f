"""Verbs on what this project measured: claims of the paper, keeping runs, and everything that is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import Preset, configuration, log, log_to


def claims(
    preset: Preset = "gpu",
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Test the paper's claims, as config/claims/<preset>.yaml states them, on finished runs."""
    from benchmark.analysis.reference import make_claims

    log_to(None, "claims")
    print(make_claims(configuration(), Path("config/claims") / f"{preset}.yaml", preset, results / preset))


def keep(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE...", help="names of files of config/tables")],
    preset: Preset = "gpu",
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
    reference: Annotated[Path, typer.Option(help="a folder with a folder a preset")] = Path("results/reference"),
) -> None:
    """Copy the finished runs of tables to results/reference, without weights; `reference` computes the tables there."""
    from benchmark.analysis.reference import keep_table

    log_to(None, "keep")
    for name in tables:
        new = keep_table(configuration(), name, preset, results, reference)
        log.info("%s: %d runs copied to %s", name, len(new), reference / preset / "runs")


def reference(
    results: Annotated[Path, typer.Option(help="a folder with a folder a preset")] = Path("results/reference"),
) -> None:
    """Compute every table and claim of results/reference again, from the ranks that are kept there."""
    from benchmark.analysis.reference import rebuild

    log_to(None, "reference")
    for text in rebuild(configuration(), results):
        print(text)
    log.info("everything in %s is computed from its ranks; `git diff %s` shows what changed", results, results)
