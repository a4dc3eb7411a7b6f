"""Windows and batches against the rules of the released code, written out user by user."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.batches import Negatives, TrainingBatches, flat_ranges, packed, sampled_users, training_windows
from benchmark.data.dataset import load_dataset
from tests.training.interactions import prepared


def windows_by_hand(lengths, sequence_length, choice):
    found = []
    for user, n in enumerate(lengths):
        events, window = [(user, i) for i in range(n)], sequence_length + 1
        if choice == "last":
            found.append(events[-window:])
        elif choice == "first":
            found.append(events[:window])
        elif n <= window:
            found.append(events)
        else:
            events = events[n % window :]
            found += [events[i : i + window] for i in range(0, len(events), window)]
    return [w for w in found if len(w) >= 2]


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=10),
    sequence_length=st.integers(1, 8),
    choice=st.sampled_from(["all", "last", "first"]),
)
def test_windows(lengths, sequence_length, choice):
    total = np.array([n + 2 for n in lengths])  # two more events a user, held out
    offsets = total.cumsum() - total
    starts, sizes = training_windows(np.array(lengths, np.int64), offsets, sequence_length, choice)
    flat = [(user, i) for user, n in enumerate(total) for i in range(n)]
    got = [flat[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    assert got == windows_by_hand(lengths, sequence_length, choice)


def test_flat_ranges():
    assert flat_ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(prepared(tmp_path_factory.mktemp("batches")))


def batches(dataset, sharing="shared", seed=1, global_batch=7, user_share=1.0):
    return TrainingBatches(
        dataset, sequence_length=5, windows="all", global_batch=global_batch,
        negatives=Negatives(11, sharing), seed=seed, user_share=user_share,
    )  # fmt: skip


def test_an_epoch_holds_every_window_once_in_an_order_of_its_own(dataset):
    made = batches(dataset)
    epochs = [
        np.concatenate([made.windows_of(e * made.steps_per_epoch + s) for s in range(made.steps_per_epoch)])
        for e in range(2)
    ]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(len(made.starts)))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_targets_are_the_next_items_and_their_times_and_never_held_out(dataset):
    made = batches(dataset)
    batch = made.batch(0)
    sequences, row = batch.sequences, 0
    for window in made.windows_of(0):
        start, size = made.starts[window], made.lengths[window]
        events = slice(start, start + size)
        assert sequences.items[row : row + size - 1].tolist() == dataset.items[events][:-1].tolist()
        assert batch.targets[row : row + size - 1].tolist() == dataset.items[events][1:].tolist()
        assert sequences.next_timestamps[row : row + size - 1].tolist() == dataset.timestamps[events][1:].tolist()
        user = np.searchsorted(dataset.offsets, start, side="right") - 1
        assert start + size <= dataset.offsets[user] + dataset.split[user, 0]
        row += size - 1
    assert row == len(batch.targets)


@pytest.mark.parametrize("sharing", ["shared", "per_position"])
def test_batches_depend_on_seed_and_step_only(dataset, sharing):
    one, other = batches(dataset, sharing).batch(9), batches(dataset, sharing).batch(9)
    assert torch.equal(one.negatives, other.negatives)
    assert torch.equal(one.sequences.items, other.sequences.items)
    assert one.negatives.shape == ((11,) if sharing == "shared" else (len(one.targets), 11))
    assert not torch.equal(batches(dataset, sharing, seed=2).batch(9).negatives[:11], one.negatives[:11])
    assert one.negatives.max() < dataset.item_count


def test_a_smaller_share_of_users_is_part_of_a_larger_one_at_every_seed(dataset):
    users = {}
    for share in (0.1, 0.5, 1.0):
        for seed in (1, 2):
            made = batches(dataset, seed=seed, user_share=share)
            users[share, seed] = set((np.searchsorted(dataset.offsets, made.starts, side="right") - 1).tolist())
        assert users[share, 1] == users[share, 2]
        chosen = sampled_users(dataset.user_count, share)
        assert chosen.sum() == round(share * dataset.user_count)
        assert users[share, 1] == set(np.flatnonzero(chosen & (dataset.split[:, 0] >= 2)).tolist())
    assert users[0.1, 1] < users[0.5, 1] < users[1.0, 1]


def test_shuffled_histories_keep_every_users_items_and_lose_their_order(dataset):
    plain, shuffled = (
        TrainingBatches(
            dataset, sequence_length=5, windows="all", global_batch=7, negatives=Negatives(11, "shared"), seed=1,
            order=order,
        ).dataset
        for order in ("chronological", "shuffled")
    )  # fmt: skip
    moved = 0
    for start, (train_end, validation, test) in zip(dataset.offsets[:-1], dataset.split, strict=True):
        before, after = (x.items[start : start + train_end].tolist() for x in (plain, shuffled))
        assert sorted(before) == sorted(after)
        moved += before != after
        for held_out in (validation, test):
            assert plain.items[start + held_out] == shuffled.items[start + held_out]
    assert moved > 0.9 * dataset.user_count


def test_a_shuffled_sequence_does_not_depend_on_what_it_is_packed_with(dataset):
    starts, lengths = np.asarray(dataset.offsets[:3]), np.array([4, 3, 5])
    together = packed(dataset, starts, lengths, shuffle_key=8)
    alone = packed(dataset, starts[1:2], lengths[1:2], shuffle_key=8)
    assert together.items[4:7].tolist() == alone.items.tolist()
    assert sorted(alone.items.tolist()) == sorted(dataset.items[starts[1] : starts[1] + 3].tolist())
    assert together.timestamps.tolist() == packed(dataset, starts, lengths).timestamps.tolist()
