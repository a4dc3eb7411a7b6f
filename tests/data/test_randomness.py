"""Counter-based randomness: a published reference sequence, uniformity, and what a number may depend on."""

import pytest
import torch
from scipy import stats

from benchmark.data import randomness
from benchmark.data.randomness import Stream


def test_is_splitmix64():
    # The first outputs of SplitMix64 seeded with 1234567, a test vector of its many public implementations.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    got = randomness.hashes(1234567, torch.arange(1, 6))
    assert [int(x) % 2**64 for x in got] == expected


def test_integers_are_uniform_and_reach_every_value():
    drawn = randomness.integers(randomness.key(1, Stream.NEGATIVES), torch.arange(200_000), 101)
    counts = torch.bincount(drawn, minlength=101).numpy()
    assert len(counts) == 101
    assert stats.chisquare(counts).pvalue > 1e-4


def test_streams_seeds_and_steps_differ_and_repeat():
    keys = {randomness.key(seed, stream, step) for seed in range(5) for stream in Stream for step in range(50)}
    assert len(keys) == 5 * len(Stream) * 50
    assert randomness.key(3, Stream.DROPOUT, 8) == randomness.key(3, Stream.DROPOUT, 8)


def test_a_number_depends_on_its_own_position_only():
    key = randomness.key(7, Stream.NEGATIVES, 3)
    whole = randomness.integers(key, torch.arange(100), 1000)
    assert torch.equal(randomness.integers(key, torch.arange(40, 60), 1000), whole[40:60])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stream", list(Stream))
def test_a_compiled_kernel_draws_the_same_numbers(stream):
    key, positions = randomness.key(2020, stream, 5), torch.arange(-1000, 100_000)
    drawn = randomness.integers(key, positions, 686_624)
    assert torch.equal(randomness.integers(key, positions.cuda(), 686_624, compiled=True).cpu(), drawn)
    assert torch.equal(randomness.integers(key, positions.cuda(), 686_624).cpu(), drawn)


def test_permutation_holds_every_number_once():
    order = randomness.permutation(randomness.key(0, Stream.WINDOW_ORDER), 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert abs(stats.spearmanr(order.numpy(), range(1000)).statistic) < 0.1
