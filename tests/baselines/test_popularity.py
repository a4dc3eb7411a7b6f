import torch
from histories import ITEMS, random_sequences

from baselines.popularity import Popularity, PopularitySettings
from benchmark.recommender import Catalogue


def fitted():
    model = Popularity(Catalogue(ITEMS), 12, PopularitySettings())
    figures = model.fit(random_sequences([30, 4, 11]), None, seed=0)
    return model, figures


def test_scores_are_counts_of_training_events():
    model, figures = fitted()
    events = random_sequences([30, 4, 11]).items.tolist()
    history = random_sequences([2, 3], seed=9)
    predicted = model.comparable(model.embed_histories(history, model.embed_items(history.items)))
    scores = predicted @ model.comparable(model.embed_items(torch.arange(ITEMS))).T
    assert scores.tolist() == [[float(events.count(item)) for item in range(ITEMS)]] * 5
    assert figures == {"training_events": 45.0}


def test_a_checkpoint_restores_it():
    model, _ = fitted()
    other = Popularity(Catalogue(ITEMS), 12, PopularitySettings())
    other.load_state_dict(model.state_dict())
    everything = torch.arange(ITEMS)
    assert torch.equal(other.embed_items(everything), model.embed_items(everything))
    assert not list(model.parameters())


def test_fitting_again_starts_anew():
    model, _ = fitted()
    model.fit(random_sequences([30, 4, 11]), None, seed=1)
    assert torch.equal(model.counts, fitted()[0].counts)
