"""RecBole's SASRec behind this project's contract: the same numbers, the right items, nothing seen, nothing left."""

import logging
import os
import random
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

pytest.importorskip("recbole")

from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.trainer.trainer import Trainer

from baselines.recbole_compatibility import recbole_compatible
from baselines.recbole_sasrec import DATASET, RecBoleSASRec, RecBoleSASRecSettings, recbole_ids, write_atomic_files
from benchmark.recommender import Catalogue, PackedSequences

ITEMS, LENGTH = 40, 6
SETTINGS = RecBoleSASRecSettings(
    layers=2, heads=2, width=16, inner_width=32, dropout=0.1, attention_dropout=0.1, learning_rate=5e-3,
    batch_size=64, epochs=3,
)  # fmt: skip


def pack(histories):
    items = torch.tensor([i for history in histories for i in history])
    lengths = torch.tensor([len(history) for history in histories])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    # equal times throughout: the order of the events is all there is
    return PackedSequences(items, torch.zeros_like(items), torch.zeros_like(items), offsets, int(lengths.max()))


def walks(users=60, seed=0):
    """Users who go up through the first 30 items in steps of 1 to 3; items 30 to 39 are never met."""
    draw = random.Random(seed)
    found = []
    for _ in range(users):
        item = draw.randrange(30)
        found.append([item := (item + draw.randint(1, 3)) % 30 for _ in range(draw.randint(4, 14))])
    return found


def build(settings=SETTINGS):
    torch.manual_seed(1)
    return RecBoleSASRec(Catalogue(ITEMS), LENGTH, settings)


def fitted(histories, settings=SETTINGS, seed=2020):
    model = build(settings)
    figures = model.fit(pack([h[:-1] for h in histories]), torch.tensor([h[-1] for h in histories]), seed)
    return model, figures


def right_padded(histories):
    """RecBole's input: its ids (catalogue index + 1), zeros on the right, and the lengths."""
    recent = [h[-LENGTH:] for h in histories]
    ids = torch.tensor([[i + 1 for i in h] + [0] * (LENGTH - len(h)) for h in recent])
    return ids, torch.tensor([len(h) for h in recent])


def test_every_position_equals_recboles_forward():
    model = build().eval()
    histories = [h[-LENGTH:] for h in walks(20)] + [[3], [5, 5]]
    sequences = pack(histories)
    with torch.no_grad():
        ours = model.embed_histories(sequences, model.embed_items(sequences.items))
        for row, history in enumerate(histories):
            start = int(sequences.offsets[row])
            for n in range(1, len(history) + 1):
                theirs = model.sasrec.forward(*right_padded([history[:n]]))[0]
                torch.testing.assert_close(ours[start + n - 1], theirs, atol=2e-6, rtol=1e-5)


def test_scores_equal_recboles_full_sort_predict():
    model = build().eval()
    histories = [h[-LENGTH:] for h in walks(20)]
    sequences, (ids, lengths) = pack(histories), right_padded(histories)
    with torch.no_grad():
        catalogue = model.embed_items(torch.arange(ITEMS))
        hidden = model.embed_histories(sequences, catalogue[sequences.items])[sequences.last]
        ours = model.comparable(hidden) @ model.comparable(catalogue).T
        theirs = model.sasrec.full_sort_predict({"item_id_list": ids, "item_length": lengths})
    torch.testing.assert_close(ours, theirs[:, 1:], atol=2e-6, rtol=1e-5)


def test_learns_which_item_follows_which():
    """Wrong ids anywhere between this project and RecBole would make the weights those of other items."""
    model, figures = fitted(walks(300), replace(SETTINGS, epochs=12, learning_rate=1e-2))
    model.eval()
    with torch.no_grad():
        catalogue = model.embed_items(torch.arange(ITEMS))
        for item in range(30):
            sequence = pack([[(item - 4) % 30, (item - 2) % 30, item]])
            scores = model.embed_histories(sequence, catalogue[sequence.items])[-1] @ catalogue.T
            assert set(scores.topk(3).indices.tolist()) <= {(item + step) % 30 for step in range(6)}
    assert 1 <= figures["best_epoch"] <= figures["epochs"] <= 12
    assert figures["validation_mrr@10"] > 0.3


def test_recbole_reads_the_training_events_in_order_and_the_validation_target_last(tmp_path):
    histories = [*walks(), [7, 9]]  # the last user has one training event
    training, targets = pack([h[:-1] for h in histories]), torch.tensor([h[-1] for h in histories])
    write_atomic_files(tmp_path / DATASET, training, targets, ITEMS)
    with recbole_compatible():
        config = build().recbole_config(tmp_path, True, 1, "cpu")
        dataset = SequentialDataset(config)
        parts = data_preparation(config, dataset)
        ids = recbole_ids(dataset, ITEMS).tolist()
    assert sorted(ids) == list(range(ITEMS + 1))  # every item has a row, met or not
    index_of = {number: place - 1 for place, number in enumerate(ids)}
    user_of = dataset.field2id_token["user_id"]

    def rows(part):
        feat = part._dataset.inter_feat
        return {
            (int(user_of[u]), tuple(index_of[i] for i in items[:n]), index_of[target])
            for u, items, n, target in zip(
                feat["user_id"].tolist(), feat["item_id_list"].tolist(), feat["item_length"].tolist(),
                feat["item_id"].tolist(), strict=True,
            )
        }  # fmt: skip

    prefixes = {
        (user, tuple(h[max(0, n - LENGTH) : n]), h[n]) for user, h in enumerate(histories) for n in range(1, len(h) - 1)
    }
    validation = {(user, tuple(h[:-1][-LENGTH:]), h[-1]) for user, h in enumerate(histories) if len(h) > 2}
    assert rows(parts[0]) == prefixes
    assert rows(parts[1]) == validation
    assert len(parts[2]) == 0  # there is no test part


def test_without_validation_every_event_is_for_training(tmp_path):
    histories = walks()
    model = build()
    figures = model.fit(pack(histories), None, 3)
    targets = sum(len(h) - 1 for h in histories)
    assert figures == {"epochs": 3, "best_epoch": 3, "steps": 3 * -(-targets // SETTINGS.batch_size)}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_training_without_a_pair_of_events_is_refused():
    with pytest.raises(ValueError, match="no user has two training events"):
        build().fit(pack([[1], [2]]), torch.tensor([3, 4]), 1)


def test_only_training_events_and_validation_targets_are_written(monkeypatch):
    """An item that occurs as a test target only must not be in RecBole's interactions."""
    histories = [[*h, 39] for h in walks()]
    seen = []
    read = SequentialDataset._load_feat

    def recorded(self, path, source):
        seen.append(pd.read_csv(path, sep="\t"))
        return read(self, path, source)

    monkeypatch.setattr(SequentialDataset, "_load_feat", recorded)
    fitted([h[:-1] for h in histories], replace(SETTINGS, epochs=1))
    events, items = seen
    assert 39 not in set(events["item_id:token"])
    assert items["item_id:token"].tolist() == list(range(ITEMS))
    assert len(events) == sum(len(h) - 1 for h in histories)


def test_same_seed_same_weights_whatever_the_state_of_the_random_streams():
    first, figures = fitted(walks())
    torch.manual_seed(77)
    random.seed(5)
    np.random.seed(5)
    second, again = fitted(walks())
    other, _ = fitted(walks(), seed=2021)
    assert figures == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.embed_items(torch.arange(ITEMS)), other.embed_items(torch.arange(ITEMS)))


def test_the_weights_of_the_best_epoch_are_kept(tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.3])
    weights = []

    def scripted(self, *_, **__):
        weights.append(self.model.position_embedding.weight.detach().clone())
        score = next(scores)
        return score, {"mrr@10": score}

    monkeypatch.setattr(Trainer, "_valid_epoch", scripted)
    model, figures = fitted(walks())
    assert figures["best_epoch"] == 2
    assert figures["epochs"] == 3
    assert figures["validation_mrr@10"] == 0.5
    assert torch.equal(model.sasrec.position_embedding.weight, weights[1])


def test_state_dict_restores_the_model():
    trained, _ = fitted(walks(), replace(SETTINGS, epochs=1))
    restored = build(replace(SETTINGS, epochs=7))
    restored.load_state_dict(trained.state_dict(), strict=True)
    sequences = pack([h[-LENGTH:] for h in walks(5)])
    trained.eval()
    restored.eval()
    assert torch.equal(
        trained.embed_histories(sequences, trained.embed_items(sequences.items)),
        restored.embed_histories(sequences, restored.embed_items(sequences.items)),
    )


def test_fit_leaves_the_process_as_it_was(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--epochs=1", "--learning_rate=9", "train"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    caplog.set_level(logging.INFO)

    def state():
        return (
            random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), dict(os.environ),
            sys.argv[:], sorted(vars(np)), np.bool, np.long,
            logging.getLogger().filters[:], logging.getLogger().handlers[:],
            repr(yaml.FullLoader.yaml_implicit_resolvers), torch.backends.cudnn.deterministic,
        )  # fmt: skip

    before = state()
    _, figures = fitted(walks())
    assert state() == before
    assert figures["epochs"] == 3  # not what stands on the command line
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
    assert "epoch 3: validation score" in caplog.text
    assert "\x1b" not in caplog.text


def test_the_process_is_restored_after_an_error():
    names = sorted(vars(np))
    with pytest.raises(RuntimeError), recbole_compatible():
        raise RuntimeError
    assert sorted(vars(np)) == names
    assert logging.getLogger().filters == []


def test_importing_recbole_leaves_autograd_as_it_was():
    assert not torch.is_anomaly_enabled()
