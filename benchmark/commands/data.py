"""Verbs on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import DataRoot, RunFile, data_folder, log, log_to
from benchmark.errors import UserError


def prepare(
    dataset: Annotated[str, typer.Argument(help="a data set of config/datasets.yaml")],
    protocol: Annotated[str, typer.Option(help="hllm, meta or temporal")] = "hllm",
    on_bad_rows: Annotated[str, typer.Option(help="fail at the first bad row, or drop and count them")] = "fail",
    data: DataRoot = Path("data"),
) -> None:
    """Read a data set's raw files and write its verified form."""
    from benchmark.data.preparation import prepare as prepare_dataset
    from benchmark.data.sources import load_definitions

    log_to(None, f"{dataset} {protocol}")
    definitions = load_definitions(Path("config/datasets.yaml"))
    if dataset not in definitions:
        raise UserError(f"config/datasets.yaml has no data set {dataset!r}; it has: {', '.join(sorted(definitions))}")
    card = prepare_dataset(definitions[dataset], protocol, data / dataset / protocol, on_bad_rows)
    log.info(
        "%d users, %d items, %d interactions; split %s",
        card.counts.users, card.counts.items, card.counts.interactions, card.split_sha256[:12],
    )  # fmt: skip


def tokenize(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Turn the item texts of a run's data set into tokens, as the run's text settings say."""
    from benchmark.data.text import TextSettings, make_tokens
    from benchmark.experiments import load_run_file

    run = load_run_file(run_file)
    if run.text is None:
        raise UserError(f"{run_file}: method {run.method} reads no text")
    log_to(None, f"{run.dataset} tokens")
    make_tokens(data_folder(run, data), TextSettings.from_mapping(run.text))


def images(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Decode and resize the items' pictures of a run's data set, as the run's image settings say."""
    from benchmark.data.images import ImageSettings, make_images
    from benchmark.experiments import load_run_file

    run = load_run_file(run_file)
    if run.images is None:
        raise UserError(f"{run_file}: method {run.method} reads no pictures")
    log_to(None, f"{run.dataset} pictures")
    make_images(data_folder(run, data), ImageSettings.from_mapping(run.images))
