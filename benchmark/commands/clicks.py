"""Verbs on a run that predicts clicks."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmark.commands.runs import check_same_items
from benchmark.commands.shared import DataRoot, RunFile, layout, load_trained, log, log_to, opened, run_and_folder
from benchmark.errors import UserError, finite_outputs
from benchmark.launch import enter


def clicks(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Predict the clicks of every test case with a trained run; write clicks.parquet and serving.csv."""
    run, folder = run_and_folder(run_file)
    log_to(folder / "clicks.log", run.label)
    enter(layout(run, 1, 1), sys.argv[1:])

    from rich.progress import Progress

    from benchmark.evaluation.click_metrics import CLICK_METRICS, click_metric, read_clicks
    from benchmark.evaluation.clicks import predict_clicks, serving_times, write_predictions, write_serving_times
    from benchmark.training.click import click_model, clicks_of

    parts = opened(run, folder, data, pretrained=False)
    device, model, cut = parts.device, click_model(run, parts.model), clicks_of(run, parts.dataset)
    check_same_items(folder, parts.items_sha256)
    if cut is None:
        raise UserError(f"{run_file}: the run predicts no clicks; rank it instead, or set training.click")
    precision = load_trained(run, folder, parts)
    length, began = run.evaluation.sequence_length, time.perf_counter()
    with finite_outputs(run.id), Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("cases predicted", total=len(cut.test))
        logits = predict_clicks(
            model, cut, cut.test, length, device, lambda done: bar.advance(task, done), precision
        )  # fmt: skip
    write_serving_times(
        folder / "serving.csv", serving_times(model, cut, cut.test, length, device, precision=precision)
    )
    write_predictions(folder / "clicks.parquet", cut, cut.test, logits, length)
    table = read_clicks(folder / "clicks.parquet")
    found = ", ".join(f"{name} {click_metric(table, name):.4f}" for name in CLICK_METRICS)
    log.info("%d cases in %.1f s: %s", len(table), time.perf_counter() - began, found)
