"""Verbs on a run: its settings, training and ranking."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import (
    DataRoot,
    Nodes,
    Preset,
    Processes,
    RunFile,
    Seeds,
    configuration,
    layout,
    log,
    log_to,
    opened,
    parse_seeds,
)
from benchmark.errors import UserError
from benchmark.experiments import load_run_file
from benchmark.launch import enter


def resolve(
    run_id: Annotated[str, typer.Argument(help="the run's id, as `snakemake --dry-run` lists it")],
    table: Annotated[str, typer.Option(help="a table that has the run")],
    out: Annotated[Path, typer.Option(help="the run.yaml to write")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
) -> None:
    """Write every resolved setting of a run."""
    from benchmark.experiments import dump_run
    from benchmark.files import write_atomically

    runs = {run.id: run for run in configuration().plan(table, preset, parse_seeds(seeds)).runs()}
    if run_id not in runs:
        raise UserError(f"table {table} on preset {preset} has no run {run_id}; it has: {', '.join(runs)}")
    write_atomically(out, lambda temporary: temporary.write_text(dump_run(runs[run_id]), encoding="utf-8"))


def train(run_file: RunFile, data: DataRoot = Path("data"), nodes: Nodes = None, processes: Processes = None) -> None:
    """Train a run, or continue it where it stopped."""
    run, folder = load_run_file(run_file), run_file.parent
    log_to(folder / "train.log", run.label)
    enter(layout(run, nodes, processes), sys.argv[1:])

    import torch

    from benchmark.provenance import provenance, write_json
    from benchmark.recommender import SelfTrainedRecommender
    from benchmark.training.checkpoint import run_lock
    from benchmark.training.trainer import Trainer, fit

    device, dataset, model = opened(run, data)
    began = time.perf_counter()
    with run_lock(folder):
        if isinstance(model, SelfTrainedRecommender):
            figures = fit(run, dataset, model, folder)
            trained = {"epochs": figures.get("epochs", 0), "hours": (time.perf_counter() - began) / 3600}
        else:
            trainer = Trainer(run, dataset, model, folder, device)
            progress = trainer.train()
            trained = {
                "epochs": progress.step // trainer.batches.steps_per_epoch,
                "best_epoch": progress.best_epoch,
                "steps": progress.step,
                "hours": progress.seconds / 3600,
                "items_per_second": progress.items_encoded / progress.seconds,
            }
        record = provenance(
            device,
            seed=run.seed,
            parameters=sum(p.numel() for p in model.parameters()),
            dataset_hash=dataset.card.split_sha256,
            **trained,
        )
        write_json(folder / "provenance.json", record)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    log.info("trained in %.0f s", 3600 * trained["hours"])


def rank(run_file: RunFile, data: DataRoot = Path("data"), nodes: Nodes = None, processes: Processes = None) -> None:
    """Rank every user's test item with a trained run, and write ranks.parquet and metrics.csv."""
    run, folder = load_run_file(run_file), run_file.parent
    log_to(folder / "rank.log", run.label)
    enter(layout(run, nodes, processes), sys.argv[1:])

    from rich.progress import Progress

    from benchmark.evaluation.metrics import write_metrics
    from benchmark.evaluation.ranking import rank_cases, write_ranks
    from benchmark.training.checkpoint import load_weights
    from benchmark.training.trainer import ranking_settings

    device, dataset, model = opened(run, data)
    model.load_state_dict(load_weights(folder / "model.safetensors"))
    cases = dataset.cases("test")
    began = time.perf_counter()
    with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("users ranked", total=len(cases.target))
        ranks = rank_cases(
            model.to(device), dataset, cases, ranking_settings(run), device, lambda done: bar.advance(task, done)
        )
    write_ranks(folder / "ranks.parquet", dataset, cases, ranks)
    write_metrics(folder / "metrics.csv", ranks.rank)
    log.info("%d users ranked among %d items in %.1f s", len(cases.target), dataset.item_count,
             time.perf_counter() - began)  # fmt: skip
