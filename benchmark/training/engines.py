"""Which engine a run uses: the one its settings name, or the one that fits the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings
from benchmark.experiments.run import EngineName, OptimizerSettings
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine
from benchmark.training.objectives import Objective
from benchmark.training.zero import Offload, ZeroEngine

log = logging.getLogger(__name__)

_BYTES = 4  # of a weight, its gradient and each of AdamW's two moments
_SHARE = 0.6  # of a GPU's memory that these may take; activations need the rest


def make_engine(
    model: SequentialRecommender,
    objective: Objective,
    settings: OptimizerSettings,
    execution: ExecutionSettings,
    device: torch.device,
    processes: Processes,
) -> Engine:
    """Model and objective are on the device. Says once which engine it is, where there is a choice."""
    name, offload = execution.engine, execution.offload
    if name == "auto":
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        name, offload = chosen_engine(weights, memory, processes.count)
    if name == "single" and processes.count > 1:
        raise UserError(f"execution.engine is single and there are {processes.count} processes; name ddp or zero2")
    if processes.count > 1 or name not in ("single", "ddp"):
        away = "" if offload == "none" else f", offload {offload}"
        log.info("%d process%s, engine %s%s", processes.count, "es" * (processes.count > 1), name, away)
    make_optimizer = partial(adamw, settings, device)
    engine: Callable[..., Engine]
    if name.startswith("zero"):
        engine = partial(ZeroEngine, model, objective, make_optimizer, stage=int(name[4:]), offload=offload)
    else:
        learned = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
        engine = partial(Engine, model, objective, make_optimizer(learned))
    return engine(
        device=device,
        bf16=execution.precision == "bf16",
        item_chunk=execution.item_chunk,
        history_chunk=execution.history_chunk,
        processes=processes,
        compiled=execution.compiles(device.type),
    )


def adamw(settings: OptimizerSettings, device: torch.device, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )


def chosen_engine(weights: int, memory: int | None, processes: int) -> tuple[EngineName, Offload]:
    """The engine that communicates least among those whose weights, gradients and moments fit the GPU.

    weights: learned ones; memory: bytes of a GPU, None on the CPU, where everything is taken to fit.
    """
    plain: EngineName = "ddp" if processes > 1 else "single"
    if memory is None:
        return plain, "none"
    whole, room = _BYTES * weights, _SHARE * memory
    held: list[tuple[EngineName, Offload, float]] = [(plain, "none", 4 * whole)]
    if processes > 1:
        held += [
            ("zero1", "none", 2 * whole + 2 * whole / processes),
            ("zero2", "none", whole + 3 * whole / processes),
            ("zero3", "none", 4 * whole / processes),
        ]
    held += [("zero2", "optimizer", whole + whole / processes), ("zero3", "optimizer", 2 * whole / processes)]
    for name, offload, needed in held:
        if needed <= room:
            return name, offload
    return "zero3", "all"
