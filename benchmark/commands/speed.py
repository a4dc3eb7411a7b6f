"""The verb that measures speed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import allocate_huge_pages, allocate_in_segments, log_to
from benchmark.errors import UserError
from benchmark.launch import Layout, enter


def speed(
    method: Annotated[str, typer.Option(help="a method of config/speed.yaml, such as hllm-1b")],
    shape: Annotated[str, typer.Option(help="a shape of config/speed.yaml, such as books; or several of like texts")],
    parts: Annotated[
        str, typer.Option(help="what to measure, of train, encode, rank and losses: whether engines agree")
    ] = "train,encode,rank",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    compile: Annotated[str, typer.Option(help="auto (on CUDA), on or off")] = "auto",
    graphs: Annotated[bool, typer.Option(help="run histories as a CUDA graph")] = True,
    precision: Annotated[str, typer.Option(help="auto (the method's), fp32 or bf16")] = "auto",
    item_chunk: Annotated[int | None, typer.Option(help="items embedded at once; by default what fits")] = None,
    warmup: Annotated[int, typer.Option(help="steps that are not timed")] = 5,
    steps: Annotated[int, typer.Option(help="steps that are")] = 20,
    pieces: Annotated[int | None, typer.Option(help="of items encoded, of users ranked; by default as steps")] = None,
    threads: Annotated[int, typer.Option(help="of a processor")] = 1,
    processes: Annotated[int, typer.Option(help="that share the work, each with a GPU of its own")] = 1,
    engines: Annotated[
        str, typer.Option(help="one after the other, of auto, single, ddp, zero1, zero2 and zero3")
    ] = "auto",
    offload: Annotated[str, typer.Option(help="what is kept on the host: none, optimizer or all (zero3)")] = "none",
    out: Annotated[Path | None, typer.Option(help="a CSV file to append the figures to")] = None,
) -> None:
    """Measure training, encoding and ranking at a published shape with synthetic data, and print JSON."""
    if processes > 1:
        enter(Layout(1, processes, "cpu" if device == "cpu" else "auto"), sys.argv[1:])
    allocate_in_segments()
    if offload != "none":
        allocate_huge_pages()
    import torch

    from benchmark.experiments.run import ENGINES, OFFLOADS
    from benchmark.processes import joined, local_rank
    from benchmark.provenance import provenance
    from benchmark.speed import PARTS, append_rows
    from benchmark.speed_cases import load_case
    from benchmark.speed_processes import LOSSES, measure_engines

    log_to(None, f"{method} {shape}")
    chosen = tuple(parts.split(","))
    known = ("--parts", chosen, (*PARTS, LOSSES)), ("--engines", engines.split(","), ENGINES)
    for option, given, allowed in (*known, ("--offload", [offload], OFFLOADS)):
        if unknown := [name for name in given if name not in allowed]:
            raise UserError(f"{option} has no {unknown[0]!r}; it has: {', '.join(allowed)}")
    if device not in ("auto", "cpu", "cuda") or compile not in ("auto", "on", "off"):
        raise UserError("--device is auto, cpu or cuda, and --compile auto, on or off")
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError("--precision is auto, fp32 or bf16")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here")
    torch.set_num_threads(threads)
    runs_on = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        runs_on = torch.device("cuda", local_rank())
        torch.cuda.set_device(runs_on)
    compiled = compile == "on" or (compile == "auto" and runs_on.type == "cuda")
    cases = [
        load_case(Path("config/speed.yaml"), method, name, device=runs_on, compiled=compiled, item_chunk=item_chunk)
        for name in shape.split(",")
    ]
    models = [(case.shape.text, case.shape.catalogue, case.shape.sequence_length) for case in cases]
    if any(model != models[0] for model in models):
        raise UserError(f"--shape {shape}: shapes measured with one model must have the same texts and histories")
    if precision != "auto":
        cases = [replace(x, method=x.method.model_copy(update={"precision": precision})) for x in cases]
    cases = [replace(x, graphs=graphs, offload=offload) for x in cases]  # type: ignore[arg-type]  # just checked
    origin = provenance(runs_on)
    conditions = {
        "precision": cases[0].method.precision,
        "item_chunk": item_chunk,
        "steps": steps,
        "threads": threads,
        "device": origin["device"],
        "torch": origin["packages"]["torch"],
        "transformers": origin["packages"].get("transformers"),
        "git_revision": origin["git_revision"],
    }
    with joined() as job:
        for row in measure_engines(
            cases, engines.split(","), chosen, job, warmup=warmup, steps=steps, pieces=pieces,  # type: ignore[arg-type]
        ):  # fmt: skip
            if job.first:
                print(json.dumps(row | conditions), flush=True)
                if out is not None:
                    append_rows(out, [row | conditions])
