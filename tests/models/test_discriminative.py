"""Early and late fusion against a plain version: one case at a time, Hugging Face's eager attention, loops."""

import math

import pytest
import torch
from plain_hllm import LLAMA, LONGEST, PlainHLLM, catalogue
from torch.nn import functional as F

from benchmark.recommender import PackedSequences
from models.discriminative import DiscriminativeHLLM, DiscriminativeHLLMSettings
from models.hllm import HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings

CASES = [([3, 1, 4], 1, 1), ([1], 5, 0), ([5, 9, 2, 6, 5, 3, 5], 8, 0), ([8, 9], 9, 1)]  # history, target, label


def build(fusion, seed=1, **settings):
    torch.manual_seed(seed)
    hllm = HLLMSettings(BackboneSettings(config=LLAMA), UserModelSettings(config=LLAMA), **settings)
    model = DiscriminativeHLLM(catalogue(), LONGEST, DiscriminativeHLLMSettings(hllm, fusion, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def packed(cases=CASES):
    """Each history with its request behind it."""
    items = torch.tensor([item for history, target, _ in cases for item in (*history, target)])
    lengths = torch.tensor([len(history) + 1 for history, _, _ in cases])
    times = 1_000_000_000 + 86_399 * torch.arange(len(items)) ** 2
    return PackedSequences(items, times, times + 60, F.pad(lengths.cumsum(0), (1, 0)), int(lengths.max()))


def logits_of(model, cases=CASES):
    sequences, targets = packed(cases), torch.tensor([target for _, target, _ in cases])
    return model.click_logits(
        model.click_states(sequences, model.embed_items(sequences.items)), model.embed_items(targets)
    )


def plain_logits(model, plain, user_token, head):
    """The paper's two figures, case by case; the copies of [USER] and the head have gradients of their own."""
    logits = []
    for history, target, _ in CASES:
        events, wanted = [plain.item_embedding(item) for item in history], plain.item_embedding(target)
        last = wanted if model.target_in_history else user_token
        state = plain.predictions([torch.stack([*events, last])])[0][-1]
        read = state if model.target_in_history else torch.cat([state, wanted, state * wanted])
        inner = head["0.weight"] @ read + head["0.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        logits.append((head["2.weight"] @ inner + head["2.bias"]).squeeze())
    return torch.stack(logits)


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_equals_the_plain_version_with_gradients(fusion):
    model = build(fusion)
    plain = PlainHLLM(model.base)
    head = {name: p.detach().clone().requires_grad_() for name, p in model.head.named_parameters()}
    user_token = model.user_token.detach().clone().requires_grad_() if fusion == "late" else None
    labels = torch.tensor([float(label) for _, _, label in CASES])
    logits, expected = logits_of(model), plain_logits(model, plain, user_token, head)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    probability = 1 / (1 + (-expected).exp())
    (-(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()).backward()
    compared = {"item_llm.item_token": plain.item_token}
    compared |= {f"item_llm.backbone.{name}": p for name, p in plain.item.named_parameters()}
    compared |= {f"user_llm.backbone.{name}": p for name, p in plain.user.named_parameters()}
    ours = {f"base.{name}" for name in compared}
    for name, parameter in model.named_parameters():
        if name.startswith("base."):
            other = compared[name.removeprefix("base.")]
            ours.discard(name)
        else:
            other = user_token if name == "user_token" else head[name.removeprefix("head.")]
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert all("embed_tokens" in name for name in ours)  # the User LLM has no word vectors


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_a_logit_depends_on_its_own_history_and_target_alone(fusion):
    model = build(fusion).eval()
    together = logits_of(model)
    for number, case in enumerate(CASES):
        torch.testing.assert_close(logits_of(model, [case])[0], together[number], atol=1e-5, rtol=1e-5)
    history, target, label = CASES[2]
    other_event = logits_of(model, [([5, 9, 2, 6, 5, 3, 0], target, label)])
    other_target = logits_of(model, [(history, 0, label)])
    assert min((other_event - together[2]).abs(), (other_target - together[2]).abs()) > 1e-5


def test_late_fusion_reads_the_target_in_the_head_alone():
    """One state serves every candidate: whatever the request's item is, the state is the same."""
    model = build("late").eval()
    states = [
        model.click_states(packed([(history, target, 0)]), model.embed_items(packed([(history, target, 0)]).items))
        for history, target in (([3, 1, 4], 1), ([3, 1, 4], 7))
    ]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
    sequences = packed()
    items = model.embed_items(sequences.items).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.click_states(sequences, items).square().sum(), items)
    read = gradient.any(1)
    assert not read[sequences.last].any()
    assert read.sum() == len(read) - len(CASES)


def test_item_ids_in_late_fusion_are_refused():
    with pytest.raises(ValueError, match=r"\[USER\] has no item id"):
        build("late", user_inputs=("text", "item_id"))
    build("early", user_inputs=("text", "item_id"))
