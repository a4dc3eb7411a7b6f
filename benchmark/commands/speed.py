"""The verb that measures speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import allocate_in_segments, log_to
from benchmark.errors import UserError


def speed(
    method: Annotated[str, typer.Option(help="a method of config/speed.yaml, such as hllm-1b")],
    shape: Annotated[str, typer.Option(help="a shape of config/speed.yaml, such as books")],
    parts: Annotated[str, typer.Option(help="what to measure, of train, encode and rank")] = "train,encode,rank",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    compile: Annotated[str, typer.Option(help="auto (on CUDA), on or off")] = "auto",
    item_chunk: Annotated[int | None, typer.Option(help="items embedded at once; by default what fits")] = None,
    warmup: Annotated[int, typer.Option(help="steps that are not timed")] = 5,
    steps: Annotated[int, typer.Option(help="steps that are")] = 20,
    threads: Annotated[int, typer.Option(help="of a processor")] = 1,
    out: Annotated[Path | None, typer.Option(help="a CSV file to append the figures to")] = None,
) -> None:
    """Measure training, encoding and ranking at a published shape with synthetic data, and print JSON."""
    allocate_in_segments()
    import torch

    from benchmark.provenance import provenance
    from benchmark.speed import PARTS, append_rows, load_case, measure

    log_to(None, f"{method} {shape}")
    chosen = tuple(parts.split(","))
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"--parts has no {unknown[0]!r}; it has: {', '.join(PARTS)}")
    if device not in ("auto", "cpu", "cuda") or compile not in ("auto", "on", "off"):
        raise UserError("--device is auto, cpu or cuda, and --compile auto, on or off")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here")
    torch.set_num_threads(threads)
    runs_on = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    compiled = compile == "on" or (compile == "auto" and runs_on.type == "cuda")
    case = load_case(Path("config/speed.yaml"), method, shape, device=runs_on, compiled=compiled, item_chunk=item_chunk)
    rows = measure(case, chosen, warmup=warmup, steps=steps)
    origin = provenance(runs_on)
    conditions = {
        "precision": case.method.precision,
        "compiled": compiled,
        "item_chunk": item_chunk,
        "steps": steps,
        "device": origin["device"],
        "torch": origin["packages"]["torch"],
        "transformers": origin["packages"].get("transformers"),
        "git_revision": origin["git_revision"],
    }
    for row in rows:
        print(json.dumps(row | conditions))
    if out is not None:
        append_rows(out, [row | conditions for row in rows])
