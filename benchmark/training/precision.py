"""How a method's arithmetic runs: in float32 or bfloat16, its heavy layers compiled or not; results up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.recommender import SequentialRecommender

_TILES = "triton.coalesce_tiling_analysis"


class Precision:
    """The context that a method runs in: `with precision(): model.embed_items(...)`.

    In bfloat16, matrix products are autocast, and heavy layers read bfloat16 copies of their weights. The parameters
    themselves, their gradients and so the optimizer's states stay float32. copies: others that the heavy layers are to
    read, in either precision.
    """

    def __init__(
        self, model: SequentialRecommender, device: torch.device, *, bf16: bool, copies: WorkingCopies | None = None
    ) -> None:
        self.device, self.bf16 = device, bf16
        if copies is None and bf16 and device.type == "cuda":
            copies = WorkingCopies(model.heavy_layers(), torch.bfloat16)
        self._copies = copies

    def weights_changed(self) -> None:
        """To be called after an optimizer's step."""
        if self._copies is not None:
            self._copies.weights_changed()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        arithmetic = torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with arithmetic, nullcontext() if self._copies is None else self._copies.in_place():
            yield


class WorkingCopies:
    """Copies in another type of the float32 weights of some layers, which stand in the weights' place while in use.

    Autocast alone would convert every weight again in each forward pass, and add up its gradients in the same number of
    conversions. Here a weight is converted once after it has changed, which an optimizer has to tell: torch counts most
    changes of a tensor, and those by a fused optimizer not. The gradient that reaches a copy is added to its weight's
    float32 gradient at once.

    Layers that transformers recomputes in the backward pass, when the copies are no longer in place, have none.
    """

    recomputed = False  # whether they are in place in the backward pass too

    def __init__(self, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        self._versions: list[int] = []  # of the weights when they were converted; empty: they must be anew
        chosen = (x for x in layers if self.recomputed or not getattr(x, "gradient_checkpointing", False))
        self._places = list(float32_weights(chosen))
        self._inside = False
        for _, _, weight in self._places:
            if weight not in self._copies:
                self._copies[weight] = self._copy(weight, dtype)

    def weights_changed(self) -> None:
        self._versions = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._refresh()
        self._inside = True
        for module, name, weight in self._places:
            module._parameters[name] = self._copies[weight]
        try:
            yield
        finally:
            self._inside = False
            for module, name, weight in self._places:
                module._parameters[name] = weight

    def _copy(self, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        copy = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)

        def hand_over(copy: Tensor) -> None:
            gradient, copy.grad = copy.grad, None
            if gradient is None:
                return
            if weight.grad is None:
                weight.grad = gradient.to(weight.dtype)
            else:
                weight.grad.add_(gradient)

        if copy.requires_grad:
            copy.register_post_accumulate_grad_hook(hand_over)
        return copy

    @torch.no_grad()
    def _refresh(self) -> None:
        """Convert again if anything has changed, by an optimizer or, as when weights are loaded, otherwise."""
        versions = [weight._version for weight in self._copies]
        if self._copies and versions != self._versions:
            self._convert()
            self._versions = versions

    def _convert(self) -> None:
        torch._foreach_copy_(list(self._copies.values()), list(self._copies))


def float32_weights(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Where the layers' float32 weights stand: module, name in it, weight; one that is shared comes several times."""
    for layer in layers:
        for module in layer.modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight.dtype == torch.float32:
                    yield module, name, weight


def compile_layers(model: SequentialRecommender, backend: str = "inductor", *, tiles: bool = True) -> None:
    """Have torch.compile make kernels for each layer that says so, at its first call and for any number of tokens.

    tiles: with inductor's analysis of how memory is read, which torch 2.11 cannot do for some kernels of any number of
    tokens (pytorch/pytorch#181795).
    """
    # Layers that are alike share their kernels; train and eval, two models and two precisions each have their own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    # Keep for the backward pass what matrix products and attention gave, and compute again what lies between: of a
    # Llama layer a third less memory, hardly any more time.
    for reason in ("used_far_apart", "long_fusible_chains", "materialized_backward"):
        setattr(torch._functorch.config, f"ban_recompute_{reason}", False)
    for layer in (*model.heavy_layers(), *model.light_layers()):
        layer.compile(dynamic=True, backend=backend, options=None if tiles else {_TILES: False})


def run_layers_plain(model: SequentialRecommender) -> None:
    """Take back `compile_layers`."""
    for layer in (*model.heavy_layers(), *model.light_layers()):
        layer._compiled_call_impl = None


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot make a kernel, in a forward or a backward pass."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch.compile makes it: for the first shapes that it sees, and then for any number of rows."""
    made: Callable[..., Any] = torch.compile(function)
    return made
