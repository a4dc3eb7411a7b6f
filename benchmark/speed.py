"""How fast a method trains, encodes items and ranks, at a published shape: seeded synthetic steps, random weights.

What is measured is what the trainer runs: the engine's step, the draw of the next batch, one wait for the loss.
Utilisation is 6 x non-embedding parameters x (item tokens, user positions) / time / the device's peak for training, and
2 x for encoding; what is recomputed to save memory counts as time and not as work. Several processes share every step,
and utilisation is of all their devices.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmark.data import randomness
from benchmark.data.batches import TrainingBatch
from benchmark.errors import UserError
from benchmark.evaluation.ranking import rank_block
from benchmark.experiments.run import EngineName, ExecutionSettings, Offload, OptimizerSettings
from benchmark.files import write_text
from benchmark.processes import Processes
from benchmark.recommender import Catalogue, PackedSequences, item_chunks
from benchmark.settings import Settings, read_yaml, validated
from benchmark.training import registry
from benchmark.training.engine import Engine
from benchmark.training.engines import make_engine
from benchmark.training.objectives import InfoNCE, Temperature

PARTS = ("train", "encode", "rank")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, by the vendor's data sheets
_SHORTEST, _LONGEST = 8, 256  # tokens of a text
_VOCABULARY = 32_000
_TEXTS = 32_768  # most items that are given a text; steps and encoding draw from them
_ENCODED_TOKENS = 1 << 16  # in one forward pass
_GIB = 1 << 30


class TextLengths(Settings):
    median: float = Field(gt=0)
    spread: float = Field(ge=0)


class Shape(Settings):
    """sequence_length: events that the model reads; a window has one more. mean_events: of a window, the target
    included; None fills every slot. negatives: shared by the step, or a position's own. released: milliseconds a step
    of the released code, by method."""

    users: int = Field(gt=0)
    sequence_length: int = Field(gt=0)
    mean_events: float | None = Field(None, gt=2)
    negatives: int = Field(gt=0)
    sharing: Literal["shared", "per_position"] = "shared"
    text: TextLengths | None = None
    catalogue: int = Field(gt=0)
    released: dict[str, float] = {}


class Method(Settings):
    class_: str = Field(alias="class")
    precision: Literal["fp32", "bf16"]
    model: dict[str, Any]


class SpeedFile(Settings):
    """config/speed.yaml."""

    methods: dict[str, Method]
    shapes: dict[str, Shape]


@dataclass(frozen=True)
class Case:
    """A method at a shape on a device. compiled: let torch.compile make the kernels; item_chunk: see ItemEmbedder;
    engine, offload: see ExecutionSettings."""

    name: str
    shape_name: str
    method: Method
    shape: Shape
    device: torch.device
    compiled: bool
    item_chunk: int | None = None
    seed: int = 2020
    engine: EngineName = "auto"
    offload: Offload = "none"


def load_case(
    path: Path, method: str, shape: str, *, device: torch.device, compiled: bool, item_chunk: int | None = None
) -> Case:
    """The case that config/speed.yaml describes under these two names."""
    content = validated(SpeedFile, read_yaml(path), str(path))
    for kind, name, known in (("method", method, content.methods), ("shape", shape, content.shapes)):
        if name not in known:
            raise UserError(f"{path} has no {kind} {name!r}; it has: {', '.join(known)}")
    chosen = content.methods[method], content.shapes[shape]
    return Case(method, shape, *chosen, device, compiled, item_chunk)


def measure(
    case: Case,
    parts: tuple[str, ...] = PARTS,
    *,
    warmup: int = 5,
    steps: int = 20,
    pieces: int | None = None,
    processes: Processes | None = None,
) -> list[dict[str, Any]]:
    """A row of figures for each part; the first `warmup` steps are not timed. pieces: of items encoded and of users
    ranked, as many as steps by default. processes: those of the job, all of which call this; memory is that of this
    one."""
    engine = engine_of(case, processes or Processes())
    rows = []
    for part in parts:
        run = {"train": _train, "encode": _encode, "rank": _rank}[part]
        if case.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(case.device)
        figures = run(case, engine, warmup, steps if part == "train" else pieces or steps)
        memory = torch.cuda.max_memory_allocated(case.device) / _GIB if case.device.type == "cuda" else None
        rows.append({"method": case.name, "shape": case.shape_name, "part": part, **figures, "peak_memory_gib": memory})
    return [{name: _rounded(value) for name, value in row.items()} for row in rows]


def synthetic_catalogue(case: Case) -> Catalogue:
    """Items whose texts are random tokens of the shape's lengths, [ITEM] not counted."""
    shape = case.shape
    if shape.text is None:
        return Catalogue(shape.catalogue)
    size = min(shape.catalogue, _TEXTS)
    generator = torch.Generator().manual_seed(case.seed)
    normal = torch.randn(size, generator=generator, device="cpu")
    lengths = torch.exp(math.log(shape.text.median) + shape.text.spread * normal).round()
    lengths = lengths.clamp(_SHORTEST, _LONGEST).long()
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    tokens = torch.randint(_VOCABULARY, (int(offsets[-1]),), generator=generator, dtype=torch.int32, device="cpu")
    return Catalogue(size, tokens.to(case.device), offsets, _VOCABULARY)


def synthetic_batch(case: Case, step: int) -> TrainingBatch:
    """The training batch of a step, on the case's device."""
    shape = case.shape
    size = shape.catalogue if shape.text is None else min(shape.catalogue, _TEXTS)
    generator = torch.Generator().manual_seed(case.seed + step)
    lengths = _window_lengths(shape, generator) - 1
    total = int(lengths.sum())
    items, targets = torch.randint(size, (2, total), generator=generator, device="cpu")
    times = torch.arange(total, device="cpu")
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    sequences = PackedSequences(items, times, times + 1, offsets, int(lengths.max())).to(case.device)
    if shape.text is not None:  # a window's targets are its next inputs, and its last target is one more item
        shifted = sequences.items.roll(-1)
        last = sequences.last
        targets = shifted.index_copy(0, last, targets.to(case.device)[last])
    count = shape.negatives * (total if shape.sharing == "per_position" else 1)
    each = torch.arange(count, device=case.device)
    key = randomness.key(case.seed, randomness.Stream.NEGATIVES, step)
    drawn = randomness.integers(key, each, size, case.compiled)
    negatives = drawn if shape.sharing == "shared" else drawn.view(total, shape.negatives)
    return TrainingBatch(sequences, targets.to(case.device), negatives)


def _window_lengths(shape: Shape, generator: torch.Generator) -> Tensor:
    """(users,) events of each window: all slots, or 2 + an exponential cut at the window, of the wanted mean."""
    window = shape.sequence_length + 1
    if shape.mean_events is None:
        return torch.full((shape.users,), window, device="cpu")
    uniform = torch.rand(shape.users, generator=generator, device="cpu")
    # Quantiles of equal spacing, moved together by chance: every step has nearly the wanted mean.
    quantiles = (torch.arange(shape.users, device="cpu") + uniform[0]) / shape.users
    scale = _scale_of_mean(shape.mean_events - 2, window - 2)
    return (2 - scale * torch.log1p(-quantiles)).round().clamp(2, window).long()


def _scale_of_mean(mean: float, limit: float) -> float:
    """The scale s of an exponential cut at limit, so that its mean, s (1 - exp(-limit / s)), is the wanted one."""
    low, high = 1e-3, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if -middle * math.expm1(-limit / middle) < mean else (low, middle)
    return low


def engine_of(case: Case, processes: Processes) -> Engine:
    """With a model of random weights, which the case's seed decides, and the paper's learning rate."""
    torch.manual_seed(case.seed)
    with case.device:  # random weights are drawn where they are used: billions take long on a processor
        model = registry.build(
            case.method.class_, case.method.model, synthetic_catalogue(case), case.shape.sequence_length
        ).to(case.device)
    execution = ExecutionSettings(
        precision=case.method.precision, engine=case.engine, offload=case.offload, item_chunk=case.item_chunk,
        compile="on" if case.compiled else "off",
    )  # fmt: skip
    optimizer = OptimizerSettings(learning_rate=1e-4, weight_decay=0.01)
    return make_engine(
        model, InfoNCE(Temperature()).to(case.device), optimizer, execution, case.device, processes,
        case.shape.sequence_length,
    )  # fmt: skip


def _train(case: Case, engine: Engine, warmup: int, steps: int) -> dict[str, Any]:
    engine.model.train()
    batches = [synthetic_batch(case, 0)]

    def step() -> None:
        loss = engine.step(batches[-1]).loss
        batches.append(synthetic_batch(case, len(batches)))
        float(loss)

    for _ in range(warmup):
        step()
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
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
    if released := case.shape.released.get(case.name):
        figures |= {"released_ms": released, "times_released": released / (1000 * seconds)}
    return figures


@torch.no_grad()
def _encode(case: Case, engine: Engine, warmup: int, steps: int) -> dict[str, Any]:
    engine.model.eval()
    size = case.shape.catalogue if case.shape.text is None else min(case.shape.catalogue, _TEXTS)
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
        rank_block(scores, items[:users], rows, items)
        engine.processes.any(False)  # as ranking does, and so each waits for the slowest

    for _ in range(max(2, warmup // 2)):
        rank()
    seconds = _median_seconds(rank, steps, case.device)
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
