"""InfoNCE against the formula written out position by position."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmark.training.objectives import InfoNCE, Temperature


def by_hand(predicted, table, positives, negatives, ids, masking, scale):
    losses, survivors = [], []
    for row, positive in enumerate(positives.tolist()):
        own = negatives if negatives.dim() == 1 else negatives[row]
        scores = [float(predicted[row] @ table[positive]) * scale]
        for negative in own.tolist():
            similar = float(table[positive] @ table[negative]) > 0.99
            same = int(ids[positive]) == int(ids[negative])
            if (masking in ("cosine", "both") and similar) or (masking in ("id", "both") and same):
                continue
            scores.append(float(predicted[row] @ table[negative]) * scale)
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[0])
        survivors.append(len(scores) - 1)
    return sum(losses) / len(losses), sum(survivors) / len(survivors)


@pytest.mark.parametrize("masking", ["cosine", "id", "both", "none"])
@pytest.mark.parametrize(("sharing", "count"), [("shared", 7), ("per_position", 7), ("per_position", 2)])
def test_equals_the_formula(masking, sharing, count):
    generator = torch.Generator().manual_seed(3)
    table = F.normalize(torch.randn(9, 4, generator=generator), dim=-1)
    table[5] = table[2]  # another item with the same vector: masked by cosine, not by id
    ids = torch.tensor([4, 7, 9, 12, 20, 21, 30, 31, 40])
    predicted = F.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    positives = torch.tensor([2, 0, 2, 8, 5, 1])
    shape = (count,) if sharing == "shared" else (6, count)
    negatives = torch.randint(0, 9, shape, generator=generator)
    objective = InfoNCE(Temperature(0.07), masking)
    got = objective(predicted, table, positives, negatives, ids, torch.full((6,), 1 / 6))
    loss, survivors = by_hand(predicted, table, positives, negatives, ids, masking, 1 / 0.07)
    assert got.loss.item() == pytest.approx(loss, rel=1e-5)
    assert float(got.figures["surviving_negatives"]) == pytest.approx(survivors)


def test_temperature_is_learned_within_its_bounds_or_fixed():
    objective = InfoNCE(Temperature(0.001))
    objective.before_step()
    assert objective.logit_scale.exp().item() == pytest.approx(100)
    fixed = InfoNCE(Temperature(0.05, learnable=False))
    fixed.before_step()
    assert not fixed.logit_scale.requires_grad
    assert fixed.logit_scale.exp().item() == pytest.approx(20)


def test_all_negatives_masked_gives_no_loss_and_says_so():
    table = F.normalize(torch.ones(3, 4), dim=-1)
    positives, negatives = torch.tensor([0]), torch.tensor([1, 2])
    output = InfoNCE(Temperature())(table[:1], table, positives, negatives, torch.arange(3), torch.ones(1))
    assert float(output.figures["surviving_negatives"]) == 0
    assert output.loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("positions", "count", "rows", "width"), [(50, 40, 300, 64), (7, 5, 20, 50), (9, 33, 20, 300)])
def test_the_kernel_of_candidates_gives_the_gradients_of_the_formula(positions, count, rows, width):
    from benchmark.training.candidates import candidate_gradients

    torch.manual_seed(0)
    vectors, table = (torch.randn(n, width, device="cuda", requires_grad=True) for n in (positions, rows))
    chosen = torch.randint(rows, (positions, count), device="cuda")
    upstream = torch.randn(positions, count, device="cuda")
    expected = torch.autograd.grad((vectors[:, None] * table[chosen]).sum(-1), (vectors, table), upstream)
    for got, wanted in zip(candidate_gradients(upstream, vectors, table, chosen), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
