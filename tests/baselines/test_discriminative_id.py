"""Click models over item ids, and the stages of the industrial recipe: the same numbers from cached embeddings."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from baselines.discriminative_id import (
    DiscriminativeHSTU,
    DiscriminativeHSTUSettings,
    DownstreamClick,
    DownstreamClickSettings,
)
from baselines.hstu import HSTUSettings
from benchmark.recommender import Catalogue, PackedSequences
from benchmark.training.checkpoint import save_weights
from benchmark.training.registry import model_settings
from benchmark.training.starting import take_weights
from models.cached_items import CachedItemsSettings
from models.discriminative import (
    DiscriminativeCached,
    DiscriminativeCachedSettings,
    DiscriminativeHLLM,
    DiscriminativeHLLMSettings,
)
from models.hllm import HLLMSettings
from models.pretrained import BackboneSettings
from models.user_llm import UserModelSettings

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
HSTU_SETTINGS = HSTUSettings(
    layers=2, heads=2, width=8, dropout=0.0, positions="from_oldest", relative_bias=True, spare_length=3
)
ITEMS, LONGEST = 10, 6
METHODS = Path(__file__).parents[2] / "config" / "methods"


def texts():
    offsets = torch.tensor([0, *range(2, 2 + ITEMS)]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    return Catalogue(ITEMS, torch.randint(40, (int(offsets[-1]),), generator=generator, dtype=torch.int32), offsets, 40)


def spread(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def requests(cases):
    """(history, target) cases; times are a day apart."""
    items = torch.tensor([item for history, target in cases for item in (*history, target)])
    lengths = torch.tensor([len(history) + 1 for history, _ in cases])
    times = 1_000_000_000 + 86_400 * torch.arange(len(items))
    following = times.clone()
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    inner = torch.ones(len(items), dtype=torch.bool)
    inner[offsets[1:] - 1] = False
    following[inner] += 86_400
    return PackedSequences(items, times, following, offsets, int(lengths.max())), items[offsets[1:] - 1]


CASES = [([3, 1, 4], 5), ([9], 2), ([2, 6, 5, 3, 8, 9], 0)]


def logits(model, cases=CASES):
    sequences, targets = requests(cases)
    return model.click_logits(
        model.click_states(sequences, model.embed_items(sequences.items)), model.embed_items(targets)
    )


@pytest.fixture
def stages(tmp_path):
    """An end-to-end model, the second stage that starts from it, and the third that starts from the second."""
    hllm = HLLMSettings(BackboneSettings(config=LLAMA), UserModelSettings(config=LLAMA))
    first = spread(DiscriminativeHLLM(texts(), LONGEST, DiscriminativeHLLMSettings(hllm, "late", 7))).eval()
    with torch.no_grad():
        cache = Catalogue(ITEMS, embeddings=first.embed_items(torch.arange(ITEMS)))
    cached = CachedItemsSettings(BackboneSettings(config=LLAMA))
    second = DiscriminativeCached(cache, LONGEST, DiscriminativeCachedSettings(cached, "late", 7)).eval()
    save_weights(tmp_path / "first.safetensors", first.state_dict())
    take_weights(second, tmp_path / "first.safetensors", ["base.user_llm", "user_token", "head"])
    third = spread(DownstreamClick(cache, LONGEST, DownstreamClickSettings(HSTU_SETTINGS, cached)))
    save_weights(tmp_path / "second.safetensors", second.state_dict())
    take_weights(third, tmp_path / "second.safetensors", ["base.user_llm", "user_token"])
    return first, second, third


def test_the_second_stage_starts_where_the_first_ended(stages):
    first, second, _ = stages
    torch.testing.assert_close(logits(first), logits(second), atol=1e-5, rtol=1e-5)
    logits(second).sum().backward()
    assert all(p.grad is not None for p in second.parameters())
    assert not [name for name, _ in second.named_parameters() if "item_llm" in name]


def test_the_third_stage_reads_the_frozen_embeddings_and_trains_its_own(stages):
    _, second, third = stages
    sequences, targets = requests(CASES)
    states = third.eval().click_states(sequences, third.embed_items(sequences.items))
    width = HSTU_SETTINGS.width
    exported = second.click_states(sequences, second.embed_items(sequences.items))
    torch.testing.assert_close(states[:, width:], exported, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(third.embed_items(targets)[:, width:], second.embed_items(targets), atol=0, rtol=0)
    logits(third.train()).square().sum().backward()
    learned = {name for name, p in third.named_parameters() if p.grad is not None and p.grad.any()}
    assert not [name for name in learned if name.startswith("base") or name == "user_token"]
    frozen = ("base.", "user_token")
    expected = {name for name, _ in third.named_parameters() if not name.startswith(frozen)}
    assert learned >= expected - {name for name in expected if "bias" in name}
    assert not third.base.training


def test_the_exported_features_matter(stages):
    _, _, third = stages
    before = logits(third.eval())
    third.base.embeddings = third.base.embeddings + torch.randn_like(third.base.embeddings)
    assert (logits(third) - before).abs().min() > 1e-4


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_hstus_logits_are_each_cases_own(fusion):
    torch.manual_seed(3)
    model = spread(DiscriminativeHSTU(Catalogue(ITEMS), LONGEST, DiscriminativeHSTUSettings(HSTU_SETTINGS, fusion, 5)))
    model.eval()
    together = logits(model)
    sequences, _ = requests(CASES)
    start = 0
    for number, case in enumerate(CASES):
        alone, target = requests([case])
        times = sequences.timestamps[start : start + len(case[0]) + 1]
        start += len(times)
        shifted = PackedSequences(
            alone.items, times, F.pad(times[1:], (0, 1), value=int(times[-1])), alone.offsets, alone.max_length
        )
        states = model.click_states(shifted, model.embed_items(shifted.items))
        found = model.click_logits(states, model.embed_items(target))
        torch.testing.assert_close(found[0], together[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["discriminative-hllm", "discriminative-cached", "discriminative-hstu", "downstream-click", "item-bias", "learn"],
)
def test_the_methods_files_name_settings_that_exist(name):
    method = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    model_settings(method["class"], method["model"], name)
