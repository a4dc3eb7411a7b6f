"""HLLM against the plain version of plain_hllm.py, and what its settings promise."""

from pathlib import Path

import pytest
import torch
import yaml
from plain_hllm import (
    BERT,
    HISTORIES,
    LLAMA,
    MISTRAL,
    NEGATIVES,
    QWEN,
    ROBERTA,
    TARGETS,
    PlainHLLM,
    build,
    catalogue,
    histories,
)

from benchmark.data.text import TextSettings
from benchmark.recommender import Catalogue
from benchmark.training import registry
from benchmark.training.objectives import InfoNCE, Temperature
from models.hllm import HLLM, HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings

ALL = torch.arange(10)


def loss_of(model, chunk=None):
    sequences, targets = histories(), torch.tensor([item for targets in TARGETS for item in targets])
    distinct, place = torch.cat([sequences.items, targets, torch.tensor(NEGATIVES)]).unique(return_inverse=True)
    t = len(targets)
    items = torch.cat([model.embed_items(part) for part in distinct.split(chunk or len(distinct))])
    predicted = model.embed_histories(sequences, items[place[:t]])
    objective = InfoNCE(Temperature(learnable=False))
    shares = torch.full((t,), 1 / t)
    return objective(
        model.comparable(predicted), model.comparable(items), place[t : 2 * t], place[2 * t :], distinct, shares
    ).loss


@pytest.mark.parametrize("pooling", ["item_token", "mean"])
@pytest.mark.parametrize("config", [LLAMA, BERT, QWEN, MISTRAL, ROBERTA], ids=lambda c: c["model_type"])
def test_equals_the_plain_version_with_gradients(config, pooling):
    model = build(config, pooling=pooling)
    plain = PlainHLLM(model)
    torch.testing.assert_close(
        model.embed_items(ALL), torch.stack([plain.item_embedding(i) for i in range(10)]), atol=1e-5, rtol=1e-5
    )
    loss, expected = loss_of(model), plain.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    pairs = [(model.item_llm.backbone, plain.item), (model.user_llm.backbone, plain.user)]
    compared = 0
    for ours, theirs in pairs:
        parameters = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-5, rtol=1e-4, msg=name)
            compared += 1
    if pooling == "item_token":
        torch.testing.assert_close(model.item_llm.item_token.grad, plain.item_token.grad, atol=1e-5, rtol=1e-4)
        compared += 1
    assert compared == len(list(model.parameters()))


@pytest.mark.parametrize("user", [QWEN, MISTRAL], ids=lambda c: c["model_type"])
def test_other_user_models_equal_the_plain_version(user):
    model = build(user=user)
    plain = PlainHLLM(model)
    torch.testing.assert_close(loss_of(model), plain.loss(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=lambda c: c["model_type"])
def test_an_item_depends_on_its_own_text_alone(config):
    model = build(config).eval()
    with torch.no_grad():
        together = model.embed_items(ALL)
        for item in range(10):
            torch.testing.assert_close(model.embed_items(torch.tensor([item]))[0], together[item], atol=1e-6, rtol=1e-5)
        order = torch.tensor([4, 4, 9, 0])
        torch.testing.assert_close(model.embed_items(order), together[order], atol=1e-6, rtol=1e-5)
        start, end = model.token_offsets[2:4]
        model.tokens[start:end] = (model.tokens[start:end] + 1) % 90
        changed = (model.embed_items(ALL) - together).abs().amax(1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [2]


def test_a_prediction_depends_on_its_own_past_alone():
    model = build().eval()
    sequences, items = histories(), torch.randn(sum(map(len, HISTORIES)), 32)
    before = model.embed_histories(sequences, items)
    items[6] += 1.0  # the third event of the third user, whose events are 4 to 10
    changed = (model.embed_histories(sequences, items) - before).abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [6, 7, 8, 9, 10]


def test_chunks_and_checkpointing_change_nothing():
    reference = build()
    loss_of(reference).backward()
    chunked = build()
    loss_of(chunked, chunk=3).backward()
    recomputed = build(*({"config": LLAMA, "checkpointing": True} for _ in range(2)))
    loss_of(recomputed).backward()
    for other in (chunked, recomputed):
        for (name, a), b in zip(reference.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_frozen_models_get_no_gradient_and_no_dropout():
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = build({"config": BERT | dropout, "frozen": True}).train()
    embeddings = model.embed_items(ALL)
    assert not embeddings.requires_grad
    assert torch.equal(embeddings, model.embed_items(ALL))
    loss_of(model).backward()
    assert all(p.grad is None for p in model.item_llm.parameters())
    assert all(p.grad is not None for p in model.user_llm.parameters())

    model = build(user={"config": LLAMA, "frozen": True})
    loss_of(model).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.item_llm.parameters())
    assert all(p.grad is None for p in model.user_llm.parameters())


def test_one_model_in_both_roles():
    model = build(share_models=True)
    assert model.user_llm.backbone is model.item_llm.backbone
    plain = PlainHLLM(model)
    loss, expected = loss_of(model), plain.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    item, user = dict(plain.item.named_parameters()), dict(plain.user.named_parameters())
    for name, parameter in model.item_llm.backbone.named_parameters():
        in_both = item[name].grad + (0 if user[name].grad is None else user[name].grad)
        torch.testing.assert_close(parameter.grad, in_both, atol=1e-5, rtol=1e-4, msg=name)


def test_models_of_two_widths_are_joined_by_linear_maps():
    """As MiniLM and SmolLM2 are, an encoder for items and a wider decoder for users."""
    model = build(BERT, user=LLAMA | {"hidden_size": 48}, pooling="mean")
    assert model.user_llm.into.weight.shape == (48, 32)
    assert model.user_llm.out_of.weight.shape == (32, 48)
    plain = PlainHLLM(model)
    loss, expected = loss_of(model), plain.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    ours = {"item": model.item_llm.backbone, "user": model.user_llm.backbone}
    ours |= {"into": model.user_llm.into, "out_of": model.user_llm.out_of}
    for part, module in ours.items():
        theirs = dict(getattr(plain, part).named_parameters())
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=f"{part}.{name}")
    same = build()
    assert not [name for name, _ in same.named_parameters() if "into" in name or "out_of" in name]


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=lambda c: c["model_type"])
def test_half_precision_is_close(config):
    model = build(config)
    exact = loss_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    torch.testing.assert_close(loss, exact, atol=0.1, rtol=0.1)
    loss.backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


def test_texts_are_no_part_of_the_weights():
    state = build().state_dict()
    assert not [name for name in state if "token_offsets" in name or name == "tokens"]
    assert not [name for name in state if "lm_head" in name or name.startswith("user_llm.backbone.embed")]


def model_of(item=LLAMA, user=LLAMA, catalogue_=None, length=9, **settings):
    chosen = HLLMSettings(BackboneSettings(config=item), UserModelSettings(config=user), **settings)
    return HLLM(catalogue_ or catalogue(), length, chosen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"catalogue_": Catalogue(10)}, "give the method a `text` section"),
        ({"user": BERT}, "must be a decoder"),
        ({"item": BERT | {"max_position_embeddings": 30}}, "the longest text needs 31 positions and bert has 30"),
        ({"length": 50, "user": LLAMA | {"max_position_embeddings": 40}}, "the longest history needs 50 positions"),
        ({"item": MISTRAL | {"sliding_window": 16}}, "sliding window of 16"),
        ({"item": LLAMA | {"vocab_size": 80}}, "80 word vectors and the texts' tokenizer 90"),
        ({"item": LLAMA | {"hidden_sise": 80}}, "hidden_sise, which llama does not know"),
        ({"item": {"hidden_size": 80}}, "model_type None"),
        ({"item": {"model_type": "t5"}}, "an encoder with a decoder"),
        ({"user_inputs": ("text", "text")}, "each at most once"),
        (
            {
                "pooling": "mean",
                "catalogue_": Catalogue(2, torch.zeros(3, dtype=torch.int32), torch.tensor([0, 3, 3]), 9),
            },
            "1 items have no token to average",
        ),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)


def test_an_item_without_tokens_is_the_item_token_alone():
    empty = Catalogue(3, torch.zeros(3, dtype=torch.int32), torch.tensor([0, 3, 3, 3]), 9)
    embeddings = model_of(catalogue_=empty).embed_items(torch.arange(3))
    torch.testing.assert_close(embeddings[1], embeddings[2])
    assert torch.isfinite(embeddings).all()


def test_the_methods_file_builds_a_model_that_runs():
    method = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "hllm.yaml").read_text())
    TextSettings.from_mapping(method["text"])
    model = registry.build(method["class"], method["model"], catalogue(), 9)
    loss_of(model).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
