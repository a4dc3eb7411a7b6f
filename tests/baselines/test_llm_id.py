"""SASRec-1B and HSTU-1B: small ones against Hugging Face's padded eager attention, full ones by their size."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from histories import ITEMS, SEQUENCE_LENGTH, assert_causal, assert_no_leak, assert_parity, build, users
from transformers import AutoModel

from baselines.llm_id import LLMOverIds, LLMOverIdsSettings
from benchmark.recommender import Catalogue
from benchmark.training import registry
from models.pretrained import BackboneSettings

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = LLMOverIdsSettings(BackboneSettings(config=LLAMA), item_width=6)
METHODS = Path(__file__).parents[2] / "config" / "methods"


def padded_llm(model):
    """The released code's way: item ids padded on the left, an attention mask, transformers' own attention."""
    plain = AutoModel.from_config(copy.deepcopy(model.backbone.config), attn_implementation="eager").eval()

    def run(weights, sequences):
        own = {n.removeprefix("backbone."): p for n, p in weights.items() if n.startswith("backbone.")}
        items = torch.zeros(len(sequences), SEQUENCE_LENGTH, dtype=torch.long)
        real = torch.zeros(len(sequences), SEQUENCE_LENGTH, dtype=torch.bool)
        for row, user in enumerate(users(sequences)):
            items[row, SEQUENCE_LENGTH - (user.stop - user.start) :] = sequences.items[user]
            real[row, SEQUENCE_LENGTH - (user.stop - user.start) :] = True
        inputs = item_table(weights)[items]
        out = torch.func.functional_call(plain, own, kwargs={"inputs_embeds": inputs, "attention_mask": real.long()})
        return out.last_hidden_state[real]

    return run


def item_table(weights):
    return weights["item_embedding.weight"] @ weights["item_projection.weight"].T


def test_equals_the_padded_version_with_gradients():
    model = build(LLMOverIds, SMALL)
    assert_parity(model, padded_llm(model), item_table)


def test_users_do_not_leak_and_later_events_do_not_matter():
    assert_no_leak(build(LLMOverIds, SMALL))
    assert_causal(build(LLMOverIds, SMALL))


def test_equal_widths_need_no_matrix():
    model = build(LLMOverIds, LLMOverIdsSettings(BackboneSettings(config=LLAMA), item_width=16))
    assert not [name for name, _ in model.named_parameters() if "projection" in name]
    assert torch.equal(model.embed_items(torch.arange(ITEMS)), model.item_embedding.weight)


def test_an_encoder_is_refused():
    bert = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    with pytest.raises(ValueError, match="must be a decoder"):
        LLMOverIds(Catalogue(ITEMS), 12, LLMOverIdsSettings(BackboneSettings(config=bert)))


@pytest.mark.parametrize(
    ("name", "items", "expected"),
    [
        # 22 layers of queries and output 2 x 2048 x 2048, keys and values 2 x 2048 x 256, three matrices of the
        # feed-forward 2048 x 5632, two norms; the last norm; the item table and its matrix.
        ("sasrec-1b", 686_623, 22 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632 + 2 * 2048) + 2048
         + 686_623 * 512 + 512 * 2048),
        # 22 layers of u, v, q, k 2048 x 4 x 2048 and output 2048 x 2048 + 2048; 50 positions; the item table. The
        # paper's 462 M are those without the item table.
        ("hstu-1b", 686_623, 22 * (5 * 2048**2 + 2048) + 50 * 2048 + 686_623 * 2048),
    ],
)  # fmt: skip
def test_the_published_sizes(name, items, expected):
    method = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    with torch.device("meta"):  # shapes without memory
        model = registry.build(method["class"], method["model"], Catalogue(items), 50)
    assert sum(p.numel() for p in model.parameters()) == expected
    if name == "hstu-1b":
        assert round((expected - items * 2048) / 1e6) == 462
