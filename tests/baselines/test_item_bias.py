"""The item alone: its logits are the log odds of the items' labels, whoever the user is."""

import torch
from histories import random_sequences
from torch.nn import functional as F

from baselines.item_bias import ItemBias, ItemBiasSettings
from benchmark.recommender import Catalogue

CLICKED = [[1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 1, 0]]  # labels of each item's cases


def logits(model, targets, seed):
    sequences = random_sequences([3] * len(targets), seed=seed)
    states = model.click_states(sequences, model.embed_items(sequences.items % len(CLICKED)))
    return model.click_logits(states, model.embed_items(targets))


def test_fitted_logits_are_log_odds_and_no_history_moves_them():
    model = ItemBias(Catalogue(len(CLICKED)), 5, ItemBiasSettings())
    targets = torch.arange(len(CLICKED)).repeat_interleave(4)
    labels = torch.tensor(CLICKED).flatten().float()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits(model, targets, seed=1), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    share = torch.tensor(CLICKED).float().mean(1)
    found = logits(model, torch.arange(len(CLICKED)), seed=1)
    torch.testing.assert_close(found, (share / (1 - share)).log(), atol=1e-3, rtol=0)
    assert torch.equal(found, logits(model, torch.arange(len(CLICKED)), seed=2))
    assert torch.equal(model.item_table(), model.embed_items(torch.arange(len(CLICKED))))
