"""HLLM on cached item embeddings (paper table 8): a trained Item LLM's output, read from a file, and a User LLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender
from models.pretrained import BackboneSettings, check_length, load_backbone
from models.user_llm import UserInput, UserLLM


@dataclass(frozen=True)
class CachedItemsSettings:
    """user_inputs: see HLLMSettings."""

    user_model: BackboneSettings = field(default_factory=BackboneSettings)
    user_inputs: tuple[UserInput, ...] = ("text",)


class CachedItems(SequentialRecommender):
    """The embeddings are those of another run's Item LLM and are not trained; the User LLM is the one of HLLM, and its
    weights have the same names, so that it can start from that run's."""

    Settings = CachedItemsSettings
    similarity = "cosine"
    embeddings: Tensor

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: CachedItemsSettings) -> None:
        super().__init__()
        if catalogue.embeddings is None:
            raise ValueError(
                "CachedItems reads another run's item embeddings: give the row starts_from with cached_items: true"
            )
        # Not persistent: they are kept once, beside the run that made them.
        self.register_buffer("embeddings", catalogue.embeddings, persistent=False)
        backbone = load_backbone(settings.user_model, vocabulary_size=None)
        check_length(backbone, sequence_length, "the longest history")
        self.user_llm = UserLLM(
            backbone, catalogue.embeddings.shape[1], catalogue.size, settings.user_inputs, settings.user_model.frozen
        )

    def heavy_layers(self) -> list[nn.Module]:
        return self.user_llm.heavy_layers()

    def light_layers(self) -> list[nn.Module]:
        return self.user_llm.light_layers()

    def embed_items(self, items: Tensor) -> Tensor:
        return self.embeddings[items]

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        predicted: Tensor = self.user_llm(sequences, items)
        return predicted
