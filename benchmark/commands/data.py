"""Verbs on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import DataRoot, RunFile, data_folder, log, log_to
from benchmark.errors import UserError

DatasetName = Annotated[str, typer.Argument(help="a data set of config/datasets.yaml")]
Mirror = Annotated[
    Path | None, typer.Option(help="a folder where raw files lie already, in a folder named as the data set or not")
]
PresetName = Annotated[str, typer.Option(help="an entry of config/data.yaml")]
Results = Annotated[Path, typer.Option(help="folder that holds the preset's results")]
DATASETS = Path("config/datasets.yaml")


def download(
    dataset: DatasetName,
    mirror: Mirror = None,
    accept_terms: Annotated[
        str, typer.Option(help="names of terms that you have read and agree to, such as pixelrec", metavar="NAMES")
    ] = "",
    data: DataRoot = Path("data"),
) -> None:
    """Fetch a data set's raw files, or find them in its folder or a mirror, and check them."""
    from dataclasses import asdict

    from benchmark.data.download import fetch
    from benchmark.data.sources import find_definition
    from benchmark.provenance import write_json

    log_to(None, f"{dataset} download")
    definition = find_definition(DATASETS, dataset).with_mirror(mirror)
    files = fetch(definition, accept_terms.split(","))
    write_json(data / dataset / "sources.json", {"files": [asdict(file) for file in files]})
    log.info("%s", ", ".join(f"{definition.file(file.file)} ({file.bytes:,} bytes)" for file in files))


def prepare(
    dataset: DatasetName,
    protocol: Annotated[str, typer.Option(help="hllm, meta or temporal")] = "hllm",
    on_bad_rows: Annotated[str, typer.Option(help="fail at the first bad row, or drop and count them")] = "fail",
    on_other_counts: Annotated[
        str, typer.Option(help="fail where the counts are not those expected, or accept and note it")
    ] = "fail",
    mirror: Mirror = None,
    data: DataRoot = Path("data"),
) -> None:
    """Read a data set's raw files and write its verified form."""
    from benchmark.data.preparation import prepare as prepare_dataset
    from benchmark.data.sources import find_definition

    log_to(None, f"{dataset} {protocol}")
    definition = find_definition(DATASETS, dataset).with_mirror(mirror)
    card = prepare_dataset(definition, protocol, data / dataset / protocol, on_bad_rows, on_other_counts)
    for deviation in card.count_deviations:
        log.warning("accepted: %s", deviation)
    if card.dropped:
        log.info("left out: %s", ", ".join(f"{count:,} {reason}" for reason, count in card.dropped.items()))
    log.info(
        "%d users, %d items, %d interactions; split %s",
        card.counts.users, card.counts.items, card.counts.interactions, card.split_sha256[:12],
    )  # fmt: skip


def datasets(
    preset: PresetName = "laptop",
    data: DataRoot = Path("data"),
    results: Results = Path("results"),
) -> None:
    """Table 1: the prepared data sets of a preset beside their published counts, as CSV, Markdown, LaTeX and HTML."""
    from benchmark.analysis.dataset_table import make_dataset_table
    from benchmark.data.preset_data import preset_data

    log_to(None, "table1")
    print(make_dataset_table(preset_data(Path("config/data.yaml"), preset), data, results / preset))


def text_statistics(
    preset: PresetName = "laptop",
    data: DataRoot = Path("data"),
    results: Results = Path("results"),
) -> None:
    """Figure 5: lengths of the items' texts by tokenizer, missing fields and repeated texts, as CSV and as a figure."""
    from benchmark.analysis.text_statistics import make_text_statistics
    from benchmark.data.preset_data import preset_data

    log_to(None, "figure5")
    print(make_text_statistics(preset_data(Path("config/data.yaml"), preset), data, results / preset))


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
