"""How fast a method trains, encodes items and ranks, at a published shape: seeded synthetic steps, random weights.

What is measured is what the trainer runs: the engine's step, the draw of the next batch, one wait for the loss.
Utilisation is 6 x non-embedding parameters x (item tokens, user positions) / time / the device's peak for training, and
2 x for encoding; what is recomputed to save memory counts as time and not as work. Several processes share every step,
and utilisation is of all their devices.
"""

from __future__ import annotations

import csv
import io
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.data.batches import TrainingBatch
from benchmark.evaluation.ranking import rank_block
from benchmark.experiments.run import ExecutionSettings, OptimizerSettings
from benchmark.files import write_text
from benchmark.processes import Processes
from benchmark.recommender import PackedSequences, item_chunks
from benchmark.speed_cases import TEXTS, Case, synthetic_batch, synthetic_catalogue
from benchmark.training import registry
from benchmark.training.engine import Engine
from benchmark.training.engines import make_engine, resolved
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.offload import OffloadEngine

log = logging.getLogger(__name__)

PARTS = ("train", "encode", "rank")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, by the vendor's data sheets
_ENCODED_TOKENS = 1 << 16  # in one forward pass
_FEW, _DRAWN_AT_ONCE = 1 << 20, 1 << 25  # numbers
_LONG_STEP = 2.0  # seconds; each one that takes longer is told as it ends
_GIB = 1 << 30


def measure(
    case: Case,
    engine: Engine,
    parts: tuple[str, ...] = PARTS,
    *,
    warmup: int = 5,
    steps: int = 20,
    pieces: int | None = None,
) -> Iterator[dict[str, Any]]:
    """A row of figures for each part, as they come; the first `warmup` steps are not timed. engine: of the case, or of
    one whose model is the same; all processes of its job call this, and memory is that of this one. pieces: of items
    encoded and of users ranked, as many as steps by default."""
    engine.items.measure_anew()
    for part in parts:
        run = {"train": _train, "encode": _encode, "rank": _rank}[part]
        if case.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(case.device)
        figures = run(case, engine, warmup, steps if part == "train" else pieces or steps)
        memory = torch.cuda.max_memory_allocated(case.device) / _GIB if case.device.type == "cuda" else None
        row = {"method": case.name, "shape": case.shape_name, "part": part, **figures, "peak_memory_gib": memory}
        yield {name: _rounded(value) for name, value in row.items()}


def engine_of(case: Case, processes: Processes) -> Engine:
    """With a model of random weights, which the case's seed decides, and the paper's learning rate. Where the engine
    keeps weights on the host, they are made there, and no more than a piece of them is ever on the device."""
    torch.manual_seed(case.seed)
    build = partial(
        registry.build, case.method.class_, case.method.model, synthetic_catalogue(case), case.shape.sequence_length
    )
    execution = ExecutionSettings(
        precision=case.method.precision, engine=case.engine, offload=case.offload, item_chunk=case.item_chunk,
        compile="on" if case.compiled else "off", graphs=case.graphs,
    )  # fmt: skip
    with torch.device("meta"):
        execution = resolved(execution, build(), case.device, processes)
    hosted = (execution.engine, execution.offload) == ("single", "optimizer")
    with DrawnOn(case.device) if hosted else case.device:
        model = build()
    optimizer = OptimizerSettings(learning_rate=1e-4, weight_decay=0.01)
    return make_engine(
        model, InfoNCE(Temperature()), optimizer, execution, case.device, processes, case.shape.sequence_length
    )


class DrawnOn(TorchDispatchMode):
    """Within it, what large tensors on the host are filled with at random is drawn on a device, because billions of
    numbers take long on a processor."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._staging = device, torch.empty(0)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function not in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return function(*arguments, **options)
        filled = arguments[0]
        if filled.device.type != "cpu" or filled.numel() < _FEW or not filled.is_contiguous():
            return function(*arguments, **options)
        if not len(self._staging):
            self._staging = torch.empty(_DRAWN_AT_ONCE, pin_memory=self._device.type == "cuda")
        for part in filled.view(-1).split(_DRAWN_AT_ONCE):
            there = function(torch.empty_like(part, device=self._device), *arguments[1:], **options)
            part.copy_(self._staging[: len(part)].copy_(there))
        return filled


def _train(case: Case, engine: Engine, warmup: int, steps: int) -> dict[str, Any]:
    engine.model.train()
    batches = [synthetic_batch(case, 0)]

    def step() -> None:
        began = time.perf_counter()
        loss = engine.step(batches[-1]).loss
        batches.append(synthetic_batch(case, len(batches)))
        float(loss)
        if (seconds := time.perf_counter() - began) > _LONG_STEP:
            log.info("%s: step %d took %.1f s", case.shape_name, len(batches) - 1, seconds)

    for _ in range(warmup):
        step()
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
    before = dict(engine.seconds) if isinstance(engine, OffloadEngine) else {}
    seconds = _median_seconds(step, steps, case.device)
    timed = batches[warmup:-1]
    items = [_distinct(batch) for batch in timed]
    positions = _mean(batch.sequences.items.numel() for batch in timed)
    users, count = case.shape.users, _mean(len(x) for x in items)
    figures: dict[str, Any] = {
        "ms": 1000 * seconds, "users_per_second": users / seconds, "items_per_second": count / seconds,
        "users": users, "items": count, "positions": positions,
    }  # fmt: skip
    if engine.model.item_sizes(items[0]) is not None:
        tokens = _mean(int(engine.model.item_sizes(x).sum()) for x in items)  # type: ignore[union-attr]
        work = 6 * (_arithmetic(engine.model, "item_llm") * tokens + _arithmetic(engine.model, "user_llm") * positions)
        figures |= {"tokens_per_second": tokens / seconds, "tokens": tokens,
                    "utilisation": _utilisation(work / engine.processes.count, seconds, case.device)}  # fmt: skip
    if isinstance(engine, OffloadEngine):
        figures |= {f"{what}_ms": 1000 * (engine.seconds[what] - since) / steps for what, since in before.items()}
    if released := case.shape.released.get(case.name):
        figures |= {"released_ms": released, "times_released": released / (1000 * seconds)}
    return figures


@torch.no_grad()
def _encode(case: Case, engine: Engine, warmup: int, steps: int) -> dict[str, Any]:
    engine.model.eval()
    size = case.shape.catalogue if case.shape.text is None else min(case.shape.catalogue, TEXTS)
    everything = torch.arange(size, device="cpu")
    sizes = engine.model.item_sizes(everything)
    if sizes is None:
        chunks = [everything.to(case.device)]
    else:
        chunks = item_chunks(sizes, max(1, int(sizes.sum()) // _ENCODED_TOKENS))

    def encode(chunk: Tensor) -> None:
        with engine.precision():
            engine.model.embed_items(chunk)
        _wait(case.device)

    order = torch.linspace(0, len(chunks) - 1, min(steps, len(chunks))).long().tolist()  # long texts and short ones
    for number in order[: max(2, warmup // 2)]:
        encode(chunks[number])
    engine.processes.any(False)
    began = time.perf_counter()
    for turn in engine.processes.turns(len(order)):
        encode(chunks[order[turn]])
    engine.processes.any(False)
    seconds = time.perf_counter() - began
    count = sum(len(chunks[number]) for number in order)
    figures: dict[str, Any] = {"ms": 1000 * seconds, "items_per_second": count / seconds, "items": count}
    if sizes is not None:
        tokens = sum(int(sizes[chunks[number]].sum()) for number in order)
        work = 2 * _arithmetic(engine.model, "item_llm") * tokens
        figures |= {"tokens_per_second": tokens / seconds, "tokens": tokens,
                    "utilisation": _utilisation(work / engine.processes.count, seconds, case.device)}  # fmt: skip
    return figures


@torch.no_grad()
def _rank(case: Case, engine: Engine, warmup: int, steps: int) -> dict[str, Any]:
    """Users whose histories fill every slot, ranked among the whole catalogue, whose embeddings are given. Each process
    has users of its own."""
    model, shape = engine.model.eval(), case.shape
    with engine.precision():
        width = model.embed_items(torch.arange(2, device=case.device)).shape[1]
    table = torch.empty(shape.catalogue, width, device=case.device)
    for part in table.split(1 << 16):  # normal_ on billions of elements at once needs as many again
        part.normal_()
    comparable = torch.nn.functional.normalize(table, dim=-1)
    users, length = min(64, max(1, (1 << 25) // shape.catalogue)), shape.sequence_length
    generator = torch.Generator().manual_seed(case.seed)
    items = torch.randint(shape.catalogue, (users * length,), generator=generator, device="cpu").to(case.device)
    offsets = length * torch.arange(users + 1, device=case.device)
    sequences = PackedSequences(items, items, items, offsets, length)
    rows = torch.arange(users, device=case.device).repeat_interleave(length)

    def rank() -> None:
        with engine.precision():
            predicted = model.embed_histories(sequences, table[items])[sequences.last]
        scores = model.comparable(predicted) @ comparable.T
        bool(torch.isfinite(scores).all())  # as ranking does, which waits for the device
        rank_block(scores, items[:users], rows, items)
        _wait(case.device)

    for _ in range(max(2, warmup // 2)):
        rank()
    engine.processes.any(False)
    began = time.perf_counter()
    for _ in range(steps):
        rank()
    engine.processes.any(False)  # each waits for the slowest
    seconds = (time.perf_counter() - began) / steps
    users *= engine.processes.count
    return {"ms": 1000 * seconds, "users_per_second": users / seconds, "users": users, "items": shape.catalogue}


def _distinct(batch: TrainingBatch) -> Tensor:
    distinct: Tensor = torch.cat([batch.sequences.items, batch.targets, batch.negatives.flatten()]).unique()
    return distinct.cpu()


def _arithmetic(model: nn.Module, part: str) -> int:
    """Parameters of a part of the model that take part in matrix products: all but its embedding tables'. DeepSpeed
    says how many elements a weight has that it has spread."""
    module = model.get_submodule(part)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if id(p) not in tables)


def _utilisation(work: float, seconds: float, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for kind, flops in PEAK_FLOPS.items() if kind in name), None)
    return None if peak is None else work / seconds / peak


def _median_seconds(step: Callable[[], None], count: int, device: torch.device) -> float:
    times = []
    for _ in range(count):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append to a CSV file; columns that it did not have are added."""
    old: list[dict[str, Any]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            old = list(csv.DictReader(file))
    columns = list(dict.fromkeys(name for row in (*old, *rows) for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*old, *rows])
    write_text(path, text.getvalue())
