"""bfloat16 copies of weights: what they compute, where their gradients go, and that they follow every change."""

import pytest
import torch
from test_engine import Averager, one_batch
from torch import nn

from benchmark.training.engine import Engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.precision import WorkingCopies


class Heavy(Averager):
    """With one heavy layer, the encoder of items."""

    def heavy_layers(self):
        return [self.encode]


def engine(fused, copies):
    torch.manual_seed(0)
    model, objective = Heavy(), InfoNCE(Temperature())
    parameters = [*model.parameters(), *objective.parameters()]
    made = Engine(
        model, objective, torch.optim.AdamW(parameters, lr=0.05, fused=fused), device=torch.device("cpu"), bf16=True
    )
    made.precision._copies = WorkingCopies(model.heavy_layers(), torch.bfloat16) if copies else None
    return made


@pytest.mark.parametrize("fused", [False, True])
def test_copies_follow_the_optimizer_and_loaded_weights(fused):
    made = engine(fused, copies=True)
    layer, weight = made.model.encode, made.model.encode.weight
    for _ in range(3):
        before = weight.detach().clone()
        made.step(one_batch())
        assert not torch.equal(weight, before)
        with made.precision():
            assert layer.weight.dtype == torch.bfloat16
            assert torch.equal(layer.weight, weight.bfloat16())
        assert layer.weight is weight
    made.model.load_state_dict({name: x + 1 for name, x in made.model.state_dict().items()})
    with made.precision():
        assert torch.equal(layer.weight, weight.bfloat16())


@pytest.mark.parametrize("fused", [False, True])
def test_training_on_copies_is_training_under_autocast(fused):
    with_copies, without = engine(fused, copies=True), engine(fused, copies=False)
    losses = [[float(made.step(one_batch()).loss) for _ in range(15)] for made in (with_copies, without)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0][-1] < 0.5 * losses[0][0]
    for one, other in zip(with_copies.parameters(), without.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.05)


def test_shared_and_frozen_weights_have_one_copy_and_their_own_gradient():
    layer = nn.Linear(3, 3, bias=False)
    frozen = nn.Linear(3, 3, bias=False).requires_grad_(False)
    tied = nn.Linear(3, 3, bias=False)
    tied.weight = layer.weight
    copies = WorkingCopies([layer, tied, frozen], torch.bfloat16)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with copies.in_place():
        assert layer.weight is tied.weight
        out = frozen(tied(layer(x.bfloat16())))
    out.float().sum().backward()
    expected = torch.autograd.grad((x @ layer.weight.T @ layer.weight.T @ frozen.weight.T).sum(), layer.weight)[0]
    assert layer.weight.grad.dtype == torch.float32
    assert torch.allclose(layer.weight.grad, expected, rtol=0.05, atol=0.05)
    assert frozen.weight.grad is None
