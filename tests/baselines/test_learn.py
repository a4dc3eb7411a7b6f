"""LEARN and the dense all-action objective against a plain version: padded, Hugging Face's eager attention, loops."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from baselines.learn import LEARN, LEARNSettings
from benchmark.data.batches import BatchTotals, TrainingBatch
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.dense_all_action import DenseAllAction
from benchmark.training.engine import Engine
from benchmark.training.objectives import Temperature
from models.pretrained import BackboneSettings

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", **SHAPE}
BERT = {
    "model_type": "bert", "is_decoder": True, **SHAPE, "hidden_size": 12, "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
WINDOWS = [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8], [6, 0, 3, 5, 4, 7]]  # events of each user, targets included


def build(user=BERT):
    torch.manual_seed(1)
    lengths = [7, 1, 12, 3, 2, 9, 5, 4, 6]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    catalogue = Catalogue(len(lengths), torch.randint(50, (int(offsets[-1]),), dtype=torch.int32), offsets, 50)
    model = LEARN(catalogue, 9, LEARNSettings(BackboneSettings(config=LLAMA), BackboneSettings(config=user), 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(windows=WINDOWS, whole=None):
    items = torch.tensor([item for window in windows for item in window[:-1]])
    targets = torch.tensor([item for window in windows for item in window[1:]])
    lengths = [len(window) - 1 for window in windows]
    times = torch.arange(len(items))
    sequences = PackedSequences(items, times, times + 1, torch.tensor([0, *lengths]).cumsum(0), max(lengths))
    return TrainingBatch(sequences, targets, torch.tensor([window[-1] for window in WINDOWS]), whole)


class Plain(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.item, self.user = (self.copied(x) for x in (model.item_llm.backbone, model.transformer))
        self.adaptor, self.projection = copy.deepcopy(model.adaptor), copy.deepcopy(model.projection)
        ends = model.token_offsets.tolist()
        self.texts = [model.tokens[a:b].long() for a, b in pairwise(ends)]

    @staticmethod
    def copied(backbone):
        plain = AutoModel.from_config(copy.deepcopy(backbone.config), attn_implementation="eager").eval()
        plain.load_state_dict(backbone.state_dict(), strict=False)
        return plain

    def content(self, item):
        with torch.no_grad():
            words = self.item.get_input_embeddings()(self.texts[item])
            return self.item(inputs_embeds=words[None]).last_hidden_state[0].mean(0)

    def tower(self, items):
        """Padded to 9 events on the right, as one row of a batch."""
        inputs = self.adaptor(torch.stack([self.content(item) for item in items]))
        padded = torch.cat([inputs, torch.ones(9 - len(items), inputs.shape[1])])[None]
        mask = torch.tensor([[1] * len(items) + [0] * (9 - len(items))])
        states = self.user(inputs_embeds=padded, attention_mask=mask).last_hidden_state[0]
        return self.projection(states[: len(items)])


def loop_loss(plain, history_events, target_events):
    everyone, total = [window[-1] for window in WINDOWS], 0.0
    for window in WINDOWS:
        wanted = min(target_events, len(window) - 1)
        history, targets = window[:-wanted], window[-wanted:]
        users = plain.tower(history)[-history_events:]
        losses = []
        for user in users:
            for target in targets:
                others = [item for item in everyone if item not in targets]
                scores = [F.cosine_similarity(user, plain.tower([item])[0], dim=0) / 0.07 for item in (target, *others)]
                losses.append(-torch.stack(scores).log_softmax(0)[0])
        total = total + torch.stack(losses).mean()
    return total / len(WINDOWS)


def engine_of(model, objective, chunk=None):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return Engine(model, objective, optimizer, device=torch.device("cpu"), bf16=False, history_chunk=chunk)


@pytest.mark.parametrize(
    ("history_events", "target_events", "chunk"), [(10, 1, None), (2, 1, 3), (2, 2, None), (3, 4, 1)]
)
def test_equals_the_plain_version_with_gradients(history_events, target_events, chunk):
    model = build()
    plain = Plain(model)
    objective = DenseAllAction(Temperature(learnable=False), history_events, target_events)
    figures = engine_of(model, objective, chunk).step(batch())
    expected = loop_loss(plain, history_events, target_events)
    torch.testing.assert_close(figures.loss, expected.detach(), atol=1e-5, rtol=1e-5)
    expected.backward()
    named = {f"transformer.{name}": p for name, p in plain.user.named_parameters()}
    named |= {
        f"{part}.{n}": p for part in ("adaptor", "projection") for n, p in getattr(plain, part).named_parameters()
    }
    for name, parameter in model.named_parameters():
        if name.startswith("item_llm"):
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_towers_equal_the_plain_ones_and_features_are_computed_once():
    model = build()
    plain = Plain(model)
    everything = batch().sequences
    items = model.embed_items(torch.arange(9))
    torch.testing.assert_close(items, torch.stack([plain.tower([i])[0] for i in range(9)]), atol=1e-5, rtol=1e-5)
    histories = model.embed_histories(everything, items[everything.items])
    expected = torch.cat([plain.tower(window[:-1]) for window in WINDOWS])
    torch.testing.assert_close(histories, expected, atol=1e-5, rtol=1e-5)
    model.item_llm.forward = None  # not called again
    model.embed_items(torch.arange(9))
    assert not [name for name in model.state_dict() if "features" in name or "known" in name]


def test_parts_of_a_batch_add_up():
    whole = batch()
    model, objective = build(), DenseAllAction(Temperature(), 10, 1)
    one = engine_of(model, objective).step(whole)
    totals = BatchTotals(len(WINDOWS), len(whole.targets))
    parts = [engine_of(model, objective).step(batch(w, totals)) for w in (WINDOWS[:1], WINDOWS[1:])]
    torch.testing.assert_close(one.loss, sum(part.loss for part in parts), atol=1e-6, rtol=1e-6)


def test_an_encoder_for_histories_is_refused():
    with pytest.raises(ValueError, match="user_model must be causal"):
        build(user={**BERT, "is_decoder": False})
