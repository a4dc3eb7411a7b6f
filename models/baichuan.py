"""Baichuan2-7B as a Llama: its architecture is Llama's but for one fused attention matrix, and its own classes would be
remote code. (Its 13B sibling has ALiBi instead of rotary positions and is not a Llama.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.utils import cached_file


def is_baichuan(location: dict[str, Any]) -> bool:
    """location: what transformers' from_pretrained would be given to find the model; empty for none."""
    return bool(location) and "gguf_file" not in location and _raw(location).get("model_type") == "baichuan"


def baichuan_configuration(location: dict[str, Any]) -> LlamaConfig:
    raw = _raw(location)
    if "max_position_embeddings" not in raw:
        raise ValueError("this Baichuan has no max_position_embeddings: the 13B kind uses ALiBi and is not a Llama")
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "max_position_embeddings", "initializer_range", "rms_norm_eps",
    )  # fmt: skip
    return LlamaConfig(**{name: raw[name] for name in names if name in raw}, tie_word_embeddings=False)


def load_baichuan_weights(model: nn.Module, location: dict[str, Any]) -> set[str]:
    """Fill a bare Llama, shard by shard; returns the names of the weights that no file has."""
    folder = Path(location["pretrained_model_name_or_path"])
    if "revision" in location:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.bin"]
        folder = Path(snapshot_download(str(folder), revision=location["revision"], allow_patterns=patterns))
    wanted = set(model.state_dict())
    for shard in _shards(folder):
        state = load_file(shard) if shard.suffix == ".safetensors" else torch.load(shard, "cpu", weights_only=True)
        state = {name.removeprefix("model."): x for name, x in split_fused_attention(state).items()}
        used = {name: x for name, x in state.items() if name in wanted}
        model.load_state_dict(used, strict=False)
        wanted -= set(used)
    return wanted


def split_fused_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under Llama's names: W_pack (3 * width, width) is the query, key and value matrices in one."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".W_pack.weight"):
            stem, parts = name.removesuffix("W_pack.weight"), tensor.chunk(3)
            result |= {f"{stem}{x}_proj.weight": part.clone() for x, part in zip("qkv", parts, strict=True)}
        else:
            result[name] = tensor
    return result


def _raw(location: dict[str, Any]) -> dict[str, Any]:
    revision = {"revision": location["revision"]} if "revision" in location else {}
    path = cached_file(location["pretrained_model_name_or_path"], "config.json", **revision)
    content = json.loads(Path(path or "").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("config.json does not hold a configuration")
    return content


def _shards(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / file for file in sorted(files)]
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"folder {folder} has neither model.safetensors nor pytorch_model.bin")
