"""Gradients of parameters that every process of a job holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.processes import Processes


def sum_gradients(processes: Processes, parameters: list[nn.Parameter]) -> None:
    """Sum each parameter's gradient over the processes; one that no process has a gradient for keeps none."""
    if processes.count > 1:
        processes.sum_in_place(used_gradients(processes, parameters))


def used_gradients(processes: Processes, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients of the parameters that any process has one for; zeros where this one has none."""
    found = processes.most([int(p.grad is not None) for p in parameters]) if parameters else []
    used = [p for p, some in zip(parameters, found, strict=True) if some]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in used if p.grad is not None]
