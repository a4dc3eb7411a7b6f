"""How fast several processes, each with a GPU of its own, train, encode and rank together, and whether they agree.

Every engine that is named is measured in the processes of one job, one engine after the other. "single" is one process:
each runs it for itself at the same time, and the first one's figures count.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from benchmark.experiments.run import EngineName
from benchmark.processes import Processes
from benchmark.speed import engine_of, measure
from benchmark.speed_cases import Case, synthetic_batch

LOSSES = "losses"


def measure_engines(
    case: Case,
    engines: list[EngineName],
    parts: tuple[str, ...],
    processes: Processes,
    *,
    warmup: int,
    steps: int,
    pieces: int | None,
) -> Iterator[dict[str, Any]]:
    """A row for each engine and part, as they come. Part "losses" compares its loss curve of so many steps with that of
    the first engine. Memory is that of the process that takes most.
    """
    first: list[float] = []
    for engine in engines:
        job = Processes() if engine == "single" else processes
        chosen = replace(case, engine=engine)
        timed = tuple(part for part in parts if part != LOSSES)
        found = [measure(chosen, timed, warmup=warmup, steps=steps, pieces=pieces, processes=job)] if timed else []
        if LOSSES in parts:
            found.append(_compared(chosen, job, steps, first))
        graphs = case.graphs and case.device.type == "cuda" and job.count == 1 and not engine.startswith("zero")
        for row in chain.from_iterable(found):
            most = processes.most([int(1000 * (row["peak_memory_gib"] or 0))])[0] / 1000
            compiled = case.compiled and engine != "zero3"  # which compiles no layer
            yield {
                **row,
                "peak_memory_gib": most or None,
                "engine": engine,
                "processes": job.count,
                "compiled": compiled,
                "graphs": graphs and compiled and row["part"] in ("train", LOSSES),
            }
        _forget(case.device)


def _compared(case: Case, processes: Processes, steps: int, first: list[float]) -> Iterator[dict[str, Any]]:
    """The row of a loss curve against the first one, which it becomes where there is none yet."""
    curve = loss_curve(case, processes, steps)
    first += [] if first else curve
    difference = max(abs(a - b) for a, b in zip(first, curve, strict=True))
    yield {
        "method": case.name, "shape": case.shape_name, "part": LOSSES, "first_loss": curve[0], "last_loss": curve[-1],
        "largest_difference": difference, "peak_memory_gib": None,
    }  # fmt: skip


def loss_curve(case: Case, processes: Processes, steps: int) -> list[float]:
    """The loss of each of the first steps."""
    engine = engine_of(case, processes)
    engine.model.train()
    losses = [float(engine.step(synthetic_batch(case, step)).loss) for step in range(steps)]
    del engine
    _forget(case.device)
    return losses


def _forget(device: torch.device) -> None:
    """Let go of a measured engine before the next one is made: hooks and compiled kernels hold it in circles."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
