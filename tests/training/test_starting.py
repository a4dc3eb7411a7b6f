"""Runs that start from another run: its weights, its item embeddings as a data set, and what is refused."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.commands import data, runs
from benchmark.commands.shared import opened
from benchmark.errors import UserError
from benchmark.evaluation import ranking
from benchmark.evaluation.metrics import read_ranks
from benchmark.experiments import Run, dump_run, load_run_file
from benchmark.training.checkpoint import load_weights, save_weights
from benchmark.training.starting import cached_items, take_released, take_weights
from models.hllm import HLLM
from tests.training.interactions import prepared

LLAMA = {
    "source": "scratch",
    "config": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
    },
}  # fmt: skip


def write_run(folder, name, method_class, model, *, text=None, starts_from=None, precision="fp32", **training):
    settings = {
        "sequence_length": 6, "global_batch": 16, "negatives": {"count": 20, "mask": "id"}, "epochs": 5, "patience": 9,
        "optimizer": {"learning_rate": 0.01, "weight_decay": 0.0}, **training,
    }  # fmt: skip
    run = Run.model_validate({
        "id": name, "method": name, "label": name, "class": method_class, "dataset": "small", "protocol": "hllm",
        "dataset_definition": {}, "model": model, "text": text, "training": settings, "seed": 3,
        "evaluation": {"sequence_length": 6}, "starts_from": starts_from,
        "execution": {"device": "cpu", "precision": precision},
    })  # fmt: skip
    run = run.model_copy(update={"id": f"{name}-{run.identity()}"})
    path = folder / "runs" / run.id / "run.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_run(run))
    return path


def done(path, root):
    runs.train(path, root)
    runs.rank(path, root)
    return read_ranks(path.parent / "ranks.parquet").rank


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(folder, id, ranks) of a trained and exported HLLM."""
    folder = tmp_path_factory.mktemp("starting")
    prepared(folder / "small", users=60)
    text = {"tokenizer": {"source": "train", "vocabulary_size": 300}}
    path = write_run(folder, "hllm", "models.hllm.HLLM", {"item_model": LLAMA, "user_model": LLAMA}, text=text)
    data.tokenize(path, folder)
    ranks = done(path, folder)
    runs.embed(path, folder)
    return folder, path.parent.name, ranks


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_items_are_exported_in_small_chunks_and_in_the_precision_of_the_run(tmp_path, monkeypatch, precision):
    """As they are embedded one by one in that precision, however many tokens they have together."""
    prepared(tmp_path / "small", users=60)
    text = {"tokenizer": {"source": "train", "vocabulary_size": 300}}
    towers = {"item_model": LLAMA, "user_model": LLAMA}
    path = write_run(tmp_path, "hllm", "models.hllm.HLLM", towers, text=text, precision=precision, epochs=1)
    data.tokenize(path, tmp_path)
    runs.train(path, tmp_path)
    monkeypatch.setattr(ranking, "_SIZE_AT_ONCE", 40)
    embedded, embed_items = [], HLLM.embed_items

    def counting(model, items):
        embedded.append(int(model.item_sizes(items).sum()))
        return embed_items(model, items)

    monkeypatch.setattr(HLLM, "embed_items", counting)
    runs.embed(path, tmp_path)
    assert len(embedded) > 3
    assert max(embedded) < 40 + sum(embedded) / 30 * 2  # a chunk may be longer by an item
    monkeypatch.undo()
    run = load_run_file(path)
    model = opened(run, path.parent, tmp_path, pretrained=False).model
    model.load_state_dict(load_weights(path.parent / "model.safetensors"))
    model.eval()
    exported = torch.from_numpy(np.load(path.parent / "item_embeddings.npy"))
    with torch.no_grad():
        whole = torch.cat([model.embed_items(torch.tensor([item])) for item in range(30)])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.cat([model.embed_items(torch.tensor([item])) for item in range(30)]).float()
    near, far = (whole, rounded) if precision == "fp32" else (rounded, whole)
    assert (exported - near).abs().max() < 0.1 * (exported - far).abs().max()
    lost = {key: value * torch.nan for key, value in load_weights(path.parent / "model.safetensors").items()}
    save_weights(path.parent / "model.safetensors", lost)
    with pytest.raises(UserError, match=rf"run {run.id}: an item's embedding is not .*optimizer\.learning_rate"):
        runs.embed(path, tmp_path)


CACHED = {"parts": ["user_llm"], "cached_items": True}


def test_a_user_llm_on_cached_items_ranks_as_the_model_it_was_taken_from(source):
    folder, name, ranks = source
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    cached = {**CACHED, "run": name}
    path = write_run(
        folder, "still", "models.cached_items.CachedItems", {"user_model": LLAMA}, starts_from=cached, optimizer=still
    )
    np.testing.assert_array_equal(done(path, folder), ranks)
    origin = json.loads((path.parent / "provenance.json").read_text())["starts_from"]
    card = json.loads((folder / "runs" / name / "item_embeddings.json").read_text())
    assert origin["run"] == name
    assert origin["item_embeddings_sha256"] == card["sha256"]
    fresh = write_run(folder, "fresh", "models.cached_items.CachedItems", {"user_model": LLAMA},
                      starts_from={**CACHED, "run": name, "parts": []}, optimizer=still)  # fmt: skip
    assert (done(fresh, folder) != ranks).mean() > 0.2


def test_no_epoch_ranks_the_source_under_other_settings(source):
    folder, name, ranks = source
    text = {"tokenizer": {"source": "train", "vocabulary_size": 300}}
    path = write_run(folder, "again", "models.hllm.HLLM", {"item_model": LLAMA, "user_model": LLAMA}, text=text,
                     starts_from={"run": name}, epochs=0)  # fmt: skip
    np.testing.assert_array_equal(done(path, folder), ranks)


def test_weights_that_are_no_numbers_are_told_in_one_sentence_when_ranked(source):
    folder, name, _ = source
    path = write_run(
        folder, "lost", "models.cached_items.CachedItems", {"user_model": LLAMA}, starts_from={**CACHED, "run": name}
    )
    runs.train(path, folder)
    weights = load_weights(path.parent / "model.safetensors")
    save_weights(path.parent / "model.safetensors", {key: value * torch.nan for key, value in weights.items()})
    with pytest.raises(UserError, match=rf"run {path.parent.name}: a score is not .*optimizer\.learning_rate"):
        runs.rank(path, folder)
    assert not (path.parent / "ranks.parquet").exists()


def test_ranking_with_other_item_embeddings_than_in_training_is_refused(source):
    folder, name, _ = source
    path = write_run(
        folder, "stale", "models.cached_items.CachedItems", {"user_model": LLAMA}, starts_from={**CACHED, "run": name}
    )
    runs.train(path, folder)
    record = json.loads((path.parent / "provenance.json").read_text())
    record["starts_from"]["item_embeddings_sha256"] = "0" * 64
    (path.parent / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was trained on the item embeddings 000000000000, and those"):
        runs.rank(path, folder)


def test_item_embeddings_are_checked_when_they_are_opened(source, tmp_path):
    folder, name, _ = source
    exported = folder / "runs" / name
    split = json.loads((exported / "item_embeddings.json").read_text())["split_sha256"]
    embeddings, _ = cached_items(exported, 30, split)
    assert embeddings.shape == (30, 16)
    with pytest.raises(UserError, match=r"are of the split .* and the data set is ffff"):
        cached_items(exported, 30, "f" * 64)
    with pytest.raises(UserError, match=r"has no exported item embeddings .*benchmark embed"):
        cached_items(tmp_path, 30, split)
    content = bytearray((exported / "item_embeddings.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "item_embeddings.npy").write_bytes(content)
    (tmp_path / "item_embeddings.json").write_text((exported / "item_embeddings.json").read_text())
    with pytest.raises(UserError, match=r"damaged .*SHA-256"):
        cached_items(tmp_path, 30, split)


class Parts(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, 2)


def test_only_the_named_parts_are_taken_over(tmp_path):
    trained, fresh = Parts(), Parts()
    save_weights(tmp_path / "model.safetensors", trained.state_dict())
    before = fresh.second.weight.detach().clone()
    take_weights(fresh, tmp_path / "model.safetensors", ["first"])
    assert torch.equal(fresh.first.weight, trained.first.weight)
    assert torch.equal(fresh.second.weight, before)


@pytest.mark.parametrize(
    ("parts", "width", "message"),
    [
        (["third"], 2, r"'third' is no part of both models; they share: first, second"),
        (["firs"], 2, "'firs' is no part of both models"),
        (None, 3, r"first\.weight is \(2, 2\) and not \(3, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_told_in_one_sentence(tmp_path, parts, width, message):
    save_weights(tmp_path / "model.safetensors", Parts().state_dict())
    with pytest.raises(UserError, match=message):
        take_weights(Parts(width), tmp_path / "model.safetensors", parts)


class Released(Parts):
    def released_state(self, path):
        if path.read_bytes() != b"weights":
            raise ValueError(f"{path} does not fit this model")
        return {name: torch.ones_like(value) for name, value in self.state_dict().items()}


def test_a_released_checkpoint_is_checked_and_taken(tmp_path):
    path, model = tmp_path / "pytorch_model.bin", Released()
    with pytest.raises(UserError, match="does not exist; put it there"):
        take_released(model, path, None)
    path.write_bytes(b"weights")
    digest = take_released(model, path, None)
    assert model.first.weight.eq(1).all()
    assert take_released(model, path, digest) == digest
    with pytest.raises(UserError, match="and ffffffffffff was expected"):
        take_released(model, path, "f" * 64)
    path.write_bytes(b"other")
    with pytest.raises(UserError, match="does not fit this model"):
        take_released(model, path, None)
