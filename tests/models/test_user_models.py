"""Baselines as user models over text embeddings (paper tables 5, 6 and 10), against the baselines themselves."""

import pytest
import torch
import torch.nn.functional as F
from plain_hllm import HISTORIES, LLAMA, NEGATIVES, TARGETS, PlainHLLM, build, catalogue, histories, unit

from baselines.hstu import HSTU, HSTUSettings
from baselines.sasrec import SASRec, SASRecSettings
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training import registry
from models.hllm import HLLM

SASREC = {"layers": 2, "heads": 2, "width": 16, "dropout": 0.0, "attention_dropout": 0.0}
HSTU_ = {"layers": 5, "heads": 2, "width": 16, "dropout": 0.0}
KINDS = {"sasrec": (SASRec, SASRecSettings, SASREC), "hstu": (HSTU, HSTUSettings, HSTU_)}


def model_of(kind, config, **user) -> HLLM:
    torch.manual_seed(4)
    settings = {
        "item_model": {"config": LLAMA},
        "user_model": {"kind": kind, "config": config, **user},
    }
    return registry.build("models.hllm.HLLM", settings, catalogue(), 9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_baseline_between_two_linear_maps(kind):
    """Loss and gradients against the baseline run one history at a time on items embedded one at a time."""
    build_baseline, baseline_settings, config = KINDS[kind]
    model = model_of(kind, config)
    baseline = build_baseline(Catalogue(1), 9, baseline_settings(**config))
    missing = baseline.load_state_dict(model.user_llm.backbone.state_dict(), strict=False).missing_keys
    assert missing == ["item_embedding.weight"]
    plain = PlainItems(model)
    into, out_of = model.user_llm.into.weight, model.user_llm.out_of.weight
    assert into.shape == (16, 32)

    losses = []
    for history, targets in zip(HISTORIES, TARGETS, strict=True):
        inputs = torch.stack([plain.item_embedding(i) for i in history]) @ into.T
        n = len(history)
        one = PackedSequences(torch.tensor(history), torch.arange(n), torch.arange(n), torch.tensor([0, n]), n)
        for state, target in zip(baseline.embed_histories(one, inputs) @ out_of.T, targets, strict=True):
            vectors = [unit(plain.item_embedding(i)) for i in (target, *NEGATIVES)]
            kept = [x for x in vectors[1:] if (vectors[0] @ x).item() <= 0.99]
            logits = torch.stack([unit(state) @ x / 0.07 for x in (vectors[0], *kept)])
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    from test_hllm import loss_of

    loss, expected = loss_of(model), torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    model.zero_grad()
    loss.backward()
    got = {name: p.grad for name, p in model.user_llm.backbone.named_parameters()}
    expected.backward()
    for name, parameter in baseline.named_parameters():
        if name != "item_embedding.weight":
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


class PlainItems(PlainHLLM):
    """Its item side alone."""

    def __init__(self, model):
        language_model = build()
        language_model.item_llm.load_state_dict(model.item_llm.state_dict())
        super().__init__(language_model)


def test_frozen_and_wrong_settings():
    frozen = model_of("sasrec", SASREC | {"dropout": 0.5}, frozen=True).train()
    assert not any(p.requires_grad for p in frozen.user_llm.backbone.parameters())
    sequences, items = histories(), torch.randn(sum(map(len, HISTORIES)), 32)
    assert torch.equal(frozen.embed_histories(sequences, items), frozen.embed_histories(sequences, items))
    with pytest.raises(Exception, match=r"user_model.config has 'hidden_size'; for sasrec it has: attention_dropout"):
        model_of("sasrec", {"hidden_size": 3})


def test_the_weights_hold_no_item_table_and_no_block_twice():
    names = list(model_of("hstu", HSTU_).user_llm.state_dict())
    assert not [name for name in names if "item_embedding" in name or "group" in name]
    assert len([name for name in names if name.endswith("uvqk")]) == 5
