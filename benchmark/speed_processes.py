"""How fast several processes, each with a GPU of its own, train, encode and rank together, and whether they agree.

Every engine that is named is measured in the processes of one job, one engine after the other. "single" is one process:
each runs it for itself at the same time, and the first one's figures count.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmark.experiments.run import EngineName
from benchmark.processes import Processes
from benchmark.speed import engine_of, measure
from benchmark.speed_cases import Case, synthetic_batch
from benchmark.training.offload import OffloadEngine

LOSSES = "losses"


def measure_engines(
    cases: list[Case],
    engines: list[EngineName],
    parts: tuple[str, ...],
    processes: Processes,
    *,
    warmup: int,
    steps: int,
    pieces: int | None,
) -> Iterator[dict[str, Any]]:
    """A row for each engine, case and part, as they come. cases: of one model, which is made once an engine. Part
    "losses" compares its loss curve of so many steps with that of the first engine. Memory is that of the process that
    takes most; the host's is the most that the process has ever had.
    """
    first: dict[str, list[float]] = {}  # loss curves, by shape
    for engine in engines:
        job = Processes() if engine == "single" else processes
        chosen = [replace(case, engine=engine) for case in cases]
        graphs = cases[0].graphs and cases[0].device.type == "cuda" and job.count == 1 and not engine.startswith("zero")
        for row in _rows(chosen, parts, job, first, warmup=warmup, steps=steps, pieces=pieces):
            most = processes.most([int(1000 * (row["peak_memory_gib"] or 0)), _resident_kibibytes()])
            compiled = cases[0].compiled and engine != "zero3"  # which compiles no layer
            kept = row.get("offload", cases[0].offload)
            yield {
                **row,
                "peak_memory_gib": most[0] / 1000 or None,
                "host_memory_gib": round(most[1] / (1 << 20), 2),
                "engine": engine,
                "offload": kept,
                "processes": job.count,
                "compiled": compiled,
                "graphs": graphs and compiled and kept == "none" and row["part"] in ("train", LOSSES),
            }


def _rows(
    cases: list[Case],
    parts: tuple[str, ...],
    job: Processes,
    first: dict[str, list[float]],
    *,
    warmup: int,
    steps: int,
    pieces: int | None,
) -> Iterator[dict[str, Any]]:
    if timed := tuple(part for part in parts if part != LOSSES):
        engine = engine_of(cases[0], job)
        offload = "optimizer" if isinstance(engine, OffloadEngine) else cases[0].offload
        for case in cases:
            for row in measure(case, engine, timed, warmup=warmup, steps=steps, pieces=pieces):
                yield {**row, "offload": offload}
        del engine
        _forget(cases[0].device)
    for case in cases if LOSSES in parts else []:
        curve = loss_curve(case, job, steps)
        difference = max(abs(a - b) for a, b in zip(first.setdefault(case.shape_name, curve), curve, strict=True))
        yield {
            "method": case.name, "shape": case.shape_name, "part": LOSSES, "first_loss": curve[0],
            "last_loss": curve[-1], "largest_difference": difference, "peak_memory_gib": None,
        }  # fmt: skip


def _resident_kibibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
