"""Runs kept in results/reference, and everything that people read there, computed again from their ranks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmark.analysis.claims import ClaimsFile, Rows, evaluate_claims, runs_of, write_claims
from benchmark.analysis.figures import write_svg
from benchmark.analysis.report_charts import effects
from benchmark.analysis.report_inputs import read_table
from benchmark.analysis.runs import load_run
from benchmark.analysis.tables import make_table
from benchmark.analysis.validation import write_validation
from benchmark.errors import UserError
from benchmark.evaluation.shared_cases import check_cases, keep_ranks
from benchmark.experiments import Configuration, PlannedTable
from benchmark.files import write_atomically


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


def keep_table(configuration: Configuration, name: str, preset: str, finished: Path, kept: Path) -> list[str]:
    """Copy the runs of a table from finished/<preset>/runs to kept/<preset>/runs, without weights; what the runs of a
    split share goes to kept/<preset>/cases, once. Returns the ids of those that were not there yet.

    UserError, before anything is copied, where a run is neither finished nor kept, or its files do not fit.
    """
    runs = {run.id: run for run in configuration.plan(name, preset).runs()}
    new = [run_id for run_id in runs if not (kept / preset / "runs" / run_id / "ranks.parquet").exists()]
    split_of = {run_id: f"{runs[run_id].dataset}-{runs[run_id].protocol}" for run_id in new}
    for run_id in new:
        load_run(finished / preset / "runs" / run_id)
        if not (curve := finished / preset / "runs" / run_id / "training.csv").is_file():
            raise UserError(f"{curve} does not exist; train the run again to write it")
    for split in set(split_of.values()):
        ranks = [finished / preset / "runs" / run_id / "ranks.parquet" for run_id in new if split_of[run_id] == split]
        check_cases(ranks, kept / preset / "cases" / f"{split}.parquet")
    for run_id in new:
        source, target = finished / preset / "runs" / run_id, kept / preset / "runs" / run_id
        for file in ("run.yaml", "provenance.json", "training.csv", "metrics.csv"):
            write_atomically(target / file, partial(shutil.copyfile, source / file))
        keep_ranks(source / "ranks.parquet", target / "ranks.parquet", split_of[run_id])
    return new


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
    folders = sorted(runs.parent for runs in results.glob("*/runs") if runs.is_dir())
    if not folders:
        raise UserError(f"{results} holds no folder of a preset with a folder `runs`; name one that does")
    for folder in folders:
        plans = kept_tables(configuration, folder.name, folder)
        for plan in plans:
            yield make_table(plan, folder)
            draw_effects(configuration, plan, folder)
            if plan.file.chosen_from:
                yield write_validation(plan, folder)
        claims = configuration.folder / "claims" / f"{folder.name}.yaml"
        if claims.exists():
            yield make_claims(configuration, claims, folder.name, folder)
