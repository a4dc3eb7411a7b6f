"""The engine of a run: the one that its settings name, or the one that fits the memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings
from benchmark.experiments.engine_choice import MEMORY_SHARE, Weights, chosen_engine
from benchmark.experiments.run import OptimizerSettings
from benchmark.host_memory import available_memory
from benchmark.processes import Processes
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine
from benchmark.training.objectives import Objective
from benchmark.training.offload import HostedWeights, OffloadEngine, place
from benchmark.training.precision import Precision, float32_weights
from benchmark.training.zero import ZeroEngine

log = logging.getLogger(__name__)

_HOST_SHARE = 0.95  # of the host's that is left; pieces on their way to the GPU need the rest
_GB = 10**9


def make_engine(
    model: SequentialRecommender,
    objective: Objective,
    settings: OptimizerSettings,
    execution: ExecutionSettings,
    device: torch.device,
    processes: Processes,
    sequence_length: int,
) -> Engine:
    """Moves model and objective to the device, or to where the engine wants them. Says once how many processes share
    the work, and how."""
    execution = resolved(execution, model, device, processes)
    name, offload = execution.engine, execution.offload
    if processes.count > 1 or name not in ("single", "ddp"):
        kept = "" if offload == "none" else f", offload {offload}"
        log.info("every step is shared by %d processes, engine %s%s", processes.count, name, kept)
    hosted = name == "single" and offload == "optimizer"
    place(model, device, hosted=hosted)
    objective.to(device)
    make_optimizer = partial(adamw, settings, device)
    learned = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    engine: Callable[..., Engine]
    if name.startswith("zero"):
        engine = partial(ZeroEngine, model, objective, make_optimizer, stage=int(name[4:]), offload=offload)
    elif hosted:
        log.info("weights, gradients and moments of the heavy layers are kept on the host, updated by %d of its %d "
                 "processors (execution.threads); histories are not run as a CUDA graph",
                 torch.get_num_threads(), len(os.sched_getaffinity(0)))  # fmt: skip
        if lacking := _lacking(model, sum(p.numel() for p in _weights_of_layers(model) if p.requires_grad)):
            log.warning("goes on because execution.offload says so, but %s", lacking)
        engine = partial(OffloadEngine, model, objective, make_optimizer(learned))
    else:
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


def resolved(
    execution: ExecutionSettings, model: SequentialRecommender, device: torch.device, processes: Processes
) -> ExecutionSettings:
    """With engine and offload named, where execution leaves them open; UserError for what is impossible together.

    Of the model only its parameters' number counts, so that it may be on any device, "meta" included.
    """
    name, offload = execution.engine, execution.offload
    if name == "auto":
        weights = weights_of(model)
        copies = 2 if execution.precision == "bf16" else 4
        found = chosen_engine(weights, _memory(device), processes.count, copies=copies)
        if offload == "none":
            name, offload = found.engine, found.offload
            if (name, offload) == ("single", "optimizer") and (lacking := _lacking(model, weights.learned_layers)):
                raise UserError(f"the GPU's memory does not suffice, and {lacking}")
        elif processes.count == 1 and offload == "optimizer":
            name = "single"
        else:
            raise UserError(f"execution.offload: {offload} needs an engine by name; set execution.engine to zero3")
    if name == "single" and processes.count > 1:
        raise UserError(f"execution.engine is single and there are {processes.count} processes; set it to ddp or auto")
    if offload != "none" and not name.startswith("zero") and (name, offload) != ("single", "optimizer"):
        raise UserError(
            f"execution.offload: {offload} with engine {name} is not possible: single keeps the optimizer on the host "
            "in one process, zero2 in several, and zero3 everything"
        )
    return execution.model_copy(update={"engine": name, "offload": offload})


def weights_of(model: SequentialRecommender) -> Weights:
    """How many weights the model has, by what takes memory for them; it may be on any device, "meta" included."""
    heavy = _weights_of_layers(model)
    of_layers = [sum(p.numel() for p in heavy if p.requires_grad is learned) for learned in (True, False)]
    of_all = [sum(p.numel() for p in model.parameters() if p.requires_grad is learned) for learned in (True, False)]
    return Weights(*of_all, *of_layers)


def place_to_rank(model: SequentialRecommender, device: torch.device, *, bf16: bool) -> Precision:
    """Move a trained model to the device, and return what it ranks in. Where float32 weights beside their copies would
    take too much of the GPU, it gets copies of the heavy layers' alone."""
    copies = 2 * sum(p.numel() for p in _weights_of_layers(model)) if bf16 else 0
    memory = _memory(device)
    hosted = memory is not None and sum(p.nbytes for p in model.parameters()) + copies > MEMORY_SHARE * memory
    if hosted:
        log.info("the weights of the heavy layers are kept on the host, and copies of them on the GPU")
    place(model, device, hosted=hosted)
    dtype = torch.bfloat16 if bf16 else torch.float32
    kept = HostedWeights(model.heavy_layers(), dtype, device) if hosted else None
    return Precision(model, device, bf16=bf16, copies=kept)


def _lacking(model: SequentialRecommender, heavy: int) -> str | None:
    """What is to be said if the host has not the memory that heavy layers need; theirs may be there already."""
    there = sum(p.nbytes for p in _weights_of_layers(model) if p.device.type == "cpu")
    needed, available = 16 * heavy, _HOST_SHARE * (available_memory() + there)
    if needed <= available:
        return None
    return (
        f"{heavy / _GB:.1f} billion weights, their gradients and moments need {needed / _GB:.0f} GB of the host, which "
        f"has {available / _GB:.0f} GB left; use more GPUs (execution.processes), a host with more memory, or a "
        "smaller model"
    )


def _memory(device: torch.device) -> int | None:
    """Bytes of a GPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _weights_of_layers(model: SequentialRecommender) -> set[nn.Parameter]:
    return {weight for _, _, weight in float32_weights(model.heavy_layers())}


def adamw(settings: OptimizerSettings, device: torch.device, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": parameters}],  # of which there may be none
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
