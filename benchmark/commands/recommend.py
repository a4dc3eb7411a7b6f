"""The verb that shows what a trained run recommends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.commands.shared import DataRoot, catalogue_of, data_folder, log, log_to, opened
from benchmark.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmark.analysis.qualitative import Titles
    from benchmark.data.dataset import Dataset, EvaluationCases
    from benchmark.experiments import Run
    from benchmark.recommender import PackedSequences, SequentialRecommender


def recommend(
    run: Annotated[Path, typer.Option(metavar="RUN", help="the folder of a trained run")],
    user: Annotated[str | None, typer.Option(help="a user of the data set")] = None,
    titles: Annotated[bool, typer.Option("--titles", help="the history is the titles that follow")] = False,
    history: Annotated[list[str] | None, typer.Argument(metavar="[TITLE]...", help="oldest first")] = None,
    top: Annotated[int, typer.Option(min=1, help="how many items to recommend")] = 10,
    data: DataRoot = Path("data"),
) -> None:
    """Show a user's history, what a run recommends, and where the held-out item stands.

    With --titles "..." "..." the history is yours: titles of the catalogue, or for methods that read text any at all.
    """
    from benchmark.analysis import rendering
    from benchmark.analysis.qualitative import recommendation_view, titles_of
    from benchmark.evaluation.recommendation import history_of
    from benchmark.evaluation.recommendation import recommend as recommend_items
    from benchmark.experiments import load_run_file
    from benchmark.training.engines import place_to_rank
    from benchmark.training.trainer import ranking_settings

    if (user is None) == (not titles) or titles == (not history):
        raise UserError('name either --user ID or --titles "..." "..."')
    settings = load_run_file(run / "run.yaml")
    log_to(None, settings.label)
    parts = opened(settings, run, data, pretrained=False)
    dataset, model, device = parts.dataset, parts.model, parts.device
    names, ranking = titles_of(dataset), ranking_settings(settings)
    notes = ["Scores are those that items are ranked by."]
    if ranking.mask != "none":
        notes.append("Items of the history are not recommended.")
    target, shown = None, list(history or [])
    if user is not None:
        cases = dataset.cases("test")
        case = _case_of(dataset, cases, user)
        sequence, masked = history_of(dataset, cases, case, ranking)
        target = int(cases.target[case])
        shown = [names.full(int(i)) for i in dataset.items[cases.history_start[case] : cases.history_end[case]]]
    else:
        items, shown, new = _read_titles(shown, names, dataset.item_count, settings)
        sequence = _sequence(dataset, items[-ranking.sequence_length :])
        masked = sequence.items[sequence.items < dataset.item_count] if ranking.mask != "none" else sequence.items[:0]
        if new:
            model = _with_new_texts(settings, run, dataset, names.field, new, data, device)
    if len(shown) > ranking.sequence_length:
        notes.append(f"The method reads the newest {ranking.sequence_length} of the {len(shown)} events.")
    _load(model, run)
    precision = place_to_rank(model, device, bf16=settings.execution.precision == "bf16")
    found = recommend_items(
        model, dataset.item_count, sequence.to(device), masked, ranking, top, target, precision=precision
    )
    if user is not None:
        notes += _noted_rank(run, user, found.rank)
    who = f"user {user}" if user is not None else "a history by titles"
    view = recommendation_view(f"{settings.label} on {settings.dataset}, {who}", names, shown, found, target, notes)
    print(rendering.text([view]))


def _case_of(dataset: Dataset, cases: EvaluationCases, user: str) -> int:
    """The user's case of the test."""
    ids = dataset.user_ids()
    places = {str(ids[index]): case for case, index in enumerate(cases.user)}
    if user not in places:
        some = ", ".join(list(places)[:5])
        raise UserError(f"data set {dataset.card.name} has no user {user!r} with a test item; it has, for one: {some}")
    return places[user]


def _read_titles(titles: list[str], names: Titles, size: int, run: Run) -> tuple[list[int], list[str], list[str]]:
    """Catalogue indices (new texts after the catalogue's own), what to show, and the new texts."""
    items: list[int] = []
    shown: list[str] = []
    new: list[str] = []
    for title in titles:
        item = names.find(title)
        if item is None:
            near = f"; it has, for one: {'; '.join(close)}" if (close := names.near(title)) else ""
            if run.text is None:
                raise UserError(f"{run.label} reads no text, and its catalogue has no title {title!r}{near}")
            log.info("the catalogue has no title %r%s: read as new text", title, near)
            item = size + len(new)
            new.append(title)
            shown.append(f"{title} (new text)")
        else:
            shown.append(names.full(item))
        items.append(item)
    return items, shown, new


def _sequence(dataset: Dataset, items: list[int]) -> PackedSequences:
    """Events one second after another, after the newest of the data set."""
    import torch

    from benchmark.recommender import PackedSequences

    now = int(dataset.timestamps.max()) + 1
    times = torch.arange(now, now + len(items) + 1)
    offsets = torch.tensor([0, len(items)])
    return PackedSequences(torch.tensor(items), times[:-1], times[1:], offsets, len(items))


def _with_new_texts(
    run: Run, folder: Path, dataset: Dataset, field: str, texts: list[str], data: Path, device: torch.device
) -> SequentialRecommender:
    """The run's untrained model over its catalogue and the texts after it."""
    from benchmark.data.new_texts import with_new_texts
    from benchmark.data.text import TextSettings, tokens_folder
    from benchmark.training import registry

    settings = TextSettings.from_mapping(run.text or {})
    tokens = tokens_folder(data_folder(run, data), settings)
    catalogue = with_new_texts(catalogue_of(run, dataset.item_count, data, device), tokens, settings, field, texts)
    length = max(run.training.sequence_length, run.evaluation.sequence_length)
    return registry.build(run.class_, run.model, catalogue, length, pretrained=False, kept=folder)


def _load(model: SequentialRecommender, folder: Path) -> None:
    from benchmark.training.checkpoint import load_weights

    try:
        model.load_state_dict(load_weights(folder / "model.safetensors"))
    except RuntimeError as error:
        raise UserError(
            f"{folder}: its weights do not fit ({' '.join(str(error).split())[:160]}); a method with a vector an item "
            "can read titles of its catalogue only"
        ) from error


def _noted_rank(folder: Path, user: str, rank: float | None) -> list[str]:
    """Whether ranks.parquet says the same of the user."""
    from benchmark.evaluation.metrics import read_ranks

    if not (folder / "ranks.parquet").is_file():
        return []
    table = read_ranks(folder / "ranks.parquet")
    known = float(table.rank[table.user_id.to_pylist().index(user)])
    if rank == known:
        return [f"ranks.parquet has the same rank, {known:g}."]
    return [
        f"ranks.parquet has rank {known:g}: rounding between devices can move a rank, another model or data does so."
    ]
