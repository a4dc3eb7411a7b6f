"""Texts that no item of the catalogue has, read as the run's own items are: same prompt, field and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmark.data.text import TextSettings, encode, item_text
from benchmark.errors import UserError
from benchmark.recommender import Catalogue


def with_new_texts(
    catalogue: Catalogue, folder: Path, settings: TextSettings, field: str, texts: Sequence[str]
) -> Catalogue:
    """The catalogue with items after its own, which have a text in one field and nothing in the others.

    folder: the token store that the catalogue's tokens are of.
    """
    if catalogue.tokens is None or catalogue.token_offsets is None or catalogue.embeddings is not None:
        raise UserError("the run reads no item texts when it ranks, so that only titles of its catalogue can be read")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare exceptions
        raise UserError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}); make it again with `python -m benchmark tokenize`"
        ) from error
    parts, lengths = encode(
        tokenizer, [item_text({field: t}, [field], settings.prompt) for t in texts], settings.text_length
    )
    kept = torch.from_numpy(np.minimum(lengths, settings.text_length).cumsum())
    offsets, tokens = catalogue.token_offsets, catalogue.tokens
    return replace(
        catalogue,
        size=catalogue.size + len(texts),
        tokens=torch.cat([tokens, torch.from_numpy(np.concatenate(parts)).to(tokens)]),
        token_offsets=torch.cat([offsets, (offsets[-1].cpu() + kept).to(offsets)]),
    )
