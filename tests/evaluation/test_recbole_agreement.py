"""RecBole's own evaluation and this project's give the same metrics when RecBole's settings are imitated.

MovieLens-100K, leave one out, full catalogue, history not masked: RecBole's data set, trainer and evaluator on one
side; a sorted list of scores, and this project's ranking, on the other.
"""

import importlib.metadata

import numpy as np
import pytest
import torch

pytest.importorskip("recbole")

# One of RecBole's models turns autograd's anomaly mode on for the whole process when the package is imported.
with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
    from recbole.data import data_preparation
    from recbole.data.dataset import SequentialDataset
    from recbole.model.sequential_recommender.sasrec import SASRec
    from recbole.trainer.trainer import Trainer

from baselines.recbole_compatibility import recbole_compatible
from baselines.recbole_sasrec import DATASET, RecBoleSASRec, RecBoleSASRecSettings, recbole_ids, write_atomic_files
from benchmark.data.dataset import EvaluationCases
from benchmark.evaluation.metrics import metric_mean
from benchmark.evaluation.ranking import RankingSettings, rank_cases
from benchmark.recommender import Catalogue, PackedSequences

USERS, LENGTH, CUTOFFS = 300, 10, (5, 10, 50)
SETTINGS = RecBoleSASRecSettings(
    layers=1, heads=2, width=16, inner_width=32, dropout=0.1, attention_dropout=0.1, learning_rate=1e-2,
    batch_size=512, epochs=2,
)  # fmt: skip


class Interactions:
    """The first users' events by (user, time, row of the file); items are numbered 0, 1, ... by their id."""

    def __init__(self):
        file = importlib.metadata.distribution("recbole").locate_file("recbole/dataset_example/ml-100k/ml-100k.inter")
        user, item, _, time = np.loadtxt(file, skiprows=1, delimiter="\t", dtype=np.int64).T
        self.item_count = len(np.unique(item))
        item = np.searchsorted(np.unique(item), item)
        order = np.lexsort((np.arange(len(user)), time, user))
        order = order[user[order] <= USERS]
        self.items, self.timestamps = item[order].astype(np.int32), time[order]
        self.ends = np.bincount(user[order])[1:].cumsum()
        self.starts = np.concatenate([[0], self.ends[:-1]])

    def without_last(self, count):
        """Every user's sequence without the newest `count` events, and the event that follows."""
        lengths = self.ends - count - self.starts
        items = np.concatenate([self.items[s : s + n] for s, n in zip(self.starts, lengths, strict=True)])
        packed = torch.from_numpy(items.astype(np.int64))
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        sequences = PackedSequences(packed, packed * 0, packed * 0, offsets, int(lengths.max()))
        return sequences, torch.from_numpy(self.items[self.ends - count].astype(np.int64))


@pytest.fixture(scope="module")
def interactions():
    return Interactions()


@pytest.fixture(scope="module")
def model(interactions):
    torch.manual_seed(3)
    found = RecBoleSASRec(Catalogue(interactions.item_count), LENGTH, SETTINGS)
    found.figures = found.fit(*interactions.without_last(2), seed=3)
    return found.eval()


@pytest.fixture(scope="module")
def by_recbole(interactions, model, tmp_path_factory):
    """The test target is the held-out event of RecBole's split, and everything before it the history."""
    folder = tmp_path_factory.mktemp("recbole")
    history, targets = interactions.without_last(1)
    write_atomic_files(folder / DATASET, history, targets, interactions.item_count)
    with recbole_compatible():
        config = model.recbole_config(folder, True, 3, "cpu")
        config["metrics"], config["topk"], config["metric_decimal_place"] = ["Recall", "NDCG", "MRR"], [*CUTOFFS], 12
        dataset = SequentialDataset(config)
        _, held_out, _ = data_preparation(config, dataset)
        theirs = SASRec(config, dataset)
        weights = {name: value.clone() for name, value in model.sasrec.state_dict().items()}
        weights["item_embedding.weight"][recbole_ids(dataset, interactions.item_count)] = (
            model.sasrec.item_embedding.weight.detach()
        )
        theirs.load_state_dict(weights)
        return dict(Trainer(config, theirs).evaluate(held_out, load_best_model=False))


def brute_force_ranks(interactions, model, count):
    """Ranks of each user's event `count` from the end: sorts the scores of the whole catalogue, which come from
    RecBole's own forward pass on one user at a time."""
    ranks = []
    for start, end in zip(interactions.starts, interactions.ends - count, strict=True):
        history, target = interactions.items[max(start, end - LENGTH) : end], interactions.items[end]
        ids = np.zeros((1, LENGTH), np.int64)
        ids[0, : len(history)] = history + 1
        batch = {"item_id_list": torch.from_numpy(ids), "item_length": torch.tensor([len(history)])}
        with torch.no_grad():
            scores = model.sasrec.full_sort_predict(batch)[0, 1:].numpy()
        ranks.append(1 + sorted(scores, reverse=True).index(scores[target]))  # as many as are strictly greater
    return np.array(ranks)


def test_recbole_agrees_with_brute_force(interactions, model, by_recbole):
    ranks = brute_force_ranks(interactions, model, 1)
    assert by_recbole["recall@10"] > 0.05  # the metrics say something
    for k in CUTOFFS:
        assert by_recbole[f"recall@{k}"] == pytest.approx(np.mean(ranks <= k), abs=1e-6)
        assert by_recbole[f"ndcg@{k}"] == pytest.approx(np.mean((ranks <= k) / np.log2(ranks + 1)), abs=1e-6)
        assert by_recbole[f"mrr@{k}"] == pytest.approx(np.mean((ranks <= k) / ranks), abs=1e-6)


def test_the_score_that_recbole_selected_by_is_that_of_the_weights_kept(interactions, model):
    ranks = brute_force_ranks(interactions, model, 2)
    score = np.mean((ranks <= 10) / ranks)
    assert model.figures["validation_mrr@10"] == pytest.approx(score, abs=5.1e-5)  # RecBole rounds to four digits


def test_recbole_agrees_with_this_projects_ranking(interactions, model, by_recbole):
    end = interactions.ends - 1
    cases = EvaluationCases(
        user=np.arange(USERS),
        history_start=interactions.starts,
        history_end=end,
        target=interactions.items[end],
        request_timestamp=interactions.timestamps[end],
    )
    found = rank_cases(model, interactions, cases, RankingSettings(LENGTH, mask="none", block_scores=100_000))
    for k in CUTOFFS:
        assert metric_mean(found.rank, f"recall@{k}") == pytest.approx(by_recbole[f"recall@{k}"], abs=1e-6)
        assert metric_mean(found.rank, f"ndcg@{k}") == pytest.approx(by_recbole[f"ndcg@{k}"], abs=1e-6)
