"""The methods' files under config/ name classes and settings that exist."""

from pathlib import Path

import pytest
import torch
import yaml
from histories import random_sequences

from benchmark.recommender import Catalogue
from benchmark.training.registry import build

FILES = Path(__file__).parents[2] / "config" / "methods"
NAMES = ["popularity", "sasrec", "sasrec-meta", "hstu-hllm", "hstu", "recbole-sasrec"]


@pytest.mark.parametrize("name", NAMES)
def test_builds_and_runs(name):
    method = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    assert {"label", "class", "model", "source", "deviations"} <= set(method)
    model = build(method["class"], method["model"], Catalogue(40), 12)
    sequences = random_sequences([3, 12, 1])
    out = model.embed_histories(sequences, model.embed_items(sequences.items))
    assert out.shape == model.embed_items(sequences.items).shape
    assert torch.isfinite(out).all()
