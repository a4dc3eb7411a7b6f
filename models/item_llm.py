"""Item LLM: the text of an item becomes one vector (paper section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from benchmark.recommender import sent
from models.pretrained import run_packed, width

Pooling = Literal["item_token", "mean"]


class ItemLLM(nn.Module):
    """Packed texts of n items -> (n, width) item embeddings, by a decoder or an encoder.

    "item_token" appends the learnable vector [ITEM] to every text as an input embedding, drawn from N(0, 0.02); its
    last hidden state is the item's embedding. "mean" appends nothing and averages the last hidden states of all tokens
    of the text, BOS and prompt included (paper table 10). A frozen model's [ITEM] is frozen with it.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.pooling, self.frozen = backbone, pooling, frozen
        if pooling == "item_token":
            self.item_token = nn.Parameter(torch.empty(width(backbone)).normal_(0, 0.02), requires_grad=not frozen)

    def train(self, mode: bool = True) -> ItemLLM:
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor, token_offsets: Tensor, items: Tensor) -> Tensor:
        """tokens: (total,) token ids of the catalogue, item i's from token_offsets[i] up to token_offsets[i + 1];
        items: (n,) catalogue indices -> (n, width). With token_offsets and items on the host nothing waits for the
        device that the model is on."""
        items = items.to(token_offsets.device)
        starts = token_offsets[items]
        lengths = token_offsets[items + 1] - starts
        if self.pooling == "item_token":
            lengths = lengths + 1
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        total, longest = int(offsets[-1]), int(lengths.max())
        starts, lengths, offsets = (sent(x, tokens.device) for x in (starts, lengths, offsets))
        segments = torch.repeat_interleave(torch.arange(len(items), device=tokens.device), lengths, output_size=total)
        positions = torch.arange(total, device=tokens.device) - offsets[segments]
        source = starts[segments] + positions
        words = self.backbone.get_input_embeddings()  # type: ignore[operator]
        if self.pooling == "item_token":
            last = positions == lengths[segments] - 1
            inputs = words(tokens[source.masked_fill(last, 0)])  # any token: [ITEM] takes its place
            inputs = torch.where(last[:, None], self.item_token.to(inputs.dtype), inputs)
        else:
            inputs = words(tokens[source])
        states = run_packed(self.backbone, inputs, positions, offsets, longest)
        if self.pooling == "item_token":
            return states[offsets[1:] - 1]
        return torch.segment_reduce(states.float(), "mean", lengths=lengths, unsafe=True)
