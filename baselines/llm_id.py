"""SASRec-1B: a language model's architecture over learned item ids, the control for what HLLM gains from text.

arXiv 2409.12740v1, table 7 and section 4.4; bytedance/HLLM @2deed17, code/REC/model/IDNet/llmidrec.py and
code/IDNet/llama_id.yaml. The paper calls it SASRec-1B because SASRec is a causal Transformer over item ids; no part of
SASRec's own architecture is in it. HSTU-1B, its counterpart, is `baselines.hstu.HSTU` with other settings.

Deviations: positions count from 0 in every history, where the source counts the padding on the left as well; with
rotary positions only distances matter, so this changes nothing. Weights are float32, in the source bfloat16. The item
table has no row for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender
from models.pretrained import BackboneSettings, check_length, is_causal, load_backbone, run_packed, width

TINYLLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class LLMOverIdsSettings:
    """Defaults are those of code/IDNet/llama_id.yaml.

    user_model: any decoder; from scratch in the paper. item_width: of the item table, brought to the model's width by a
    bias-free matrix, which is left out where both are equal. initial_std: of the item table.
    """

    user_model: BackboneSettings = field(default_factory=lambda: BackboneSettings(config=dict(TINYLLAMA)))
    item_width: int = 512
    initial_std: float = 0.02


class LLMOverIds(SequentialRecommender):
    """Learned item ids, a linear map to the model's width, and a decoder without word embeddings."""

    Settings = LLMOverIdsSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: LLMOverIdsSettings) -> None:
        super().__init__()
        self.backbone = load_backbone(settings.user_model, vocabulary_size=None)
        if not is_causal(self.backbone):
            raise ValueError("the user model must be a decoder: an encoder sees the events that it is to predict")
        check_length(self.backbone, sequence_length, "the longest history")
        own_width = width(self.backbone)
        self.item_embedding = nn.Embedding(catalogue.size, settings.item_width)
        same = settings.item_width == own_width
        self.item_projection = nn.Identity() if same else nn.Linear(settings.item_width, own_width, bias=False)
        nn.init.normal_(self.item_embedding.weight, std=settings.initial_std)

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width)."""
        embeddings: Tensor = self.item_projection(self.item_embedding(items))
        return embeddings

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, width) item embeddings -> (t, width) embedding of each event's next item."""
        return run_packed(self.backbone, items, sequences.positions, sequences.offsets, sequences.max_length)
