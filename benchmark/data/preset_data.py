"""The data sets and tokenizers of a preset: config/data.yaml."""

from __future__ import annotations

from pathlib import Path

from benchmark.data.dataset import Protocol
from benchmark.data.tokenizers import TokenizerSettings
from benchmark.errors import UserError
from benchmark.settings import Settings, read_yaml, validated


class PresetData(Settings):
    """datasets: the protocols that each is prepared for. tokenizers: by the name that figure 5 gives them."""

    datasets: dict[str, list[Protocol]]
    tokenizers: dict[str, TokenizerSettings] = {}


def load_preset_data(path: Path) -> dict[str, PresetData]:
    """The entries of a file such as config/data.yaml, by preset."""
    return {name: validated(PresetData, entry, f"{path}, preset {name}") for name, entry in read_yaml(path).items()}


def preset_data(path: Path, preset: str) -> PresetData:
    """One of them."""
    entries = load_preset_data(path)
    if preset not in entries:
        raise UserError(f"{path} has no entry for preset {preset!r}; it has: {', '.join(entries)}")
    return entries[preset]
