"""The engine of a run, as its settings say."""

from __future__ import annotations

import logging

import torch
from torch import nn

from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings
from benchmark.experiments.run import OptimizerSettings
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine
from benchmark.training.objectives import Objective

log = logging.getLogger(__name__)


def make_engine(
    model: SequentialRecommender,
    objective: Objective,
    settings: OptimizerSettings,
    execution: ExecutionSettings,
    device: torch.device,
    processes: Processes,
    sequence_length: int,
) -> Engine:
    """Model and objective are on the device. Says once how many processes share the work."""
    if execution.engine == "single" and processes.count > 1:
        raise UserError(f"execution.engine is single and there are {processes.count} processes; set it to ddp or auto")
    if processes.count > 1:
        log.info("%d processes share every step", processes.count)
    learned = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    return Engine(
        model,
        objective,
        adamw(settings, device, learned),
        device=device,
        bf16=execution.precision == "bf16",
        item_chunk=execution.item_chunk,
        history_chunk=execution.history_chunk,
        processes=processes,
        compiled=execution.compiles(device.type),
        sequence_length=sequence_length,
    )


def adamw(settings: OptimizerSettings, device: torch.device, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
