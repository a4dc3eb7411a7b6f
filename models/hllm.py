"""HLLM (arXiv 2409.12740): an Item LLM turns texts into embeddings, a User LLM predicts the next one.

Both are any language model of transformers, unmodified, trained together end to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender
from models.item_llm import ItemLLM, Pooling
from models.pretrained import BackboneSettings, check_length, final_norm, layers, load_backbone, width
from models.user_llm import UserInput, UserLLM, UserModelSettings, load_user_backbone


@dataclass(frozen=True)
class HLLMSettings:
    """pooling: how a text becomes one vector. share_models: the item model serves both roles, and user_model is not
    looked at. user_inputs: what the User LLM reads, summed; the paper's model reads text alone."""

    item_model: BackboneSettings = field(default_factory=BackboneSettings)
    user_model: UserModelSettings = field(default_factory=UserModelSettings)
    pooling: Pooling = "item_token"
    share_models: bool = False
    user_inputs: tuple[UserInput, ...] = ("text",)


class HLLM(SequentialRecommender):
    """Weights are float32; under autocast the matrix products are what it says."""

    Settings = HLLMSettings
    similarity = "cosine"
    tokens: Tensor
    token_offsets: Tensor

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: HLLMSettings) -> None:
        super().__init__()
        if catalogue.tokens is None or catalogue.token_offsets is None:
            raise ValueError("HLLM reads texts: give the method a `text` section, so that the items are tokenized")
        # Not persistent: texts belong to the data set, and a checkpoint is read with the data set at hand.
        self.register_buffer("tokens", catalogue.tokens, persistent=False)
        self.token_offsets = catalogue.token_offsets.cpu()  # stays on the host, which cuts the texts into chunks
        lengths = catalogue.token_offsets.diff()
        if settings.pooling == "mean" and (empty := int((lengths == 0).sum())):
            raise ValueError(f"{empty} items have no token to average: set pooling to item_token")

        item_backbone = load_backbone(settings.item_model, vocabulary_size=catalogue.vocabulary_size)
        check_length(item_backbone, int(lengths.max()) + (settings.pooling == "item_token"), "the longest text")
        self.item_llm = ItemLLM(item_backbone, settings.pooling, settings.item_model.frozen)
        self.shared = settings.share_models
        user_backbone, user_frozen = item_backbone, settings.item_model.frozen
        if not settings.share_models:
            user_backbone = load_user_backbone(settings.user_model, sequence_length)
            user_frozen = settings.user_model.frozen
        else:
            check_length(user_backbone, sequence_length, "the longest history")
        self.user_llm = UserLLM(user_backbone, width(item_backbone), catalogue.size, settings.user_inputs, user_frozen)

    def item_sizes(self, items: Tensor) -> Tensor:
        """(n,) tokens of each item, [ITEM] included."""
        items = items.cpu()
        lengths = self.token_offsets[items + 1] - self.token_offsets[items]
        return lengths + (self.item_llm.pooling == "item_token")

    def heavy_layers(self) -> list[nn.Module]:
        own = layers(self.item_llm.backbone)
        return own if self.shared else own + self.user_llm.heavy_layers()

    def light_layers(self) -> list[nn.Module]:
        own = final_norm(self.item_llm.backbone)
        return own if self.shared else own + self.user_llm.light_layers()

    def released_state(self, path: Path) -> dict[str, Tensor]:
        from models.released_weights import read_released_weights  # which knows this class

        return read_released_weights(path, self).model

    def embed_items(self, items: Tensor) -> Tensor:
        embeddings: Tensor = self.item_llm(self.tokens, self.token_offsets, items)
        return embeddings

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        predicted: Tensor = self.user_llm(sequences, items)
        return predicted
