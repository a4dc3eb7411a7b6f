"""SASRec as the released HLLM code runs it: causal post-norm Transformer blocks over learned item ids.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018; architecture of bytedance/HLLM @2deed17,
code/REC/model/IDNet/sasrec.py and code/REC/model/layers.py, which is RecBole's: LayerNorm *after* each residual, GELU,
and biases everywhere. Meta's SASRec is another model: see sasrec_meta.py.

Deviations: none in the mathematics. Sequences are packed instead of padded on the left, and query, key and value share
one matrix, initialised as the three were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.attention import packed_attention
from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender


@dataclass(frozen=True)
class SASRecSettings:
    """Defaults are those of code/IDNet/sasrec.yaml.

    width: of item embeddings and hidden states; a multiple of heads. feedforward_multiplier: inner width of the
    feed-forward layers as a multiple of width. dropout: on the input, and on what each residual adds;
    attention_dropout: on the attention weights. initial_std: of all matrices and embeddings.
    """

    layers: int = 2
    heads: int = 4
    width: int = 512
    feedforward_multiplier: int = 1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-12
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Block(nn.Module):
    """Self-attention and a feed-forward layer; each is added to its input, and the sum is normalised."""

    def __init__(self, settings: SASRecSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.width * settings.feedforward_multiplier
        self.heads, self.attention_dropout = settings.heads, settings.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=settings.layer_norm_epsilon)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=settings.layer_norm_epsilon)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        q, k, v = self.query_key_value(x).view(len(x), 3, self.heads, -1).unbind(1)
        attended = packed_attention(
            q, k, v, offsets, max_length, causal=True, dropout=self.attention_dropout if self.training else 0.0
        )
        x = self.attention_norm(x + self.dropout(self.attention_output(attended.flatten(1))))
        out: Tensor = self.feedforward_norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))
        return out


class Blocks(nn.ModuleList):
    """Blocks one after another, called as one."""

    def __init__(self, settings: SASRecSettings) -> None:
        super().__init__(Block(settings) for _ in range(settings.layers))

    def forward(self, x: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        for block in self:
            x = block(x, offsets, max_length)
        return x


class SASRec(SequentialRecommender):
    """Learned item ids and positions, then causal post-norm Transformer blocks.

    The released code pads on the left, so a position is counted from the newest event: that one always has the last
    row of the table, sequence_length - 1, however short its history.
    """

    Settings = SASRecSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: SASRecSettings) -> None:
        super().__init__()
        self.sequence_length = sequence_length
        self.item_embedding = nn.Embedding(catalogue.size, settings.width)
        self.position_embedding = nn.Embedding(sequence_length, settings.width)
        self.input_norm = nn.LayerNorm(settings.width, eps=settings.layer_norm_epsilon)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = Blocks(settings)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=settings.initial_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width)."""
        embeddings: Tensor = self.item_embedding(items)
        return embeddings

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, width) item embeddings -> (t, width) embedding of each event's next item."""
        positions = self.sequence_length - 1 - sequences.positions_from_end
        x: Tensor = self.dropout(self.input_norm(items + self.position_embedding(positions)))
        return self.blocks(x, sequences.offsets, sequences.max_length)  # type: ignore[no-any-return]

    def item_table(self) -> Tensor:
        return self.item_embedding.weight

    def heavy_layers(self) -> list[nn.Module]:
        return [self.blocks]
