"""What a run takes from another run that it starts from: trained weights, and item embeddings as a data set.

The two runs' folders lie side by side. item_embeddings.npy, beside the source's weights, holds a float32 row an item of
the catalogue, as `embed_items` gives them; item_embeddings.json says of which run and split they are, with their hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.errors import NotFiniteError, UserError
from benchmark.evaluation.ranking import ROWS_AT_ONCE, embed_catalogue
from benchmark.files import write_atomically, write_text
from benchmark.recommender import SequentialRecommender
from benchmark.training.checkpoint import load_weights

EMBEDDINGS, CARD = "item_embeddings.npy", "item_embeddings.json"

log = logging.getLogger(__name__)


@torch.no_grad()
def export_items(
    model: SequentialRecommender,
    size: int,
    folder: Path,
    *,
    run_id: str,
    split_sha256: str,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> str:
    """Write the embeddings of all items, as ranking embeds them, and their card; returns their SHA-256.

    precision: the context that the model runs in. Raises NotFiniteError if a number in them is none.
    """
    model.eval()
    with precision():
        items = embed_catalogue(model, size, ROWS_AT_ONCE, device).float().cpu().numpy()
    if not np.isfinite(items).all():
        raise NotFiniteError("an item's embedding")

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, items.astype("<f4", copy=False), allow_pickle=False)

    (folder / CARD).unlink(missing_ok=True)  # while the array is replaced, the export is not whole
    write_atomically(folder / EMBEDDINGS, write)
    digest = file_sha256(folder / EMBEDDINGS)
    card = {"run": run_id, "items": size, "width": items.shape[1], "split_sha256": split_sha256, "sha256": digest}
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    return digest


def cached_items(folder: Path, size: int, split_sha256: str) -> tuple[Tensor, str]:
    """The exported item embeddings of the run in folder, (size, d) float32 and memory-mapped, and their SHA-256.

    UserError where they are missing, damaged, or of another data set.
    """
    mend = f"write them with `python -m benchmark embed {folder / 'run.yaml'}`"
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} has no exported item embeddings ({CARD}); {mend}")
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        array = np.load(folder / EMBEDDINGS, mmap_mode="c", allow_pickle=False)  # copy-on-write: never changes the file
        if array.dtype != np.dtype("<f4") or array.shape != (card["items"], card["width"]):
            raise ValueError(f"{EMBEDDINGS} is {array.dtype}{array.shape} and its card says otherwise")
        if file_sha256(folder / EMBEDDINGS) != card["sha256"]:
            raise ValueError(f"the SHA-256 of {EMBEDDINGS} is not the one that its card states")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the item embeddings in {folder} are damaged ({error}); {mend}") from error
    if card["split_sha256"] != split_sha256 or card["items"] != size:
        raise UserError(
            f"the item embeddings in {folder} are of the split {card['split_sha256'][:12]} with {card['items']} items, "
            f"and the data set is {split_sha256[:12]} with {size}; train their run on this data set and {mend}"
        )
    return torch.from_numpy(array), str(card["sha256"])


def take_weights(model: SequentialRecommender, source: Path, parts: Sequence[str] | None) -> None:
    """Load the trained weights of another run, of all the model or of its named parts.

    UserError where a part is not in both models, or a weight is missing or of another shape.
    """
    own, found = model.state_dict(), load_weights(source)
    names = list(own)
    for part in parts or ():
        if not any(_in(name, part) for name in own) or not any(_in(name, part) for name in found):
            has = ", ".join(sorted({name.split(".")[0] for name in own} & {name.split(".")[0] for name in found}))
            raise UserError(f"starts_from.parts: {part!r} is no part of both models; they share: {has or 'none'}")
    if parts is not None:
        names = [name for name in own if any(_in(name, part) for part in parts)]
    problems = [f"{name} is missing" for name in names if name not in found]
    problems += [
        f"{name} is {tuple(found[name].shape)} and not {tuple(own[name].shape)}"
        for name in names
        if name in found and found[name].shape != own[name].shape
    ]
    if parts is None:
        problems += [f"{name} is not in this model" for name in found if name not in own]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit the model that starts from it: {'; '.join(problems[:3])}{more}; give both rows the "
            "same model settings, or name what they share in starts_from.parts"
        )
    model.load_state_dict({**own, **{name: found[name] for name in names}})
    log.info("starts from the weights of %s%s", source.parent.name, f", {', '.join(parts)}" if parts else "")


def take_released(model: SequentialRecommender, path: Path, sha256: str | None) -> str:
    """Load the authors' checkpoint; returns its SHA-256. UserError where it is another file or does not fit."""
    if not path.is_file():
        raise UserError(f"the released checkpoint {path} does not exist; put it there, or mend `released.path`")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise UserError(f"{path} has SHA-256 {found[:12]} and {sha256[:12]} was expected; get the file again")
    try:
        model.load_state_dict(model.released_state(path))
    except ValueError as error:
        raise UserError(str(error)) from error
    log.info("starts from the released checkpoint %s", path)
    return found


def _in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
