"""The engine of a run: the one that its settings name, or the one that fits the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings
from benchmark.experiments.run import EngineName, Offload, OptimizerSettings
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine
from benchmark.training.objectives import Objective
from benchmark.training.zero import ZeroEngine

log = logging.getLogger(__name__)

_SHARE = 0.6  # of a GPU's memory that weights, gradients and moments may take; activations need the rest


def make_engine(
    model: SequentialRecommender,
    objective: Objective,
    settings: OptimizerSettings,
    execution: ExecutionSettings,
    device: torch.device,
    processes: Processes,
    sequence_length: int,
) -> Engine:
    """Model and objective are on the device. Says once how many processes share the work, and how."""
    name, offload = execution.engine, execution.offload
    if name == "auto":
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        name, offload = chosen_engine(weights, memory, processes.count)
    if name == "single" and processes.count > 1:
        raise UserError(f"execution.engine is single and there are {processes.count} processes; set it to ddp or auto")
    if processes.count > 1 or name not in ("single", "ddp"):
        kept = "" if offload == "none" else f", offload {offload}"
        log.info("every step is shared by %d processes, engine %s%s", processes.count, name, kept)
    make_optimizer = partial(adamw, settings, device)
    engine: Callable[..., Engine]
    if name.startswith("zero"):
        engine = partial(ZeroEngine, model, objective, make_optimizer, stage=int(name[4:]), offload=offload)
    else:
        if offload != "none":
            raise UserError(f"execution.offload: {offload} needs execution.engine: zero1, zero2 or zero3, not {name}")
        learned = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
        length = sequence_length if execution.graphs else None
        engine = partial(Engine, model, objective, make_optimizer(learned), sequence_length=length)
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
        [{"params": parameters}],  # of which there may be none
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )


def chosen_engine(weights: int, memory: int | None, processes: int) -> tuple[EngineName, Offload]:
    """The engine that exchanges least among those whose weights, gradients and moments fit the GPU.

    weights: learned ones; memory: bytes of a GPU, None on the CPU, where everything is taken to fit.
    """
    plain: EngineName = "ddp" if processes > 1 else "single"
    if memory is None:
        return plain, "none"
    # Bytes a weight: the weight, its gradient and two moments, 4 each. ZeRO updates a second copy of the weights, and
    # collects gradients for it.
    needed: list[tuple[EngineName, Offload, float]] = [(plain, "none", 16)]
    if processes > 1:
        needed += [("zero2", "none", 8 + 16 / processes), ("zero3", "none", 24 / processes)]
    needed += [("zero2", "optimizer", 8), ("zero3", "optimizer", 4 / processes)]
    for name, offload, each in needed:
        if each * weights <= _SHARE * memory:
            return name, offload
    return "zero3", "all"
