"""The command line: one verb a workflow rule, and the verbs that people use. Heavy imports happen inside the verbs."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmark.data.dataset import Dataset
    from benchmark.experiments import Configuration, Run
    from benchmark.recommender import Catalogue, SequentialRecommender

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
log = logging.getLogger("benchmark")

RunFile = Annotated[Path, typer.Argument(help="run.yaml of the run", metavar="RUN.yaml")]
Preset = Annotated[str, typer.Option(help="a file of config/presets")]
Seeds = Annotated[str | None, typer.Option(help="instead of the preset's, such as 1,2,3")]
DataRoot = Annotated[Path, typer.Option(help="folder of the prepared data sets")]


def main() -> None:
    """Run a verb; a user's mistake ends with one sentence and status 1."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        log.error("error: %s", error) if log.handlers else print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _log_to(path: Path | None, label: str) -> None:
    """Log to the screen, one prefixed line each, and with times to a file."""
    root = logging.getLogger("benchmark")
    root.setLevel(logging.INFO)
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(logging.Formatter(f"[{label}] %(message)s"))
    root.handlers = [screen]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


def _seeds(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text} is not a list of whole numbers such as 1,2,3") from error


def _configuration() -> Configuration:
    from benchmark.experiments import Configuration

    return Configuration(Path("config"))


def _data_folder(run: Run, data: Path) -> Path:
    return data / run.dataset / run.protocol


def _device(run: Run) -> torch.device:
    import torch

    torch.set_num_threads(run.execution.threads)
    wanted = run.execution.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"run {run.id} asks for a CUDA device and there is none; set execution.device to cpu or auto")
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    log.info("runs on %s", "CUDA" if device.type == "cuda" else f"the CPU, {run.execution.threads} thread(s)")
    return device


def _catalogue(run: Run, size: int, data: Path, device: torch.device) -> Catalogue:
    from benchmark.recommender import Catalogue

    if run.text is None:
        return Catalogue(size)
    from benchmark.data.text import TextSettings, load_tokens, tokens_folder

    return load_tokens(tokens_folder(_data_folder(run, data), TextSettings.from_mapping(run.text)), size, device)


def _opened(run: Run, data: Path) -> tuple[torch.device, Dataset, SequentialRecommender]:
    """A run's device, data set and untrained model, whose initial weights depend on the seed alone."""
    from benchmark.data.dataset import load_dataset
    from benchmark.training import registry
    from benchmark.training.trainer import seeded

    device = _device(run)
    dataset = load_dataset(_data_folder(run, data))
    catalogue = _catalogue(run, dataset.item_count, data, device)
    length = max(run.training.sequence_length, run.evaluation.sequence_length)
    return device, dataset, seeded(lambda: registry.build(run.class_, run.model, catalogue, length), run.seed)


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="a data set of config/datasets.yaml")],
    protocol: Annotated[str, typer.Option(help="hllm or meta")] = "hllm",
    on_bad_rows: Annotated[str, typer.Option(help="fail at the first bad row, or drop and count them")] = "fail",
    data: DataRoot = Path("data"),
) -> None:
    """Read a data set's raw files and write its verified form."""
    from benchmark.data.preparation import prepare as prepare_dataset
    from benchmark.data.sources import load_definitions

    _log_to(None, f"{dataset} {protocol}")
    definitions = load_definitions(Path("config/datasets.yaml"))
    if dataset not in definitions:
        raise UserError(f"config/datasets.yaml has no data set {dataset!r}; it has: {', '.join(sorted(definitions))}")
    card = prepare_dataset(definitions[dataset], protocol, data / dataset / protocol, on_bad_rows)
    log.info(
        "%d users, %d items, %d interactions; split %s",
        card.counts.users, card.counts.items, card.counts.interactions, card.split_sha256[:12],
    )  # fmt: skip


@app.command()
def tokenize(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Turn the item texts of a run's data set into tokens, as the run's text settings say."""
    from benchmark.data.text import TextSettings, make_tokens
    from benchmark.experiments import load_run_file

    run = load_run_file(run_file)
    if run.text is None:
        raise UserError(f"{run_file}: method {run.method} reads no text")
    _log_to(None, f"{run.dataset} tokens")
    make_tokens(_data_folder(run, data), TextSettings.from_mapping(run.text))


@app.command()
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

    runs = {run.id: run for run in _configuration().plan(table, preset, _seeds(seeds)).runs()}
    if run_id not in runs:
        raise UserError(f"table {table} on preset {preset} has no run {run_id}; it has: {', '.join(runs)}")
    write_atomically(out, lambda temporary: temporary.write_text(dump_run(runs[run_id]), encoding="utf-8"))


@app.command()
def train(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Train a run, or continue it where it stopped."""
    import torch

    from benchmark.experiments import load_run_file
    from benchmark.provenance import provenance, write_json
    from benchmark.recommender import SelfTrainedRecommender
    from benchmark.training.checkpoint import run_lock
    from benchmark.training.trainer import Trainer, fit

    run, folder = load_run_file(run_file), run_file.parent
    _log_to(folder / "train.log", run.label)
    device, dataset, model = _opened(run, data)
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


@app.command()
def rank(run_file: RunFile, data: DataRoot = Path("data")) -> None:
    """Rank every user's test item with a trained run, and write ranks.parquet and metrics.csv."""
    from rich.progress import Progress

    from benchmark.evaluation.metrics import write_metrics
    from benchmark.evaluation.ranking import rank_cases, write_ranks
    from benchmark.experiments import load_run_file
    from benchmark.training.checkpoint import load_weights
    from benchmark.training.trainer import ranking_settings

    run, folder = load_run_file(run_file), run_file.parent
    _log_to(folder / "rank.log", run.label)
    device, dataset, model = _opened(run, data)
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


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Compute a table from the ranks of its runs, write it as CSV, Markdown, LaTeX and HTML, and print it."""
    from benchmark.analysis.tables import make_table

    _log_to(None, name)
    plan = _configuration().plan(name, preset, _seeds(seeds))
    print(make_table(plan, results / preset))
