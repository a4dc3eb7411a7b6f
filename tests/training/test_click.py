"""Click prediction: which events are cases, what a case's loss may read, and the loss against loops over the events."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from baselines.discriminative_id import DiscriminativeHSTU, DiscriminativeHSTUSettings
from baselines.hstu import HSTUSettings
from benchmark.data.batches import Negatives, TrainingBatches
from benchmark.data.click_cases import blocks, click_data
from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.evaluation.click_metrics import auc, read_clicks
from benchmark.evaluation.clicks import predict_clicks, serving_times, write_predictions
from benchmark.experiments import Run
from benchmark.recommender import Catalogue, ClickRecommender
from benchmark.training.click import ClickObjective, clicks_of
from benchmark.training.engine import Engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.trainer import Trainer, seeded
from tests.training.interactions import prepared


class Summing(ClickRecommender):
    """The state is the sum of the events so far, the request included or not; the logit is linear in both."""

    def __init__(self, items, early, width=4):
        super().__init__()
        self.table, self.head, self.target_in_history = nn.Embedding(items, width), nn.Linear(2 * width, 1), early

    def embed_items(self, items):
        return self.table(items)

    def embed_histories(self, sequences, items):
        sums = items.cumsum(0)
        before = torch.cat([sums.new_zeros(1, items.shape[1]), sums])[sequences.offsets[:-1]]
        return sums - before[sequences.segments]

    def click_states(self, sequences, items):
        if not self.target_in_history:
            items = items.index_fill(0, sequences.last, 1.0)
        return self.embed_histories(sequences, items)[sequences.last]

    def click_logits(self, states, targets):
        return self.head(torch.cat([states, targets], 1)).squeeze(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Users one after another in time, so that a cut by time falls between users and within one."""
    plain = load_dataset(prepared(tmp_path_factory.mktemp("click"), users=60))
    random = np.random.default_rng(4)
    labels = (random.random(len(plain.items)) < 0.6).astype(np.int8)
    times = plain.timestamps + 6000 * np.repeat(np.arange(60), np.diff(plain.offsets))
    return replace(plain, labels=labels, timestamps=times)


def past_of(dataset, event, history, length):
    """What a request at the time of an event may read of its user, told without the code that is tested."""
    first = max(start for start in dataset.offsets.tolist() if start <= event)
    return [e for e in range(first, event) if history == "all" or dataset.labels[e] == 1][-length:]


def batches(dataset, cases=3, history="all", **options):
    data = click_data(dataset, 0.2, 0.2, history)
    settings = {
        "sequence_length": 5,
        "windows": "all",
        "global_batch": 7,
        "negatives": Negatives(6, "shared"),
        "seed": 3,
    }
    return TrainingBatches(data.dataset, **settings | options, click_cases=cases, click_history=history)


@pytest.mark.parametrize("history", ["all", "positive"])
def test_parts_are_cut_by_time_and_cases_know_the_past_alone(dataset, history):
    data = click_data(dataset, 0.2, 0.15, history)
    starts = [dataset.timestamps[part.event].min() for part in (data.validation, data.test)]
    assert dataset.timestamps[data.validation.event].max() < starts[1]
    trained = np.concatenate([
        np.arange(start, start + count) for start, count in zip(dataset.offsets, data.dataset.split[:, 0], strict=False)
    ])  # fmt: skip
    assert dataset.timestamps[trained].max() < starts[0]
    everyone = set(trained) | set(data.validation.event) | set(data.test.event)
    later_firsts = {event for event in dataset.offsets[:-1] if event not in set(trained)}
    assert everyone | later_firsts == set(range(len(dataset.items)))
    assert 0.1 < len(data.test) / len(dataset.items) <= 0.2
    for part in (data.validation, data.test):
        found = {}
        for chosen, sequences, targets in blocks(data, part, 4, 9):
            for place, case in enumerate(chosen):
                start, end = sequences.offsets[place : place + 2].tolist()
                found[int(case)] = (sequences, start, end)
                assert targets[place] == dataset.items[part.event[case]] == sequences.items[end - 1]
        assert sorted(found) == list(range(len(part)))
        for case, (sequences, start, end) in found.items():
            event = part.event[case]
            past = past_of(dataset, event, history, 4)
            assert sequences.items[start : end - 1].tolist() == dataset.items[past].tolist()
            times = [*dataset.timestamps[past], dataset.timestamps[event]]
            assert sequences.timestamps[start:end].tolist() == times
            assert sequences.next_timestamps[start:end].tolist() == [*times[1:], times[-1]]
            assert part.label[case] == dataset.labels[event]


def loop_loss(model, dataset, made, step, history, weight, negatives_of):
    """Windows, cases and pairs one by one; how many positions a case stands for is its window's positions / cases."""
    batch, table = made.batch(step), model.table.weight
    total, generative, positions = 0.0, 0.0, 0
    cases = iter(batch.labels.cases.tolist())
    for window in made.windows_of(step):
        start, size = made.starts[window], made.lengths[window]
        events = range(start, start + size)
        positions += size - 1
        chosen = [e for e in events[1:] if next(cases)]
        for event in chosen:
            past = past_of(dataset, event, history, made.sequence_length)
            last = table[dataset.items[event]] if model.target_in_history else torch.ones(table.shape[1])
            state = sum((table[dataset.items[e]] for e in past), last)
            logit = model.head.weight[0] @ torch.cat([state, table[dataset.items[event]]]) + model.head.bias[0]
            probability = 1 / (1 + (-logit).exp())
            wanted = probability if dataset.labels[event] == 1 else 1 - probability
            total = total - wanted.log() * (size - 1) / len(chosen)
        kept = [e for e in events if history == "all" or dataset.labels[e] == 1]
        for count in range(1, len(kept)):
            state = sum(table[dataset.items[e]] for e in kept[:count])
            target = int(dataset.items[kept[count]])
            candidates = [target, *(n for n in negatives_of(batch) if n != target)]
            scores = nn.functional.cosine_similarity(state[None], table[candidates]) / 0.07
            generative = generative - scores.log_softmax(0)[0]
    return (total + weight * generative) / positions


@pytest.mark.parametrize("history", ["all", "positive"])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("history_chunk", [None, 2])
def test_the_loss_equals_loops_over_windows_with_gradients(dataset, history, early, weight, history_chunk):
    torch.manual_seed(1)
    model, made = Summing(dataset.item_count, early), batches(dataset, history=history)
    objective = ClickObjective(InfoNCE(Temperature(learnable=False), "id"), weight, history)
    engine = Engine(
        model, objective, torch.optim.SGD(model.parameters(), lr=0.0), device=torch.device("cpu"), bf16=False,
        history_chunk=history_chunk,
    )  # fmt: skip
    figures = engine.step(made.batch(2))
    got = [p.grad.clone() for p in model.parameters()]
    expected = loop_loss(model, dataset, made, 2, history, weight, lambda batch: batch.negatives.tolist())
    torch.testing.assert_close(figures.loss, expected.detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(got, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("history", ["all", "positive"])
def test_a_case_that_is_trained_on_reads_as_much_of_its_user_as_one_that_is_predicted(dataset, history):
    """Windows cut a user's events into pieces, and their positive events are fewer still: neither may shorten it."""
    made, lengths = batches(dataset, history=history), set()
    for step in range(3 * made.steps_per_epoch):
        batch = made.batch(step)
        events = [
            event
            for window in made.windows_of(step)
            for event in range(made.starts[window] + 1, made.starts[window] + made.lengths[window])
        ]
        chosen = [event for event, drawn in zip(events, batch.labels.cases.tolist(), strict=True) if drawn]
        requests = batch.labels.requests
        for event, (start, end) in zip(chosen, pairwise(requests.offsets.tolist()), strict=True):
            past = past_of(dataset, event, history, 5)
            assert requests.items[start:end].tolist() == dataset.items[[*past, event]].tolist()
            times = dataset.timestamps[[*past, event]].tolist()
            assert requests.timestamps[start:end].tolist() == times
            assert requests.next_timestamps[start:end].tolist() == [*times[1:], times[-1]]
            lengths.add(len(past))
    assert lengths == set(range(6)) if history == "positive" else max(lengths) == 5


def test_labels_of_a_target_and_of_later_events_are_no_input(dataset):
    """Other labels from an event on change no earlier case's logit, in training cases and in test cases alike."""
    model = Summing(dataset.item_count, early=True)
    for history in ("all", "positive"):
        before = click_data(dataset, 0.2, 0.2, history)
        logits = predict_clicks(model, before, before.test, 5)
        middle = before.test.event[len(before.test) // 2]
        labels = dataset.labels.copy()
        labels[middle:] = 1 - labels[middle:]
        after = click_data(replace(dataset, labels=labels), 0.2, 0.2, history)
        again = predict_clicks(model, after, after.test, 5)
        reached = before.test.event <= middle
        assert logits[reached] == pytest.approx(again[reached], abs=1e-4)
        assert (logits == pytest.approx(again, abs=1e-4)) == (history == "all")


def test_cases_are_drawn_anew_a_step_and_as_many_a_window_as_asked(dataset):
    made = batches(dataset, cases=2)
    first, same, other = made.batch(0), made.batch(0), made.batch(made.steps_per_epoch)
    assert torch.equal(first.labels.cases, same.labels.cases)
    for batch in (first, other):
        drawn = torch.bincount(batch.sequences.segments[batch.labels.cases], minlength=len(batch))
        assert drawn.tolist() == batch.sequences.lengths.clamp(max=2).tolist()
    chosen = set()  # over epochs every position of every window has its turn
    for step in range(12 * made.steps_per_epoch):
        batch = made.batch(step)
        windows = np.repeat(made.windows_of(step), batch.sequences.lengths)
        places = batch.sequences.positions[batch.labels.cases].tolist()
        chosen |= set(zip(windows[batch.labels.cases], places, strict=True))
    assert len(chosen) > 0.95 * (made.lengths - 1).sum()


def a_run(epochs=8, **click):
    run = Run.model_validate({
        "id": "", "method": "summing", "label": "Summing", "class": "baselines.x.X", "dataset": "small",
        "protocol": "hllm", "dataset_definition": {}, "model": {}, "text": None, "seed": 3,
        "training": {
            "sequence_length": 6, "global_batch": 8, "negatives": {"count": 20, "mask": "id"}, "epochs": epochs,
            "patience": epochs, "optimizer": {"learning_rate": 0.03, "weight_decay": 0.0}, "selection_metric": "auc",
            "click": {"cases_per_window": 4, "validation_share": 0.2, "test_share": 0.2, **click},
        },
        "evaluation": {"sequence_length": 6},
    })  # fmt: skip
    return run.model_copy(update={"id": run.identity()})


def test_a_whole_run_learns_which_items_are_liked(dataset, tmp_path):
    """Even items are liked by everybody."""
    liked = replace(dataset, labels=(dataset.items % 2 == 0).astype(np.int8))
    run = a_run(generative_weight=0.1)
    trainer = Trainer(run, liked, seeded(lambda: Summing(liked.item_count, True), 3), tmp_path, torch.device("cpu"))
    trainer.train()
    assert trainer.progress.record[-1]["auc"] > 0.9
    assert {"click_loss", "generative_loss", "log_loss", "group_auc", "temperature"} <= set(trainer.progress.record[0])
    cut = clicks_of(run, liked)
    logits = predict_clicks(trainer.model, cut, cut.test, 6)
    write_predictions(tmp_path / "clicks.parquet", cut, cut.test, logits, 6)
    table = read_clicks(tmp_path / "clicks.parquet")
    assert table.label.tolist() == cut.test.label.tolist()
    assert table.logit == pytest.approx(logits, rel=1e-5)
    assert table.history_length.max() <= 6


@pytest.mark.parametrize(
    ("metric", "label", "message"),
    [
        ("ndcg@10", lambda item, user: item % 2 == 0, r"set training\.selection_metric to auc or group_auc"),
        ("auc", lambda item, user: item >= 0, r"auc is not defined, because all \d+ validation cases have the same"),
        ("group_auc", lambda item, user: user % 2 == 0, r"group_auc .*no user .*set training\.selection_metric to auc"),
    ],
)
def test_a_metric_that_can_choose_no_epoch_is_refused_before_training(dataset, tmp_path, metric, label, message):
    owner = np.repeat(np.arange(dataset.user_count), np.diff(dataset.offsets))
    labelled = replace(dataset, labels=label(dataset.items, owner).astype(np.int8))
    run, model = a_run(epochs=1), Summing(dataset.item_count, True)
    run = run.model_copy(update={"training": run.training.model_copy(update={"selection_metric": metric})})
    with pytest.raises(UserError, match=message):
        Trainer(run, labelled, model, tmp_path, torch.device("cpu"))
    last = run.model_copy(update={"training": run.training.model_copy(update={"selection": "last"})})
    Trainer(last, labelled, model, tmp_path, torch.device("cpu")).train()


@pytest.fixture
def one_thread():
    """Models this small wait for their threads ten times as long as they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fusion", ["early", "late"])
def test_a_run_learns_what_the_history_alone_tells(dataset, tmp_path, fusion):
    """Each user likes the even items or the odd ones: the target tells nothing, and test users are nearly all new."""
    owner = np.repeat(np.arange(dataset.user_count), np.diff(dataset.offsets))
    liked = replace(dataset, labels=(dataset.items % 2 == owner % 2).astype(np.int8))
    settings = DiscriminativeHSTUSettings(HSTUSettings(layers=1, heads=1, width=16, dropout=0.0), fusion)
    run = a_run(epochs=20)
    build = partial(DiscriminativeHSTU, Catalogue(liked.item_count), 6, settings)
    trainer = Trainer(run, liked, seeded(build, 3), tmp_path, torch.device("cpu"))
    trainer.train()
    cut = clicks_of(run, liked)
    read = cut.test.history_end - cut.test.history_start > 1
    assert read.sum() > 50
    logits = predict_clicks(trainer.model, cut, cut.test, 6)[read]
    assert auc(cut.test.label[read], logits) > 0.95
    assert trainer.progress.record[-1]["loss"] < 0.2


def test_serving_is_timed_with_and_without_a_shared_state(dataset):
    data = click_data(dataset, 0.2, 0.2, "positive")
    early, late = (
        serving_times(Summing(dataset.item_count, early), data, data.test, 5, candidate_counts=(1, 8), requests=3)
        for early in (True, False)
    )
    assert [(t.candidates, t.sharing) for t in early] == [(1, "none"), (8, "none")]
    assert [(t.candidates, t.sharing) for t in late] == [(1, "none"), (1, "state"), (8, "none"), (8, "state")]
    assert all(t.milliseconds > 0 and t.milliseconds_per_candidate == t.milliseconds / t.candidates for t in late)


def test_a_data_set_without_labels_is_refused(dataset):
    with pytest.raises(UserError, match="has no labels, so clicks cannot be predicted"):
        click_data(replace(dataset, labels=None), 0.1, 0.1, "all")
    with pytest.raises(UserError, match="no case in the training part"):
        click_data(replace(dataset, timestamps=np.zeros_like(dataset.timestamps)), 0.1, 0.1, "all")
