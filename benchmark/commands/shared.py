"""What verbs share: their common options, logging, and opening a run."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.errors import UserError
from benchmark.launch import Layout

if TYPE_CHECKING:
    import torch

    from benchmark.data.dataset import Dataset
    from benchmark.experiments import Configuration, Run
    from benchmark.recommender import Catalogue, SequentialRecommender
    from benchmark.training.precision import Precision

log = logging.getLogger("benchmark")

RunFile = Annotated[Path, typer.Argument(help="run.yaml of the run", metavar="RUN.yaml")]
Preset = Annotated[str, typer.Option(help="a file of config/presets")]
Seeds = Annotated[str | None, typer.Option(help="instead of the preset's, such as 1,2,3")]
Nodes = Annotated[int | None, typer.Option(min=1, help="hosts, instead of the run's own number (under Slurm)")]
Processes = Annotated[int | None, typer.Option(min=1, help="processes a host, instead of the run's own number")]
OverridesFile = Annotated[Path | None, typer.Option(help="your own YAML file of settings, which has the last word")]
DataRoot = Annotated[Path, typer.Option(help="folder of the prepared data sets")]


def log_to(path: Path | None, label: str) -> None:
    """Log to the screen, one prefixed line each, and with times to a file. Of a job's processes the first one tells how
    it goes; the others tell only what goes wrong with them."""
    root, process = logging.getLogger("benchmark"), int(os.environ.get("RANK", 0))
    root.setLevel(logging.WARNING if process else logging.INFO)
    screen, label = logging.StreamHandler(sys.stderr), label.replace("%", "%%")  # it stands in a format
    screen.setFormatter(logging.Formatter(f"[{label}{f', process {process}' if process else ''}] %(message)s"))
    root.handlers = [screen]
    if path is not None and not process:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


def parse_seeds(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text} is not a list of whole numbers such as 1,2,3") from error


def configuration(overrides: Path | None = None) -> Configuration:
    from benchmark.experiments import Configuration

    return Configuration(Path("config"), overrides)


def data_folder(run: Run, data: Path) -> Path:
    return data / run.dataset / run.protocol


def run_and_folder(run_file: Path) -> tuple[Run, Path]:
    """A run that is to be worked on. Its settings must be those that its id is made from: with others it would
    overwrite the results of another run."""
    from benchmark.experiments import load_run_file

    run = load_run_file(run_file)
    if not run.id.endswith(f"-{run.identity()}"):
        raise UserError(
            f"{run_file} was changed since it was resolved: its id ends with {run.id[-10:]} and its settings make it "
            f"{run.identity()}; change settings in a table or with --overrides, which makes another run"
        )
    return run, run_file.parent


def layout(run: Run, nodes: int | None, processes: int | None) -> Layout:
    """Where a run's processes are to be: as the command line says, or as the run does."""
    execution = run.execution
    return Layout(nodes or execution.nodes, processes or execution.processes, execution.device)


def allocate_in_segments() -> None:
    """Let torch grow its pieces of GPU memory: chunks of ever other sizes leave no gaps then. To be called before any
    is used; a user's own setting stays."""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def allocate_huge_pages() -> None:
    """Let torch ask the host's memory in pages of 2 MiB: the first use of 200 GB of it takes minutes otherwise. To be
    called before torch is imported; a user's own setting stays."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def device_of(run: Run) -> torch.device:
    allocate_in_segments()
    if run.execution.offload != "none":
        allocate_huge_pages()
    import torch

    from benchmark.processes import local_rank

    torch.set_num_threads(run.execution.threads)
    wanted = run.execution.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"run {run.id} asks for a CUDA device and there is none; set execution.device to cpu or auto")
    device = torch.device("cpu")
    if wanted != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    log.info("runs on %s", "CUDA" if device.type == "cuda" else f"the CPU, {run.execution.threads} thread(s)")
    return device


def catalogue_of(run: Run, size: int, data: Path, device: torch.device) -> Catalogue:
    from benchmark.recommender import Catalogue

    if run.images is not None:
        from benchmark.data.images import ImageSettings, images_folder, load_images

        folder = images_folder(data_folder(run, data), ImageSettings.from_mapping(run.images))
        return Catalogue(size, pixels=load_images(folder, size))
    if run.text is None:
        return Catalogue(size)
    from benchmark.data.text import TextSettings, load_tokens, tokens_folder

    return load_tokens(tokens_folder(data_folder(run, data), TextSettings.from_mapping(run.text)), size, device)


@dataclass(frozen=True)
class OpenedRun:
    """A run's device, data set and untrained model, whose initial weights depend on the seed alone.

    items_sha256: of the item embeddings that it reads from the run that it starts from.
    """

    device: torch.device
    dataset: Dataset
    model: SequentialRecommender
    items_sha256: str | None


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector of cycles leaves alone what is imported and read here. It all stays, and to look through it
    again and again takes a sixth of the time of a short step, and a third of that of reading a GGUF file."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@_without_collector()
def opened(run: Run, folder: Path, data: Path, *, pretrained: bool = True) -> OpenedRun:
    """Open a run whose run.yaml lies in folder. pretrained: False reads no pre-trained weights, for a trained run,
    whose own weights take their place, and of their models what training has kept in the folder, if it has."""
    from benchmark.data.dataset import load_dataset
    from benchmark.training import registry
    from benchmark.training.starting import cached_items
    from benchmark.training.trainer import seeded

    device = device_of(run)
    dataset = load_dataset(data_folder(run, data))
    catalogue, items_sha256 = catalogue_of(run, dataset.item_count, data, device), None
    if run.starts_from is not None and run.starts_from.cached_items:
        source, split = folder.parent / run.starts_from.run, dataset.card.split_sha256
        embeddings, items_sha256 = cached_items(source, dataset.item_count, split)
        catalogue = replace(catalogue, embeddings=embeddings)
    length = max(run.training.sequence_length, run.evaluation.sequence_length)
    model = seeded(
        lambda: registry.build(run.class_, run.model, catalogue, length, pretrained=pretrained, kept=folder), run.seed
    )
    return OpenedRun(device, dataset, model, items_sha256)


def load_trained(run: Run, folder: Path, parts: OpenedRun) -> Precision:
    """Give an opened run's model the weights that training left in the folder, put it on the device as for ranking, and
    return what it runs in: the precision of the run."""
    from benchmark.training.checkpoint import load_weights
    from benchmark.training.engines import place_to_rank

    parts.model.load_state_dict(load_weights(folder / "model.safetensors"))
    return place_to_rank(parts.model, parts.device, bf16=run.execution.precision == "bf16")
