"""HLLM on cached item embeddings names the layers of its User LLM, as HLLM does."""

import pytest
import torch

from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.precision import WorkingCopies
from models.cached_items import CachedItems, CachedItemsSettings
from models.pretrained import BackboneSettings

LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    settings = CachedItemsSettings(BackboneSettings(config=LLAMA))
    return CachedItems(Catalogue(9, embeddings=torch.randn(9, 8)), 6, settings).eval()


@torch.no_grad()
def predicted(model):
    items = torch.tensor([3, 1, 4, 1, 5, 8])
    return model.embed_histories(
        PackedSequences(items, items, items, torch.tensor([0, 4, 6]), 4), model.embed_items(items)
    )


def test_its_layers_are_those_of_the_user_llm(model):
    assert model.heavy_layers() == list(model.user_llm.backbone.layers)
    assert model.light_layers() == [model.user_llm.backbone.norm]


def test_copies_in_half_precision_are_what_it_computes_with(model):
    with torch.autocast("cpu", torch.bfloat16):
        expected = predicted(model)
        with WorkingCopies(model.heavy_layers(), torch.bfloat16).in_place():
            assert model.user_llm.backbone.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
            assert torch.equal(predicted(model), expected)
