"""The verb that takes over released checkpoints."""

import json

import pytest
import torch
import yaml
from plain_hllm import LLAMA, VOCABULARY, build
from test_released_weights import released
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.errors import UserError
from benchmark.training.checkpoint import load_weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place with one method, whose models are pre-trained ones of these sizes, which are not there."""
    role = {"source": "hub", "path": "no/where", "revision": "0" * 40, "config": LLAMA | {"vocab_size": VOCABULARY}}
    method = {
        "label": "Small", "class": "models.hllm.HLLM", "source": "a test",
        "model": {"item_model": role, "user_model": role},
    }  # fmt: skip
    (tmp_path / "config" / "methods").mkdir(parents=True)
    (tmp_path / "config" / "methods" / "small.yaml").write_text(yaml.safe_dump(method))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(*options):
    return CliRunner().invoke(app, ["import-released", *map(str, options)])


def test_the_weights_are_those_of_the_file(folder):
    state = released()
    torch.save(state, folder / "pytorch_model.bin")
    result = imported("pytorch_model.bin", "--method", "small", "--out", "runs/imported-small")
    assert result.exit_code == 0, (result.output, result.exception)
    model = build(seed=7)
    model.load_state_dict(load_weights(folder / "runs" / "imported-small" / "model.safetensors"))
    torch.testing.assert_close(model.item_llm.backbone.norm.weight, state["item_llm.model.norm.weight"])
    assert torch.equal(model.item_llm.item_token, state["item_emb_tokens"].flatten())
    origin = json.loads((folder / "runs" / "imported-small" / "provenance.json").read_text())["imported"]
    assert len(origin["sha256"]) == 64


def test_a_wrong_or_missing_file_is_told_in_one_sentence(folder):
    missing = imported("no.bin", "--method", "small", "--out", "runs/x")
    assert isinstance(missing.exception, UserError)
    assert "no.bin does not exist" in str(missing.exception)
    state = released()
    del state["user_llm.model.norm.weight"]
    torch.save(state, folder / "cut.bin")
    wrong = imported("cut.bin", "--method", "small", "--out", "runs/x")
    assert isinstance(wrong.exception, UserError)
    assert "missing: user_llm.backbone.norm.weight" in str(wrong.exception)
    assert not (folder / "runs" / "x").exists()
