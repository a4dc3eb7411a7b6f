"""What the language models of a run are, kept beside its weights: a trained run is opened without the models that it
began with, whose files may be gone and take seconds to read (GGUF) or a network (hub).

architectures/<hash of what names the model>/config.json is a configuration as transformers writes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from benchmark.files import write_text

FOLDER = "architectures"
_NAMING = ("source", "package", "path", "revision", "file", "config", "layers")  # other settings leave it as it is


def write_architectures(model: nn.Module, folder: Path) -> None:
    """Keep the `architecture` of every module of the model that says what settings it was `loaded_by`."""
    for module in model.modules():
        if _is_loaded(settings := getattr(module, "loaded_by", None)):
            write_text(_folder(settings, folder) / "config.json", str(module.architecture))


def without_pretrained_weights(settings: Any, folder: Path | None) -> Any:
    """The same settings of a model, with False for every `pretrained` in them. A language model whose configuration is
    kept in the folder is built by that, and its source is not read."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "pretrained":
            changes[field.name] = False
        elif dataclasses.is_dataclass(value):
            changes[field.name] = without_pretrained_weights(value, folder)
    if folder is not None and _is_loaded(settings) and (kept := _folder(settings, folder) / "config.json").is_file():
        changes |= {"source": "local", "path": str(kept.parent), "file": "", "config": {}, "layers": None}
    return dataclasses.replace(settings, **changes)


def _is_loaded(settings: Any) -> bool:
    return hasattr(settings, "pretrained") and settings.source != "scratch"


def _folder(settings: Any, folder: Path) -> Path:
    naming = {name: getattr(settings, name) for name in _NAMING}
    content = json.dumps(naming, sort_keys=True, ensure_ascii=True)
    return folder / FOLDER / hashlib.sha256(content.encode("ascii")).hexdigest()[:10]
