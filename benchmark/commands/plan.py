"""Verbs that read the configuration alone: what a table costs, and how far it is from the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.commands.shared import DataRoot, OverridesFile, Preset, Seeds, configuration, data_folder, parse_seeds
from benchmark.errors import UserError

if TYPE_CHECKING:
    from benchmark.analysis.cost import CostAssumptions, DataFacts, ModelSize
    from benchmark.experiments import Run


def plan(
    table: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    gpu: Annotated[str, typer.Option(help="a GPU of config/costs.yaml")] = "H100",
    gpus: Annotated[int, typer.Option(min=1, help="how many share a run")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="of a GPU-hour, in your currency")] = None,
    effect: Annotated[float, typer.Option(min=0.01, help="relative difference to find, in percent")] = 5.0,
    data: DataRoot = Path("data"),
) -> None:
    """Print every run of a table with its size, work, memory and GPU-hours, and what its users can tell apart."""
    from benchmark.analysis.cost import load_assumptions
    from benchmark.analysis.plan import PlannedCost, plan_text

    assumptions = load_assumptions(Path("config/costs.yaml"))
    assumptions.gpu(gpu)
    planned = configuration(overrides).plan(table, preset, parse_seeds(seeds))
    runs = {run.id: run for run in planned.runs()}
    costs: dict[str, PlannedCost] = {}
    for run in runs.values():
        facts = data_facts(run, data, assumptions)
        costs[run.id] = PlannedCost(run, facts, model_size(run, facts, runs))
    print(plan_text(planned, costs, assumptions, gpu=gpu, gpus=gpus, price=price, effect=effect / 100))


def deviations(
    preset: Preset = "laptop",
    tables: Annotated[str | None, typer.Option(help="some of them, such as table7,table8")] = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Write which settings of each row differ from the paper's, and why: deviations.md of the preset."""
    from benchmark.analysis.deviations import deviations as text_of
    from benchmark.files import write_text

    made = configuration(overrides)
    made.preset(preset)
    names = made.tables(preset) if tables is None else tables.split(",")
    path = results / preset / "deviations.md"
    write_text(path, text_of(made, [made.plan(name, preset) for name in names]))
    print(path)


def data_facts(run: Run, data: Path, assumptions: CostAssumptions) -> DataFacts:
    """From the prepared data set and its token store, or from the counts that the data set's definition expects."""
    import numpy as np

    from benchmark.analysis.cost import DataFacts, estimated_lengths
    from benchmark.data.dataset import TRAIN_END, load_dataset
    from benchmark.data.text import TextSettings, tokens_folder

    folder, tokens = data_folder(run, data), 0.0
    if run.text is not None:
        tokens = assumptions.text_tokens.get(run.dataset, assumptions.text_tokens["default"])
        card = tokens_folder(folder, TextSettings.from_mapping(run.text)) / "tokens.json"
        if card.is_file():
            tokens = 1 + float(json.loads(card.read_text(encoding="utf-8"))["length"]["mean"])
    if (folder / "dataset.json").is_file():
        dataset = load_dataset(folder)
        lengths = np.asarray(dataset.split[:, TRAIN_END], dtype=np.int64)
        return DataFacts(dataset.user_count, dataset.item_count, lengths, 1.0, tokens, measured=True)
    expected = run.dataset_definition.get("expected")
    if expected is None:
        raise UserError(
            f"data set {run.dataset} is not prepared and its definition has no expected counts; prepare it with "
            f"`python -m benchmark prepare {run.dataset} --protocol {run.protocol}`"
        )
    rule = run.dataset_definition.get("filter")
    shortest = int(rule["user_count"]) if isinstance(rule, Mapping) and "user_count" in rule else 3
    held_out = 1 if run.protocol == "meta" else 2
    lengths = estimated_lengths(expected["users"], expected["interactions"], shortest) - held_out
    return DataFacts(
        expected["users"], expected["items"], np.maximum(lengths, 0), expected["users"] / len(lengths), tokens,
        measured=False,
    )  # fmt: skip


def model_size(run: Run, facts: DataFacts, runs: Mapping[str, Run]) -> ModelSize:
    """Count a run's weights without making them; runs: by id, among them the one that this one starts from."""
    import torch

    from benchmark.analysis.cost import ModelSize
    from benchmark.recommender import Catalogue
    from benchmark.training import registry
    from benchmark.training.engines import weights_of

    catalogue = Catalogue(facts.items)
    if run.text is not None:
        longest = int(run.text.get("text_length", 256))
        tokenizer = run.text.get("tokenizer", {})
        vocabulary = int(tokenizer.get("vocabulary_size", 4096)) if tokenizer.get("source", "train") == "train" else 0
        offsets = torch.arange(facts.items + 1) * longest
        catalogue = Catalogue(facts.items, torch.zeros(1, dtype=torch.int32), offsets, vocabulary or 1)
    if run.starts_from is not None and run.starts_from.cached_items:
        width = model_size(runs[run.starts_from.run], facts, runs).width
        catalogue = Catalogue(facts.items, embeddings=torch.empty(facts.items, width, device="meta"))
    length = max(run.training.sequence_length, run.evaluation.sequence_length)
    with torch.device("meta"):
        model = registry.build(run.class_, _without_hub(run.model), catalogue, length, pretrained=False)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    named = [(name.split(".")[0], p) for name, p in model.named_parameters() if id(p) not in tables]
    item = [p for part, p in named if part == "item_llm"]
    shaped = [p.shape[-1] for p in model.parameters() if p.dim() == 2]
    return ModelSize(
        weights=weights_of(model),
        item=sum(p.numel() for p in item),
        history=sum(p.numel() for part, p in named if part != "item_llm"),
        width=_width(run, shaped),
        frozen_items=bool(item) and not any(p.requires_grad for p in item),
    )


def _width(run: Run, shaped: list[int]) -> int:
    """Of an item's embedding: that of the item model or, for methods over ids, of the first table of vectors."""
    own = run.model.get("item_model", run.model.get("user_model", {})).get("config", {}).get("hidden_size")
    return int(own or run.model.get("width") or (shaped[0] if shaped else 1))


def _without_hub(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings with the sizes in `config` in place of a repository on the hub: nothing is fetched."""
    result: dict[str, Any] = {}
    for key, value in model.items():
        if isinstance(value, Mapping):
            value = _without_hub(value)
            if value.get("source") == "hub":
                if "model_type" not in value.get("config", {}):
                    raise UserError(f"model {value['path']!r}: name its sizes in `config`, so that it can be planned")
                kept = ("config", "layers", "frozen", "checkpointing")
                value = {"source": "scratch", **{name: value[name] for name in kept if name in value}}
        result[key] = value
    return result
