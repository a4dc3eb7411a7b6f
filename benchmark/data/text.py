"""The token store: every item's text as the Item LLM reads it, tokenized once a data set and text settings.

data/<dataset>/<protocol>/tokens-<hash of the settings>/ holds tokens.npy (flat int32), token_offsets.npy (int64),
tokenizer.json, and the card tokens.json, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer
from tokenizers import __version__ as tokenizers_version

from benchmark.data.dataset import Dataset, load_dataset
from benchmark.data.tokenizers import (
    TEXTS_TO_TRAIN_ON,
    TokenizerSettings,
    make_tokenizer,
    tokenizer_hash,
    vocabulary_size,
)
from benchmark.errors import UserError
from benchmark.files import write_atomically, write_text
from benchmark.settings import Settings, validated

if TYPE_CHECKING:
    import torch

    from benchmark.recommender import Catalogue

FORMAT = 1  # of the store and of what the settings mean; raise it when either changes
PROMPT = "Compress the following sentence into embedding: "
_TEXTS_AT_ONCE = 8192
_QUANTILES = (5, 25, 50, 75, 95, 99)

log = logging.getLogger(__name__)


class TextSettings(Settings):
    """fields: of the data set, in this order; None takes all of them in the data set's order. text_length: most tokens
    of a text, BOS and prompt included, [ITEM] not."""

    fields: tuple[str, ...] | None = None
    prompt: str = PROMPT
    text_length: int = Field(default=256, gt=0)
    tokenizer: TokenizerSettings = TokenizerSettings()

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> TextSettings:
        return validated(cls, content, "text")

    def hash(self) -> str:
        """Ten hexadecimal digits that name the store; equal settings have equal ones, on every platform."""
        content = json.dumps({"format": FORMAT, **self.model_dump(mode="json")}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode("ascii")).hexdigest()[:10]


def item_text(values: Mapping[str, str | None], fields: Sequence[str], prompt: str) -> str:
    """The prompt, then `key: value` of every field that has a value, without anything between them (released code).

    An item without any value in the data set has no record in the released code's sense; its text is empty.
    """
    if not any(values.values()):
        return ""
    return prompt + "".join(f"{key}: {value}" for key in fields if (value := values.get(key)))


def tokens_folder(dataset_folder: Path, settings: TextSettings) -> Path:
    return dataset_folder / f"tokens-{settings.hash()}"


def make_tokens(dataset_folder: Path, settings: TextSettings) -> Path:
    """Tokenize a prepared data set's items; returns the store's folder."""
    dataset = load_dataset(dataset_folder)
    known = dataset.card.text_fields
    fields = tuple(known) if settings.fields is None else settings.fields
    if not known or not fields:
        raise UserError(f"data set {dataset.card.name} has no item texts, so no method that reads text can use it")
    if unknown := [name for name in fields if name not in known]:
        raise UserError(
            f"data set {dataset.card.name} has no text field {unknown[0]!r}; its fields are: {', '.join(known)}; mend "
            "text.fields"
        )
    tokenizer = tokenizer_for(dataset, settings.tokenizer, fields, settings.prompt)
    empty = 0

    def texts() -> Iterator[str]:
        nonlocal empty
        for text in texts_of(dataset, fields, settings.prompt):
            empty += not text
            yield text

    parts, lengths = encode(tokenizer, texts(), settings.text_length)
    kept = np.minimum(lengths, settings.text_length)
    offsets = np.concatenate([[0], kept.cumsum()]).astype("<i8")

    folder = tokens_folder(dataset_folder, settings)
    (folder / "tokens.json").unlink(missing_ok=True)  # while the others are replaced, the store is not whole
    write_atomically(folder / "tokens.npy", lambda path: _write_flat(path, parts, int(offsets[-1])))
    write_atomically(folder / "token_offsets.npy", lambda path: _write_flat(path, [offsets], len(offsets)))
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    card = {
        "format": FORMAT,
        "dataset": dataset.card.name,
        "split_sha256": dataset.card.split_sha256,
        "settings": settings.model_dump(mode="json"),
        "fields": list(fields),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "vocabulary_size": vocabulary_size(tokenizer),
        "counts": {
            "items": len(lengths),
            "tokens": int(offsets[-1]),
            "items_without_text": empty,
        },
        "length": {
            "mean": round(float(kept.mean()), 3),
            **{f"p{q}": int(np.percentile(kept, q, method="inverted_cdf")) for q in _QUANTILES},
            "max": int(kept.max()),
        },
        "truncated": round(float((lengths > settings.text_length).mean()), 6),  # share of items
        "sha256": {"tokens": _digest(parts), "offsets": _digest([offsets])},
        "created_by": {"tokenizers": tokenizers_version, "numpy": np.__version__},
    }
    write_text(folder / "tokens.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    log.info("%d tokens of %d items, %.1f an item, in %s", offsets[-1], len(lengths), kept.mean(), folder)
    return folder


def texts_of(dataset: Dataset, fields: Sequence[str], prompt: str) -> Iterator[str]:
    """The text of every item of the catalogue, one after another."""
    return (item_text(values, fields, prompt) for values in dataset.iterate_item_texts())


def tokenizer_for(dataset: Dataset, settings: TokenizerSettings, fields: Sequence[str], prompt: str) -> Tokenizer:
    """The tokenizer of these settings; one that is trained learns from texts evenly spaced in the catalogue."""
    if settings.source != "train":
        return make_tokenizer(settings, [])
    step = -(-dataset.item_count // TEXTS_TO_TRAIN_ON)
    return make_tokenizer(settings, list(islice(texts_of(dataset, fields, prompt), None, None, step)))


def encode(
    tokenizer: Tokenizer, texts: Iterable[str], text_length: int
) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Parts of the flat int32 token ids, each text cut after text_length tokens, and (n,) the lengths before the cut.

    Special tokens count as any other: where a tokenizer ends texts with one, a text that is too long loses it, as in
    the released code.
    """
    parts: list[np.ndarray[Any, Any]] = []
    lengths: list[int] = []
    started = time.monotonic()
    for batch in token_batches(tokenizer, texts):
        lengths.extend(map(len, batch))
        parts.append(np.concatenate([np.asarray(ids[:text_length], dtype="<i4") for ids in batch]))
        done, seconds = len(lengths), time.monotonic() - started
        log.debug("%d items tokenized, %.0f a second", done, done / max(seconds, 1e-9))
    return parts, np.asarray(lengths, dtype=np.int64)


def token_batches(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[list[int]]]:
    """The token ids of many texts at a time, uncut."""
    waiting = iter(texts)
    while batch := list(islice(waiting, _TEXTS_AT_ONCE)):
        yield [encoding.ids for encoding in tokenizer.encode_batch_fast(batch)]


def load_tokens(folder: Path, size: int, device: torch.device | str) -> Catalogue:
    """The catalogue of `size` items with its tokens; on the CPU they stay memory-mapped."""
    import torch  # late: Snakemake and all its jobs read the settings above, and torch takes seconds

    from benchmark.recommender import Catalogue

    mend = "make it again with `python -m benchmark tokenize`"
    if not (folder / "tokens.json").is_file():
        raise UserError(f"there is no token store {folder}; {mend}")
    try:
        card = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        tokens, offsets = _array(folder / "tokens.npy", "<i4"), _array(folder / "token_offsets.npy", "<i8")
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']}, this version reads {FORMAT}")
        if len(offsets) != size + 1:
            raise ValueError(f"it holds {len(offsets) - 1} items and the data set {size}")
        if offsets[0] != 0 or offsets[-1] != len(tokens) or len(tokens) != card["counts"]["tokens"]:
            raise ValueError(f"tokens.npy holds {len(tokens)} tokens, which is not what was written")
        dataset_card = folder.parent / "dataset.json"
        if dataset_card.is_file():
            split = json.loads(dataset_card.read_text(encoding="utf-8"))["split_sha256"]
            if split != card["split_sha256"]:
                raise ValueError("it was made for another preparation of the data set")
        vocabulary = int(card["vocabulary_size"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the token store {folder} cannot be used ({error}); {mend}") from error
    return Catalogue(size, torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device), vocabulary)


def _array(path: Path, kind: str) -> np.ndarray[Any, Any]:
    # Copy on write: torch wants writable memory, and the file stays as it is.
    array: np.ndarray[Any, Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.dtype != np.dtype(kind) or array.ndim != 1:
        raise ValueError(f"{path.name} is {array.dtype}{array.shape}, and not flat {np.dtype(kind)}")
    return array


def _write_flat(path: Path, parts: Sequence[np.ndarray[Any, Any]], total: int) -> None:
    """An .npy file of the parts one after another, without joining them in memory."""
    with path.open("wb") as file:
        header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)


def _digest(parts: Sequence[np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data)
    return digest.hexdigest()
