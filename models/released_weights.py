"""The authors' checkpoints (bytedance/HLLM, `pytorch_model.bin`) as weights of this project's HLLM."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.baichuan import split_fused_attention
from models.hllm import HLLM

_WRAPPERS = re.compile(r"^(_forward_module\.|module\.)+")  # of DeepSpeed, Lightning Fabric and DDP
# Parts that HLLM does not use: heads, poolers, the User LLM's word vectors, and frequencies that the model computes.
_UNUSED = re.compile(
    r"(^|\.)lm_head\.|(^|\.)pooler\.|\.rotary_emb\.inv_freq$|\.position_ids$|^user_llm\.(model\.)?embed_tokens\."
)


@dataclass(frozen=True)
class ReleasedWeights:
    """model: the state of an HLLM, float32. logit_scale: () the logarithm of the inverse temperature."""

    model: dict[str, Tensor]
    logit_scale: Tensor


def read_released_weights(path: Path, model: HLLM) -> ReleasedWeights:
    """Read a released checkpoint for a model of the same architecture.

    Nothing in the file is executed (weights_only). ValueError names every key that is missing, unexpected or of
    another shape.
    """
    found = {}
    for name, tensor in split_fused_attention(_read(path)).items():
        name = _WRAPPERS.sub("", name)
        if not _UNUSED.search(name):
            found[_our_name(name)] = tensor.float()
    logit_scale = found.pop("logit_scale", None)
    if "item_llm.item_token" in found:
        found["item_llm.item_token"] = found["item_llm.item_token"].flatten()
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in found]
    if logit_scale is None:
        problems.append("missing: logit_scale")
    problems += [f"unexpected: {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name].shape)} and not {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems or logit_scale is None:
        raise ValueError(f"{path} does not fit this model; {'; '.join(problems)}")
    return ReleasedWeights(found, logit_scale.reshape(()))


def _our_name(name: str) -> str:
    """item_llm.model.norm.weight (decoders), item_llm.encoder... (BERT) -> item_llm.backbone.norm.weight and so on."""
    if name == "item_emb_tokens":
        return "item_llm.item_token"
    return re.sub(r"^(item_llm|user_llm)\.(model\.)?", r"\1.backbone.", name)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"released checkpoint {path} does not exist")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a zip, pickle or system error, by what is wrong with the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is no complete PyTorch file of plain tensors ({reason})") from error
    for wrapper in ("state_dict", "module", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"{path} does not hold a flat mapping of names to tensors")
    return content
