"""Random histories for the baselines, and what their parity tests compare."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmark.recommender import Catalogue, PackedSequences, SequentialRecommender

ITEMS = 40
SEQUENCE_LENGTH = 12
LENGTHS = [5, 1, 12, 2, 7, 12, 3]  # events of each user


def random_sequences(lengths: list[int], seed: int = 0) -> PackedSequences:
    """Users with random items at random times, minutes to years apart and sometimes tied."""
    generator = torch.Generator().manual_seed(seed)
    times, following = [], []
    for length in lengths:
        gaps = (10 ** (8 * torch.rand(length + 1, generator=generator))).long()
        gaps[torch.rand(length + 1, generator=generator) < 0.2] = 0
        moments = 900_000_000 + gaps.cumsum(0)
        times.append(moments[:-1])
        following.append(moments[1:])
    return PackedSequences(
        items=torch.randint(ITEMS, (sum(lengths),), generator=generator),
        timestamps=torch.cat(times),
        next_timestamps=torch.cat(following),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        max_length=max(lengths),
    )


def build(kind: type[SequentialRecommender], settings: Any, seed: int = 1) -> SequentialRecommender:
    """A model whose parameters, biases and norms included, are all random, so that none can hide."""
    torch.manual_seed(seed)
    model = kind(Catalogue(ITEMS), SEQUENCE_LENGTH, settings)  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def users(sequences: PackedSequences) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(sequences.offsets.tolist())]


def contrastive_loss(outputs: Tensor, table: Tensor, seed: int = 3) -> Tensor:
    """Sampled softmax over cosines, with random targets and negatives; outputs (t, d), table (items, d)."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(len(table), (len(outputs), 6), generator=generator)
    outputs = outputs / outputs.norm(dim=-1, keepdim=True)
    table = table / table.norm(dim=-1, keepdim=True)
    scores = torch.stack([table[row] @ output for row, output in zip(candidates, outputs, strict=True)]) / 0.07
    return -scores.log_softmax(1)[:, 0].mean()


Oracle = Callable[[dict[str, Tensor], PackedSequences], Tensor]  # parameters by name, histories -> (t, d)


def assert_parity(
    model: SequentialRecommender, oracle: Oracle, oracle_table: Callable[[dict[str, Tensor]], Tensor]
) -> None:
    """Outputs, loss and every parameter's gradient of a model and of a padded version agree to 1e-5."""
    sequences, weights = random_sequences(LENGTHS), dict(model.named_parameters())
    got = model.embed_histories(sequences, model.embed_items(sequences.items))
    want = oracle(weights, sequences)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    losses = (
        contrastive_loss(got, model.embed_items(torch.arange(ITEMS))),
        contrastive_loss(want, oracle_table(weights)),
    )
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, list(weights.values())) for loss in losses]
    for name, ours, theirs in zip(weights, *gradients, strict=True):
        assert theirs.abs().max() > 0, f"{name} takes no part in the loss"
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def assert_causal(model: SequentialRecommender) -> None:
    """What happens after an event changes nothing of its output; for methods that count from the oldest event."""
    whole, later = random_sequences([9], seed=5), random_sequences([9], seed=6)
    changed = PackedSequences(
        items=torch.cat([whole.items[:6], later.items[6:]]),
        timestamps=torch.cat([whole.timestamps[:6], whole.timestamps[6:] + 10**7]),
        next_timestamps=torch.cat([whole.next_timestamps[:5], whole.next_timestamps[5:] + 10**7]),
        offsets=whole.offsets,
        max_length=9,
    )
    before, after = (model.embed_histories(s, model.embed_items(s.items)) for s in (whole, changed))
    torch.testing.assert_close(before[:5], after[:5])
    assert (before[6:] - after[6:]).abs().amax(1).min() > 1e-3


def assert_no_leak(model: SequentialRecommender) -> None:
    """A user's outputs are the same alone and packed with others."""
    sequences = random_sequences(LENGTHS)
    together = model.embed_histories(sequences, model.embed_items(sequences.items))
    for user in users(sequences):
        alone = PackedSequences(
            items=sequences.items[user],
            timestamps=sequences.timestamps[user],
            next_timestamps=sequences.next_timestamps[user],
            offsets=torch.tensor([0, user.stop - user.start]),
            max_length=user.stop - user.start,
        )
        out = model.embed_histories(alone, model.embed_items(alone.items))
        torch.testing.assert_close(out, together[user], atol=1e-6, rtol=1e-5)


def assert_dropout_in_training_only(model: SequentialRecommender) -> None:
    """Two passes differ in training mode and agree otherwise."""
    sequences = random_sequences(LENGTHS)

    def out() -> Tensor:
        return model.embed_histories(sequences, model.embed_items(sequences.items))

    model.train()
    assert not torch.equal(out(), out())
    model.eval()
    assert torch.equal(out(), out())
