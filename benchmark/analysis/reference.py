"""Everything that people read of results/reference, computed again from the ranks that are kept there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.analysis.claims import ClaimsFile, Rows, evaluate_claims, runs_of, write_claims
from benchmark.analysis.figures import write_svg
from benchmark.analysis.report_charts import effects
from benchmark.analysis.report_inputs import read_table
from benchmark.analysis.runs import load_run
from benchmark.analysis.tables import make_table
from benchmark.analysis.validation import write_validation
from benchmark.errors import UserError
from benchmark.experiments import Configuration, PlannedTable


def kept_tables(configuration: Configuration, preset: str, folder: Path) -> list[PlannedTable]:
    """The preset's tables of which folder/runs has every run; UserError where it has some runs and not others."""
    kept = {path.name for path in (folder / "runs").iterdir()}
    plans, used = [], set()
    for name in configuration.tables(preset):
        plan = configuration.plan(name, preset)
        wanted = {run.id for run in plan.runs()}
        if wanted <= kept:
            plans.append(plan)
            used |= wanted
    if left := sorted(kept - used):
        raise UserError(
            f"{folder}/runs/{left[0]} and {len(left) - 1} more belong to no table of which every run is kept; "
            "run what is missing, or remove them"
        )
    return plans


def make_claims(configuration: Configuration, file: Path, preset: str, folder: Path) -> str:
    """Test the claims of a file on runs in folder/runs, write claims.csv, .md and .html, return them as text."""
    claims = ClaimsFile.read(file).claims
    rows: Rows = {}
    for name in dict.fromkeys(test.table for claim in claims for test in claim.tests):
        plan = configuration.plan(name, preset)
        rows |= runs_of(plan, {run.id: load_run(folder / "runs" / run.id) for run in plan.runs()})
    return write_claims(claims, evaluate_claims(claims, rows), folder)


def draw_effects(configuration: Configuration, plan: PlannedTable, folder: Path) -> None:
    """Draw each block's differences from its reference as folder/figures/<table>-<number>-<data set>.svg."""
    table = read_table(folder, plan.name, configuration, plan.preset)
    for number, block in enumerate(table.result.blocks, start=1):
        if chart := effects(table, block, f"{plan.name}-{number}-{block.block.dataset}"):
            write_svg(chart.drawing, folder / "figures")


def rebuild(configuration: Configuration, results: Path) -> Iterator[str]:
    """Compute all tables of every preset below results, and the claims about them; yields each one's text."""
    for folder in sorted(path for path in results.iterdir() if (path / "runs").is_dir()):
        plans = kept_tables(configuration, folder.name, folder)
        for plan in plans:
            yield make_table(plan, folder)
            draw_effects(configuration, plan, folder)
            if plan.file.chosen_from:
                yield write_validation(plan, folder)
        claims = configuration.folder / "claims" / f"{folder.name}.yaml"
        if claims.exists():
            yield make_claims(configuration, claims, folder.name, folder)
