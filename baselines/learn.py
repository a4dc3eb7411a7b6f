"""LEARN: frozen language-model features of the items, and a causal Transformer that aligns them with preferences.

Jia et al., LEARN: Knowledge Adaptation from Large Language Model to Recommendation for Practical Industrial
Application, AAAI 2025 (arXiv 2405.03988), methodology, "User Tower", "Item Tower" and "Training Objective". The
content extraction module (CEX) is a frozen LLM, Baichuan2-7B there, whose last hidden states are averaged over an
item's text. The preference alignment module (PAL) is a linear adaptor, 12 Transformer layers of BERT-base's shape with
causal attention and from random weights, and a projection to 64. The user tower runs the PAL over a history; the item
tower runs the same PAL, with the same weights, over the target. On the Amazon data, where a user has one target, the
paper's default item tower (a), causal over the targets, and (b), which reads every target alone, are one; so it is
here. The objective is dense all-action (`benchmark.training.dense_all_action`), batch 1024 at 5e-5 and then 16 at 2e-5,
AdamW with a cosine schedule.

Deviations: scores are cosines, and the temperature is learned from 0.07 on, as in the CLIP code that the authors say
theirs is built on; the text gives neither. Items are encoded when they are first needed instead of beforehand, which
gives the same features. The paper's weighted sampling of events is for its industrial sequences and is left out, as in
the paper's own experiments on Amazon.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender
from models.item_llm import ItemLLM
from models.pretrained import BackboneSettings, check_length, is_causal, load_backbone, run_packed, width

BERT_BASE_CAUSAL = {
    "model_type": "bert",
    "is_decoder": True,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
_ITEMS_AT_ONCE = 256


@dataclass(frozen=True)
class LEARNSettings:
    """item_model: the language model of the features; it is frozen whatever it says. user_model: the PAL's Transformer.
    output_width: of user and item embeddings."""

    item_model: BackboneSettings = field(default_factory=BackboneSettings)
    user_model: BackboneSettings = field(default_factory=lambda: BackboneSettings(config=dict(BERT_BASE_CAUSAL)))
    output_width: int = 64


class LEARN(SequentialRecommender):
    """Histories are read as the items' frozen features, not as their embeddings; so `embed_histories` looks them up."""

    Settings = LEARNSettings
    similarity = "cosine"
    tokens: Tensor
    token_offsets: Tensor
    features: Tensor
    known: Tensor

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: LEARNSettings) -> None:
        super().__init__()
        if catalogue.tokens is None or catalogue.token_offsets is None:
            raise ValueError("LEARN reads texts: give the method a `text` section, so that the items are tokenized")
        lengths = catalogue.token_offsets.diff()
        if empty := int((lengths == 0).sum()):
            raise ValueError(f"{empty} items have no token to average")
        backbone = load_backbone(replace(settings.item_model, frozen=True), vocabulary_size=catalogue.vocabulary_size)
        check_length(backbone, int(lengths.max()), "the longest text")
        self.item_llm = ItemLLM(backbone, "mean", frozen=True)
        self.transformer = load_backbone(settings.user_model, vocabulary_size=None)
        if not is_causal(self.transformer):
            raise ValueError("user_model must be causal; for BERT, set is_decoder: true in its config")
        check_length(self.transformer, sequence_length, "the longest history")
        self.adaptor = nn.Linear(width(backbone), width(self.transformer))
        self.projection = nn.Linear(width(self.transformer), settings.output_width)
        # None of these is persistent: they follow from the texts and the frozen model.
        self.register_buffer("tokens", catalogue.tokens, persistent=False)
        self.register_buffer("token_offsets", catalogue.token_offsets, persistent=False)
        self.register_buffer("features", torch.zeros(catalogue.size, width(backbone)), persistent=False)
        self.register_buffer("known", torch.zeros(catalogue.size, dtype=torch.bool), persistent=False)

    @torch.no_grad()
    def content(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, width of the language model) features, each item's computed once."""
        missing = items[~self.known[items]].unique()
        for chunk in missing.split(_ITEMS_AT_ONCE) if len(missing) else ():
            self.features[chunk] = self.item_llm(self.tokens, self.token_offsets, chunk).to(self.features.dtype)
            self.known[chunk] = True
        return self.features[items]

    def align(self, content: Tensor, positions: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """The PAL: (t, width of the language model) features of packed sequences -> (t, output_width)."""
        aligned: Tensor = self.projection(
            run_packed(self.transformer, self.adaptor(content), positions, offsets, max_length)
        )
        return aligned

    def embed_items(self, items: Tensor) -> Tensor:
        """(n,) catalogue indices -> (n, output_width), every item a sequence of its own."""
        alone = torch.arange(len(items) + 1, device=items.device)
        return self.align(self.content(items), torch.zeros_like(items), alone, 1)

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        """(t, output_width); items, the embeddings of the events, are not read."""
        content = self.content(sequences.items)
        return self.align(content, sequences.positions, sequences.offsets, sequences.max_length)
