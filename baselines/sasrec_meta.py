"""SASRec as Meta's generative-recommenders runs it, the baseline of the HSTU paper and of HLLM's "SASRec (2018)".

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018; architecture of
facebookresearch/generative-recommenders, modeling/sequential/sasrec.py and input_features_preprocessors.py. Against the
SASRec of the released HLLM code (sasrec.py): positions count from the oldest event, item embeddings are scaled by
sqrt(width), the query alone is normalised before attention and is what the residual adds to, and no norm has weights.

Deviations: none in the mathematics. Sequences are packed instead of padded on the right, and the convolutions of kernel
size 1 are written as the linear layers that they are. The last step, L2 normalisation, is `comparable`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.attention import packed_attention
from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender

_NORM_EPSILON = 1e-8


@dataclass(frozen=True)
class MetaSASRecSettings:
    """Defaults are those of configs/ml-1m/sasrec-sampled-softmax-n128-final.gin.

    width: of item embeddings and hidden states; a multiple of heads. feedforward_width: inner width of the feed-forward
    layers, None for width. dropout: on the input, on the attention weights, and twice in a feed-forward layer.
    """

    layers: int = 2
    heads: int = 1
    width: int = 50
    feedforward_width: int | None = None
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Block(nn.Module):
    """x -> FF(norm(q + attention(q, x, x))) with q = norm(x); the feed-forward layer FF adds its own input."""

    def __init__(self, settings: MetaSASRecSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.feedforward_width or settings.width
        self.heads, self.attention_dropout = settings.heads, settings.dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_output = nn.Linear(width, width)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.activation = F.gelu if settings.activation == "gelu" else F.relu
        self.dropout = nn.Dropout(settings.dropout)
        self._initialise(width)

    def _initialise(self, width: int) -> None:
        # Xavier normal; query, key and value are one (3 width, width) matrix in the source. Biases of attention start
        # at 0, those of the feed-forward layers as PyTorch draws them: the source's loop skips one-dimensional tensors.
        for linear in (self.query, self.key_value):
            nn.init.normal_(linear.weight, std=(2 / (width + 3 * width)) ** 0.5)
        for linear in (self.attention_output, self.inner, self.outer):
            nn.init.xavier_normal_(linear.weight)
        for linear in (self.query, self.key_value, self.attention_output):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        query = _norm(x)
        k, v = self.key_value(x).view(len(x), 2, self.heads, -1).unbind(1)
        attended = packed_attention(
            self.query(query).view(len(x), self.heads, -1),
            k,
            v,
            offsets,
            max_length,
            causal=True,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        x = _norm(query + self.attention_output(attended.flatten(1)))
        inner = self.dropout(self.activation(self.inner(x)))
        out: Tensor = x + self.dropout(self.outer(inner))
        return out


class Blocks(nn.ModuleList):
    """Blocks one after another, called as one."""

    def forward(self, x: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        for block in self:
            x = block(x, offsets, max_length)
        return x


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPSILON)


class MetaSASRec(SequentialRecommender):
    """Learned item ids, scaled by sqrt(width), and positions counted from the oldest event; then causal blocks."""

    Settings = MetaSASRecSettings

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: MetaSASRecSettings) -> None:
        super().__init__()
        self.item_scale = settings.width**0.5
        self.item_embedding = nn.Embedding(catalogue.size, settings.width)
        self.position_embedding = nn.Embedding(sequence_length, settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = Blocks(Block(settings) for _ in range(settings.layers))
        for table, std in ((self.item_embedding, 0.02), (self.position_embedding, settings.width**-0.5)):
            nn.init.trunc_normal_(table.weight, std=std, a=-2 * std, b=2 * std)

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width)."""
        embeddings: Tensor = self.item_embedding(items)
        return embeddings

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, width) item embeddings -> (t, width) embedding of each event's next item."""
        x: Tensor = self.dropout(items * self.item_scale + self.position_embedding(sequences.positions))
        return self.blocks(x, sequences.offsets, sequences.max_length)  # type: ignore[no-any-return]

    def item_table(self) -> Tensor:
        return self.item_embedding.weight

    def heavy_layers(self) -> list[nn.Module]:
        return [self.blocks]
