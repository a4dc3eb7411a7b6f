"""SASRec over pictures: a vision Transformer turns an item's cover into its embedding, trained end to end or frozen.

Cheng et al., An Image Dataset for Benchmarking Recommender Systems with Raw Pixels, SDM 2024 (arXiv 2309.06789);
westlake-repl/PixelRec, code/REC/model/PixelNet/mosasrec.py, code/REC/model/load.py (clip-vit-base-patch32, method
"mean") and code/overall/ViT.yaml. An item's embedding is the mean, over all output tokens of the vision model, of ReLU
of a linear map. SASRec above it is that of `baselines.sasrec`, with scores that are dot products. The paper states
binary cross-entropy and the code computes BPR (`benchmark.training.one_negative` has both).

Deviations: a negative is drawn from the whole catalogue, in the source from the items outside the sequence. One weight
decay for all weights; the source has 0.1 for SASRec and 0 for the vision model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, CLIPVisionModel

from baselines.sasrec import SASRec, SASRecSettings
from benchmark.recommender import Catalogue


@dataclass(frozen=True)
class VisionSettings:
    """Which vision model. source: "scratch" builds `config`, a transformers configuration with `model_type`; "local"
    reads the folder `path`, "hub" the repository `path` at `revision`; of a CLIP its vision part. trained_layers: so
    many of its last layers are trained, None trains all of it and 0 freezes it."""

    source: Literal["scratch", "local", "hub"] = "scratch"
    path: str = ""
    revision: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    trained_layers: int | None = None


def load_vision_model(settings: VisionSettings) -> Any:
    """A vision Transformer of transformers; a missing or unsuitable source is a ValueError with one sentence."""
    if settings.source == "scratch":
        changes = dict(settings.config)
        kind = changes.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"model_type {kind!r} in `config` is not one that transformers has, such as vit")
        config = CONFIG_MAPPING[kind]()
        if unknown := [key for key in changes if not hasattr(config, key)]:
            raise ValueError(f"`config` has {', '.join(unknown)}, which {kind} does not know")
        return AutoModel.from_config(CONFIG_MAPPING[kind](**changes))
    if settings.source == "hub" and not settings.revision:
        raise ValueError(f"model {settings.path!r} needs `revision`, a commit of its repository on the hub")
    if settings.source == "local" and not (Path(settings.path) / "config.json").is_file():
        raise ValueError(f"{settings.path} is no folder with a config.json and weights beside it")
    options = {"revision": settings.revision} if settings.source == "hub" else {}
    try:
        config = AutoConfig.from_pretrained(settings.path, trust_remote_code=False, **options)
        kind = CLIPVisionModel if config.model_type in ("clip", "clip_vision_model") else AutoModel
        return kind.from_pretrained(settings.path, dtype=torch.float32, **options)
    except Exception as error:  # of a dozen types: network, JSON, safetensors, shapes
        raise ValueError(f"model {settings.path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


@dataclass(frozen=True)
class ImageSASRecSettings:
    """Defaults of the sequence model are those of code/PixelNet/sasrec.yaml."""

    vision_model: VisionSettings = field(default_factory=VisionSettings)
    sasrec: SASRecSettings = field(default_factory=lambda: SASRecSettings(feedforward_multiplier=2))


class ImageSASRec(SASRec):
    """SASRec whose item embeddings are read from pixels instead of a table."""

    Settings = ImageSASRecSettings  # type: ignore[assignment]  # of its own, with SASRec's inside
    similarity = "dot"

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: ImageSASRecSettings) -> None:
        if catalogue.pixels is None:
            raise ValueError("ImageSASRec reads pictures: give the run an `images` section with their folder")
        super().__init__(Catalogue(1), sequence_length, settings.sasrec)
        del self.item_embedding  # pictures take the table's place
        self.pixels = catalogue.pixels  # no buffer: a large catalogue stays on the host
        self.vision = load_vision_model(settings.vision_model)
        size = getattr(self.vision.config, "image_size", None)
        if size is not None and size != self.pixels.shape[1]:
            raise ValueError(f"the vision model takes {size} x {size} pixels: set images.size to {size}")
        if getattr(self.vision, "pooler", None) is not None:
            self.vision.pooler = None  # reads one token, and here all are read
        _train_last(self.vision, settings.vision_model.trained_layers)
        self.projection = nn.Linear(self.vision.config.hidden_size, settings.sasrec.width)
        nn.init.xavier_normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width)."""
        device = self.projection.weight.device
        pictures = self.pixels[items.to(self.pixels.device)].to(device)
        inputs = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1  # from 0..255 to -1..1
        states = self.vision(pixel_values=inputs).last_hidden_state
        embeddings: Tensor = torch.relu(self.projection(states)).mean(dim=1)
        return embeddings

    def item_sizes(self, items: Tensor) -> Tensor | None:
        """Every picture costs the same: its pixels."""
        return torch.full((len(items),), self.pixels.shape[1] * self.pixels.shape[2])

    def item_table(self) -> Tensor | None:  # type: ignore[override]
        return None  # there is no table any more


def _train_last(vision: nn.Module, layers: int | None) -> None:
    """Leave the gradient to the last so many layers alone."""
    if layers is None:
        return
    every = [module for name, module in vision.named_modules() if isinstance(module, nn.ModuleList)]
    if not every or not 0 <= layers <= len(every[0]):
        raise ValueError(f"trained_layers is {layers}, and the vision model has {len(every[0]) if every else 0} layers")
    vision.requires_grad_(False)
    for layer in every[0][len(every[0]) - layers :]:
        layer.requires_grad_(True)
