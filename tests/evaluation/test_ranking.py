"""Ranks against brute force: sort every candidate, one user at a time."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.data.dataset import EvaluationCases
from benchmark.errors import NotFiniteError
from benchmark.evaluation.ranking import RankingSettings, rank_cases
from benchmark.recommender import SequentialRecommender


@dataclass
class Interactions:
    """What ranking reads of a data set."""

    items: np.ndarray
    timestamps: np.ndarray
    item_count: int


class LastItem(SequentialRecommender):
    """Scores come from a table: the score of item j after item i is table[i] . vector[j]."""

    similarity = "dot"

    def __init__(self, table, vectors):
        super().__init__()
        self.table, self.vectors = table, vectors

    def embed_items(self, items):
        return self.vectors[items]

    def embed_histories(self, sequences, items):
        return self.table[sequences.items]


def brute_force(table, vectors, histories, targets, mask, length):
    rows = []
    for history, target in zip(histories, targets, strict=True):
        scores = {j: float(sum(a * b for a, b in zip(table[history[-1]].tolist(), vectors[j].tolist(), strict=True)))
                  for j in range(len(vectors))}  # fmt: skip
        hidden = set() if mask == "none" else set(history if mask == "whole" else history[-length:])
        if target in hidden:
            rows.append((len(scores) - len(hidden) + 1, 0, False))
            continue
        others = [scores[j] for j in scores if j not in hidden and j != target]
        greater, ties = sum(s > scores[target] for s in others), sum(s == scores[target] for s in others)
        rows.append((1 + greater + ties / 2, ties, True))
    return rows


@settings(max_examples=60, deadline=None)
@given(data=st.data(), mask=st.sampled_from(["whole", "truncated", "none"]))
def test_equals_brute_force_with_ties_masks_and_repeated_items(data, mask):
    count = data.draw(st.integers(2, 12), label="items")
    users = data.draw(st.integers(1, 6), label="users")
    item = st.integers(0, count - 1)
    histories = [data.draw(st.lists(item, min_size=1, max_size=8)) for _ in range(users)]
    targets = [data.draw(item) for _ in range(users)]
    length = data.draw(st.integers(1, 8), label="sequence length")
    whole = st.integers(-2, 2).map(float)  # few values: many ties, and exact sums
    table = torch.tensor([[data.draw(whole) for _ in range(2)] for _ in range(count)])
    vectors = torch.tensor([[data.draw(whole) for _ in range(2)] for _ in range(count)])
    flat = [i for history, target in zip(histories, targets, strict=True) for i in (*history, target)]
    ends = np.cumsum([len(h) + 1 for h in histories])
    starts = ends - [len(h) + 1 for h in histories]
    dataset = Interactions(np.array(flat, np.int32), np.arange(len(flat)), count)
    cases = EvaluationCases(
        user=np.arange(users),
        history_start=starts.astype(np.int64),
        history_end=(ends - 1).astype(np.int64),
        target=np.array(targets, np.int32),
        request_timestamp=dataset.timestamps[ends - 1],
    )
    got = rank_cases(
        LastItem(table, vectors), dataset, cases, RankingSettings(length, mask, block_scores=3 * count, item_chunk=5)
    )
    want = brute_force(table, vectors, histories, targets, mask, length)
    assert list(zip(got.rank.tolist(), got.ties.tolist(), got.hittable.tolist(), strict=True)) == want


def test_scores_that_are_no_numbers_are_refused():
    vectors = torch.tensor([[1.0], [float("nan")]])
    dataset = Interactions(np.array([0, 1], np.int32), np.arange(2), 2)
    one = np.array([0])
    cases = EvaluationCases(one, one, one + 1, np.array([1], np.int32), one)
    with pytest.raises(NotFiniteError, match="a score is not a finite number"):
        rank_cases(LastItem(vectors, vectors), dataset, cases, RankingSettings(5))


def test_bfloat16_scores_tie_where_float32_scores_do_not():
    vectors = torch.tensor([[1.0], [1.001], [0.5]])  # bfloat16 keeps steps of 1/128 above 1
    dataset = Interactions(np.array([2, 0], np.int32), np.arange(2), 3)
    one = np.array([0])
    cases = EvaluationCases(one, one, one + 1, np.array([0], np.int32), one)
    exact = rank_cases(LastItem(vectors, vectors), dataset, cases, RankingSettings(5))
    rounded = rank_cases(LastItem(vectors, vectors), dataset, cases, RankingSettings(5, scores="bf16"))
    assert (exact.rank[0], exact.ties[0]) == (2, 0)
    assert (rounded.rank[0], rounded.ties[0]) == (1.5, 1)
