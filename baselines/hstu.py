"""HSTU: gated attention whose weights are SiLU(q k + bias) instead of a softmax, over learned item ids.

Zhai et al., Actions Speak Louder than Words, ICML 2024 (arXiv 2402.17152), section 4.1.1. Two baselines are settings of
it. `hstu` is Meta's code (facebookresearch/generative-recommenders, modeling/sequential/hstu.py): positions from the
oldest event, sqrt(width) scaling, input dropout, and a relative bias of positions and time differences. `hstu-hllm` is
what the released HLLM code runs (bytedance/HLLM @2deed17, code/REC/model/IDNet/hstu.py): positions from the newest
event and none of the rest; its switch for the bias builds tables that the forward pass never reads.

Deviations: a time difference within a float32 rounding error of a bucket's edge may fall into the neighbouring bucket.
Tables hold no entries that a causal model cannot read (the future half of the relative positions, HLLM's unused bias
tables). Events are packed everywhere but inside attention, which changes no result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.attention import Padding, pad_packed, padding, unpad
from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender

TIME_BUCKETS = 128  # the last of them takes everything above; the first, 0, is a difference of at most a second
_NORM_EPSILON = 1e-6
_GROUP = 4  # blocks that are compiled as one: all take minutes to compile, one is too little to start kernels for


@dataclass(frozen=True)
class HSTUSettings:
    """Defaults are those of the released HLLM code (code/IDNet/hstu.yaml).

    width: of the hidden states. item_width: of the item table, brought to width by a matrix; None for width itself.
    query_width, value_width: of a head's queries and keys, and values; None for width / heads. dropout: on each gated
    attention output; input_dropout: the same on the input. scale_items: multiply item embeddings by sqrt(width) at the
    input. positions: the end that positions count from. relative_bias: add a learned bias by distance and by time
    difference to the attention scores. spare_length: events beyond the longest history for which the source makes room;
    they enter the divisor of attention. position_init: "small" truncated normal, std 0.02; "xavier" normal.
    """

    layers: int = 2
    heads: int = 4
    width: int = 512
    item_width: int | None = None
    query_width: int | None = None
    value_width: int | None = None
    dropout: float = 0.1
    input_dropout: bool = False
    scale_items: bool = False
    positions: Literal["from_newest", "from_oldest"] = "from_newest"
    relative_bias: bool = False
    spare_length: int = 0
    position_init: Literal["small", "xavier"] = "small"

    def __post_init__(self) -> None:
        if self.width % self.heads and None in (self.query_width, self.value_width):
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; set query_width and value_width"
            )


def bucket_edges() -> Tensor:
    """(TIME_BUCKETS,) int64: the least time difference of buckets 1, 2, ... TIME_BUCKETS."""
    return torch.tensor([math.ceil(math.exp(0.301 * bucket)) for bucket in range(1, TIME_BUCKETS + 1)])


def time_buckets(seconds: Tensor, edges: Tensor) -> Tensor:
    """Bucket of a time difference: floor(ln(max(|dt|, 1)) / 0.301), at most TIME_BUCKETS; integers of any shape.

    Found by comparing integers: a float32 logarithm, as in the source, puts differences next to an edge into either
    bucket, and not the same one on a CPU and a GPU.
    """
    return torch.bucketize(seconds.abs(), edges, right=True)


class _Lookup(torch.autograd.Function):
    """table[index], with a gradient that is summed row by row of the index first.

    The ordinary gradient adds millions of elements to a hundred numbers: on a GPU those additions wait for each other.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = table.numel()
        return table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        rows, gradient = index.flatten(0, -2), gradients[0].flatten(0, -2)
        return gradient.new_zeros(len(rows), ctx.size).scatter_add_(1, rows, gradient).sum(0), None


@dataclass(frozen=True)
class Layout:
    """padding: how t packed events stand in a right-padded (b, max_length) batch. buckets: (b, max_length, max_length)
    time bucket of query and key, None without relative bias. Both are computed once for all layers."""

    padding: Padding
    buckets: Tensor | None


class RelativeBias(nn.Module):
    """One number for the distance of two events and one for their time difference, shared by the heads of a layer.

    The time difference runs from the key's event to the one *after* the query's: to the item that is to be predicted.
    For the newest event that is the time of the request, which a serving system knows.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.by_distance = nn.Parameter(torch.empty(length).normal_(std=0.02))
        self.by_time = nn.Parameter(torch.empty(TIME_BUCKETS + 1).normal_(std=0.02))

    def forward(self, buckets: Tensor) -> Tensor:
        """(b, l, l) time buckets of query and key -> (b, 1, l, l); keys after the query get a value without meaning."""
        place = torch.arange(buckets.shape[-1], device=buckets.device)
        distance = (place[:, None] - place).clamp(min=0)
        bias: Tensor = _Lookup.apply(self.by_time, buckets) + _Lookup.apply(self.by_distance, distance)
        return bias.unsqueeze(1)


class Block(nn.Module):
    """One sequential transduction unit: x + W (u * norm(attention(q, k, v))), with u, v, q, k = SiLU(norm(x) M)."""

    def __init__(self, settings: HSTUSettings, length: int) -> None:
        super().__init__()
        self.heads, self.length, self.dropout = settings.heads, length, settings.dropout
        query_width = settings.query_width or settings.width // settings.heads
        value_width = settings.value_width or settings.width // settings.heads
        self.value_width, self.sizes = value_width, (value_width, query_width, query_width)
        matrix = torch.empty(settings.width, settings.heads * 2 * (value_width + query_width))
        self.uvqk = nn.Parameter(matrix.normal_(std=0.02))
        self.output = nn.Linear(settings.heads * value_width, settings.width)  # its bias starts as PyTorch draws it
        nn.init.xavier_uniform_(self.output.weight)
        self.relative_bias = RelativeBias(length) if settings.relative_bias else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        gate_width = self.heads * self.value_width
        uvqk = F.silu(F.layer_norm(x, x.shape[-1:], eps=_NORM_EPSILON) @ self.uvqk)
        attended = self._attend(uvqk[:, gate_width:], layout)
        gated = uvqk[:, :gate_width] * F.layer_norm(attended, (gate_width,), eps=_NORM_EPSILON)
        out: Tensor = x + self.output(F.dropout(gated, self.dropout, self.training))
        return out

    def _attend(self, vqk: Tensor, layout: Layout) -> Tensor:
        """(t, heads * (value_width + 2 query_width)) -> (t, heads * value_width)."""
        padded = pad_packed(vqk, layout.padding)
        v, q, k = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, l, value_width or query_width)
            for part in padded.split([self.heads * size for size in self.sizes], dim=-1)
        )
        scores = q @ k.transpose(-1, -2)
        if self.relative_bias is not None and layout.buckets is not None:
            scores = scores + self.relative_bias(layout.buckets)
        weights = F.silu(scores).tril()  # no softmax: what is left out is 0; padding stands after every real query
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return unpad(attended, layout.padding) / self.length


class Blocks(nn.ModuleList):
    """Blocks one after another, called as one."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(t, width) packed events -> (t, width)."""
        for block in self:
            x = block(x, layout)
        return x


class HSTU(SequentialRecommender):
    """Learned item ids and positions, then sequential transduction units.

    The divisor of attention is sequence_length + spare_length for every user, as in both sources: the padded length.
    """

    Settings = HSTUSettings
    edges: Tensor

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: HSTUSettings) -> None:
        super().__init__()
        self.settings, self.sequence_length = settings, sequence_length
        length, width = sequence_length + settings.spare_length, settings.width
        item_width = settings.item_width or width
        self.item_embedding = nn.Embedding(catalogue.size, item_width)
        self.item_projection = nn.Linear(item_width, width, bias=False) if item_width != width else nn.Identity()
        self.position_embedding = nn.Embedding(length, width)
        self.blocks = Blocks(Block(settings, length) for _ in range(settings.layers))
        # The same blocks again, in a tuple, where their weights are not listed twice.
        self._groups = tuple(Blocks(self.blocks[i : i + _GROUP]) for i in range(0, settings.layers, _GROUP))
        self.register_buffer("edges", bucket_edges(), persistent=False)
        for weight in (
            self.item_embedding.weight, self.position_embedding.weight, *self.item_projection.parameters()
        ):  # fmt: skip
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
        if settings.position_init == "xavier":
            nn.init.xavier_normal_(self.position_embedding.weight)

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width)."""
        embeddings: Tensor = self.item_projection(self.item_embedding(items))
        return embeddings

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, width) item embeddings -> (t, width) embedding of each event's next item."""
        if self.settings.positions == "from_newest":
            positions = self.sequence_length - 1 - sequences.positions_from_end
        else:
            positions = sequences.positions
        x = items * self.settings.width**0.5 if self.settings.scale_items else items
        x = x + self.position_embedding(positions)
        if self.settings.input_dropout:
            x = F.dropout(x, self.settings.dropout, self.training)
        layout = self._layout(sequences)
        for group in self._groups:
            x = group(x, layout)
        return x

    def item_table(self) -> Tensor | None:
        return self.item_embedding.weight if isinstance(self.item_projection, nn.Identity) else None

    def heavy_layers(self) -> list[nn.Module]:
        return list(self._groups)

    def _layout(self, sequences: PackedSequences) -> Layout:
        padded = padding(sequences.offsets, sequences.items.numel(), sequences.max_length)
        buckets = None
        if self.settings.relative_bias:
            times, next_times = (pad_packed(x, padded) for x in (sequences.timestamps, sequences.next_timestamps))
            buckets = time_buckets(next_times[:, :, None] - times[:, None, :], self.edges)
        return Layout(padded, buckets)
