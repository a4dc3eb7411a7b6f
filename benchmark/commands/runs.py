"""Verbs on a run: its settings, training and ranking."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.commands.shared import (
    DataRoot,
    Nodes,
    OpenedRun,
    OverridesFile,
    Preset,
    Processes,
    RunFile,
    Seeds,
    configuration,
    layout,
    load_trained,
    log,
    log_to,
    opened,
    parse_seeds,
    run_and_folder,
)
from benchmark.errors import UserError, finite_outputs
from benchmark.launch import enter

if TYPE_CHECKING:
    from benchmark.experiments import Run
    from benchmark.processes import Processes as Job


def resolve(
    run_id: Annotated[str, typer.Argument(help="the run's id, as `snakemake --dry-run` lists it")],
    table: Annotated[str, typer.Option(help="a table that has the run")],
    out: Annotated[Path, typer.Option(help="the run.yaml to write")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
) -> None:
    """Write every resolved setting of a run."""
    from benchmark.experiments import dump_run
    from benchmark.files import write_atomically

    runs = {run.id: run for run in configuration(overrides).plan(table, preset, parse_seeds(seeds)).runs()}
    if run_id not in runs:
        raise UserError(f"table {table} on preset {preset} has no run {run_id}; it has: {', '.join(runs)}")
    write_atomically(out, lambda temporary: temporary.write_text(dump_run(runs[run_id]), encoding="utf-8"))


def train(run_file: RunFile, data: DataRoot = Path("data"), nodes: Nodes = None, processes: Processes = None) -> None:
    """Train a run, or continue it where it stopped."""
    run, folder = run_and_folder(run_file)
    log_to(folder / "train.log", run.label)
    enter(layout(run, nodes, processes), sys.argv[1:])

    from benchmark.processes import joined
    from benchmark.provenance import provenance, write_json
    from benchmark.training.architectures import write_architectures
    from benchmark.training.checkpoint import run_lock

    with ExitStack() as held:
        run_parts = opened(run, folder, data)
        job = held.enter_context(joined())
        if job.first:
            held.enter_context(run_lock(folder))
            write_architectures(run_parts.model, folder)
        parameters = sum(p.numel() for p in run_parts.model.parameters())
        source = _start(run, folder, run_parts)
        trained, clear = _trained(run, folder, run_parts, job)
        if job.first:
            record = provenance(
                run_parts.device,
                seed=run.seed,
                parameters=parameters,
                dataset_hash=run_parts.dataset.card.split_sha256,
                **({"processes": job.count} if job.count > 1 else {}),
                **trained,
                **source,
            )
            write_json(folder / "provenance.json", record)
        clear()
    log.info("trained in %.0f s", 3600 * trained["hours"])


def _start(run: Run, folder: Path, run_parts: OpenedRun) -> dict[str, Any]:
    """Take over what a run starts from; returns where it comes from, for its provenance."""
    from benchmark.training.starting import file_sha256, take_released, take_weights

    if run.released is not None:
        path = Path(run.released.path)
        digest = take_released(run_parts.model, path, run.released.sha256)
        return {"starts_from": {"released": str(path), "weights_sha256": digest}}
    if run.starts_from is None:
        return {}
    origin: dict[str, Any] = {"run": run.starts_from.run}
    if run.starts_from.cached_items:
        origin["item_embeddings_sha256"] = run_parts.items_sha256
    if run.starts_from.parts != []:
        weights = folder.parent / run.starts_from.run / "model.safetensors"
        take_weights(run_parts.model, weights, run.starts_from.parts)
        origin["weights_sha256"] = file_sha256(weights)
    return {"starts_from": origin}


def _trained(run: Run, folder: Path, run_parts: OpenedRun, job: Job) -> tuple[dict[str, Any], Callable[[], None]]:
    """Train; returns the figures for the provenance, and what removes the state that a stopped training continues
    from, for when everything else is written."""
    from benchmark.recommender import SelfTrainedRecommender
    from benchmark.training.checkpoint import save_weights
    from benchmark.training.progress import write_record
    from benchmark.training.stopping import stop_request
    from benchmark.training.trainer import Trainer, fit

    dataset, model, began = run_parts.dataset, run_parts.model, time.perf_counter()
    figures: dict[str, Any] = {"epochs": 0}
    if run.training.epochs and not isinstance(model, SelfTrainedRecommender):
        with stop_request() as stop:
            trainer = Trainer(run, dataset, model, folder, run_parts.device, stop, job)
            progress = trainer.train()
        figures = {
            "epochs": progress.step // trainer.batches.steps_per_epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.step,
            "hours": progress.seconds / 3600,
            "items_per_second": progress.items_encoded / progress.seconds,
        }
        return figures, trainer.clear
    if isinstance(model, SelfTrainedRecommender) and run.training.epochs:
        if job.first:
            figures["epochs"] = fit(run, dataset, model, folder).get("epochs", 0)
    elif job.first:
        write_record(folder / "training.csv", [{"epoch": 0}])
        save_weights(folder / "model.safetensors", model.state_dict())
    return figures | {"hours": (time.perf_counter() - began) / 3600}, lambda: None


def embed(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Export the item embeddings of a trained run: item_embeddings.npy, a float32 row an item, and its card."""
    run, folder = run_and_folder(run_file)
    log_to(folder / "embed.log", run.label)
    enter(layout(run, 1, 1), sys.argv[1:])

    from benchmark.training.starting import export_items

    parts, began = opened(run, folder, data, pretrained=False), time.perf_counter()
    precision = load_trained(run, folder, parts)
    with finite_outputs(run.id):
        digest = export_items(
            parts.model,
            parts.dataset.item_count,
            folder,
            run_id=run.id,
            split_sha256=parts.dataset.card.split_sha256,
            device=parts.device,
            precision=precision,
        )
    log.info("%d item embeddings in %.1f s; sha256 %s", parts.dataset.item_count, time.perf_counter() - began,
             digest[:12])  # fmt: skip


def rank(run_file: RunFile, data: DataRoot = Path("data"), nodes: Nodes = None, processes: Processes = None) -> None:
    """Rank every user's test item with a trained run, and write ranks.parquet and metrics.csv."""
    run, folder = run_and_folder(run_file)
    log_to(folder / "rank.log", run.label)
    enter(layout(run, nodes, processes), sys.argv[1:])

    from rich.progress import Progress

    from benchmark.evaluation.metrics import write_metrics
    from benchmark.evaluation.ranking import rank_cases, write_ranks
    from benchmark.processes import joined
    from benchmark.training.trainer import ranking_settings

    parts = opened(run, folder, data, pretrained=False)
    device, dataset, model = parts.device, parts.dataset, parts.model
    check_same_items(folder, parts.items_sha256)
    precision = load_trained(run, folder, parts)
    cases = dataset.cases("test")
    began = time.perf_counter()
    with joined() as job, finite_outputs(run.id), Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("users ranked", total=len(cases.target), visible=job.first)
        ranks = rank_cases(
            model, dataset, cases, ranking_settings(run), device,
            lambda done: bar.advance(task, done), job, precision,
        )  # fmt: skip
    if not job.first:
        return
    write_ranks(folder / "ranks.parquet", dataset, cases, ranks)
    write_metrics(folder / "metrics.csv", ranks.rank)
    log.info("%d users ranked among %d items in %.1f s", len(cases.target), dataset.item_count,
             time.perf_counter() - began)  # fmt: skip


def check_same_items(folder: Path, items_sha256: str | None) -> None:
    """Item embeddings that a run was trained on must be those that it is ranked with."""
    if items_sha256 is None or not (folder / "provenance.json").is_file():
        return
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    trained_on = record.get("starts_from", {}).get("item_embeddings_sha256")
    if trained_on != items_sha256:
        raise UserError(
            f"{folder} was trained on the item embeddings {str(trained_on)[:12]}, and those of the run that it starts "
            f"from are {items_sha256[:12]} now; train it again"
        )
