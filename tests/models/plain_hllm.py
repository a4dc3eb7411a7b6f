"""HLLM written the plain way: one text at a time, histories padded, Hugging Face's own eager attention, loops."""

import copy

import torch
from torch import nn
from transformers import AutoModel

from benchmark.recommender import Catalogue, PackedSequences
from models.hllm import HLLM, HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN = LLAMA | {"model_type": "qwen2"}
MISTRAL = LLAMA | {"model_type": "mistral"}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROBERTA = BERT | {"model_type": "roberta", "pad_token_id": 1}
VOCABULARY = 90
TEXT_LENGTHS = [7, 1, 30, 12, 2, 19, 12, 8, 25, 3]  # tokens of each item
HISTORIES = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9]]
TARGETS = [[1, 4, 1], [0], [9, 2, 6, 5, 3, 5, 7], [9, 2]]
NEGATIVES = [0, 7, 7, 2, 6]
LONGEST = 9


def catalogue(seed: int = 0) -> Catalogue:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *TEXT_LENGTHS]).cumsum(0)
    tokens = torch.randint(VOCABULARY, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return Catalogue(len(TEXT_LENGTHS), tokens, offsets, VOCABULARY)


def histories() -> PackedSequences:
    items = torch.tensor([item for history in HISTORIES for item in history])
    times = 1_000_000_000 + 86_399 * torch.arange(len(items)) ** 2
    lengths = [len(history) for history in HISTORIES]
    return PackedSequences(items, times, times + 60, torch.tensor([0, *lengths]).cumsum(0), max(lengths))


def build(item: dict | None = None, user: dict | None = None, seed: int = 1, **settings) -> HLLM:
    """A small HLLM whose weights are large enough for every path to matter; item, user: a config, or settings of a
    backbone with one."""
    torch.manual_seed(seed)
    backbones = [x if x and "config" in x else {"config": x or LLAMA} for x in (item, user)]
    chosen = HLLMSettings(BackboneSettings(**backbones[0]), UserModelSettings(**backbones[1]), **settings)
    model = HLLM(catalogue(), LONGEST, chosen)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class PlainHLLM(nn.Module):
    """A copy of an HLLM's weights in models of Hugging Face with eager attention."""

    def __init__(self, model: HLLM) -> None:
        super().__init__()
        self.item = _eager(model.item_llm.backbone)
        self.user = _eager(model.user_llm.backbone)
        self.into, self.out_of = copy.deepcopy(model.user_llm.into), copy.deepcopy(model.user_llm.out_of)
        self.texts = [
            model.tokens[start:end].long()
            for start, end in zip(model.token_offsets[:-1], model.token_offsets[1:], strict=True)
        ]
        self.item_token = None
        if model.item_llm.pooling == "item_token":
            self.item_token = nn.Parameter(model.item_llm.item_token.detach().clone())

    def item_embedding(self, item: int) -> torch.Tensor:
        inputs = self.item.get_input_embeddings()(self.texts[item])
        if self.item_token is not None:
            inputs = torch.cat([inputs, self.item_token[None]])
        states = self.item(inputs_embeds=inputs[None]).last_hidden_state[0]
        return states[-1] if self.item_token is not None else states.mean(0)

    def predictions(self, embedded: list[torch.Tensor]) -> list[torch.Tensor]:
        """(length, d) inputs of each user -> (length, d) outputs of each."""
        embedded = [self.into(x) for x in embedded]
        longest = max(map(len, embedded))
        padded = torch.stack([torch.cat([x, 7 * torch.ones(longest - len(x), x.shape[1])]) for x in embedded])
        mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x in embedded])
        states = self.user(inputs_embeds=padded, attention_mask=mask).last_hidden_state
        return [self.out_of(row[: len(x)]) for row, x in zip(states, embedded, strict=True)]

    def loss(self) -> torch.Tensor:
        """InfoNCE at temperature 0.07, a negative whose cosine with the positive exceeds 0.99 left out."""
        predicted = self.predictions([torch.stack([self.item_embedding(i) for i in h]) for h in HISTORIES])
        negatives = [unit(self.item_embedding(i)) for i in NEGATIVES]
        losses = []
        for states, targets in zip(predicted, TARGETS, strict=True):
            for state, target in zip(states, targets, strict=True):
                positive = unit(self.item_embedding(target))
                kept = [n for n in negatives if (positive @ n).item() <= 0.99]
                scores = [unit(state) @ x / 0.07 for x in (positive, *kept)]
                losses.append(-scores[0] + torch.stack(scores).exp().sum().log())
        return torch.stack(losses).mean()


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x**2).sum().sqrt()


def _eager(backbone: nn.Module) -> nn.Module:
    config = copy.deepcopy(backbone.config)
    model = AutoModel.from_config(config, attn_implementation="eager")
    report = model.load_state_dict(backbone.state_dict(), strict=False)
    assert not report.unexpected_keys
    left_out = ("embed_tokens", "word_embeddings", "pooler")
    assert all(any(part in name for part in left_out) for name in report.missing_keys)
    return model
