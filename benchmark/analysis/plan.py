"""The text of a plan: each run's work, memory, time and money beside the paper's own, and what the users can tell."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from benchmark.analysis.cost import (
    CostAssumptions,
    DataFacts,
    ModelSize,
    gpu_hours,
    measured_utilisation,
    work_of,
)
from benchmark.analysis.power import detectable_effect, deviation_of_difference, power_of_paired_test, spread_over_users
from benchmark.experiments import Run
from benchmark.experiments.engine_choice import MEMORY_SHARE, EngineChoice, chosen_engine

if TYPE_CHECKING:
    from benchmark.experiments import PlannedBlock, PlannedRow, PlannedTable

SPEED, PAPER_COST = Path("results/reference/speed.csv"), Path("results/published/training_cost.csv")
CORRELATION = 0.5  # of two methods over users; 0.4 to 0.8 in results/reference
NONE = "\N{EN DASH}"
LEAST = "\N{DAGGER}"


@dataclass(frozen=True)
class PlannedCost:
    run: Run
    facts: DataFacts
    size: ModelSize


def plan_text(
    plan: PlannedTable, costs: Mapping[str, PlannedCost], assumptions: CostAssumptions, *, gpu: str, gpus: int,
    price: float | None, effect: float,
) -> str:  # fmt: skip
    """gpus share every run. effect: a relative difference of a metric between two methods, as a fraction."""
    parts, seen, total, assumed = [], set(), 0.0, set()
    for block in plan.blocks:
        rows = []
        for row in block.rows:
            for run in row.runs:
                cost = costs[run.id]
                hours, source, least = _gpu_hours(cost, assumptions, gpu, gpus)
                assumed.add(source)
                total += hours if run.id not in seen else 0.0
                shown = f"{hours:,.2f}{LEAST if least else ''}"
                rows.append(_line(row, cost, assumptions, gpu, gpus, hours, shown, price, again=run.id in seen))
                seen.add(run.id)
        first = costs[block.rows[0].runs[0].id].facts
        origin = "prepared" if first.measured else "not prepared: lengths of histories estimated from published counts"
        parts.append(
            f"{block.block.title or block.block.dataset} ({first.users:,} users, {first.items:,} items; {origin})"
        )
        parts.append(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"))
        parts.append(_power(block, costs, effect))
    money = "" if price is None else f", {total * price:,.0f} at {price:g} a GPU-hour"
    parts.append(f"All {len(seen)} runs: {total:,.1f} {gpu} hours{money}.")
    parts += [f"- {note}" for note in sorted(assumed)]
    if any(LEAST in part for part in parts):
        parts.append(
            f"- {LEAST}: the least that a step takes decides, {1000 * assumptions.step_seconds:g} ms; its arithmetic "
            "takes less."
        )
    parts.append(
        "- Exchanges between GPUs are not counted; they grow with the parameters, item tables included.\n"
        "- Hours are for all epochs and a validation after each; patience may end a run sooner. Memory: weights, "
        f"gradients and moments in float32, of which {MEMORY_SHARE:.0%} of a GPU's memory may be taken; "
        "activations follow the chunk, which is no part of a run."
    )
    return "\n".join(parts)


def _line(
    row: PlannedRow, cost: PlannedCost, assumptions: CostAssumptions, gpu: str, gpus: int, hours: float,
    shown: str, price: float | None, again: bool,
) -> dict[str, str]:  # fmt: skip
    work, run = work_of(cost.run, cost.facts, cost.size), cost.run
    choice = _choice(cost, assumptions, gpu, gpus)
    trained = bool(cost.size.weights.learned)
    line = {
        "run": row.label + (f", seed {run.seed}" if len(row.runs) > 1 else "") + (" (again)" if again else ""),
        "parameters": f"{cost.size.parameters / 1e6:,.2f}M",
        "steps/epoch": f"{work.steps:,}" if trained else NONE,
        "epochs": str(run.training.epochs) if trained else NONE,
        "item tokens/epoch": f"{work.item_tokens / 1e6:,.1f}M" if cost.size.item else NONE,
        "events/epoch": f"{work.positions / 1e6:,.2f}M",
        "memory/GPU": f"{choice.gpu / 2**30:,.1f} GiB",
        "engine": _engine(choice),
        "GPU-hours": shown,
        f"days on {gpus}": f"{hours / gpus / 24:,.2f}",
    }
    if price is not None:
        line["money"] = f"{hours * price:,.0f}"
    line["paper"] = _paper_cost(row)
    return line


def _gpu_hours(cost: PlannedCost, assumptions: CostAssumptions, gpu: str, gpus: int) -> tuple[float, str, bool]:
    """Hours of all GPUs together, what they were reckoned with, and whether the least time of a step decides them."""
    precision, run = cost.run.execution.precision, cost.run
    share = measured_utilisation(SPEED, run.method, gpu, _choice(cost, assumptions, gpu, gpus))
    source = f"{run.method}: {share:.0%} of the peak, as measured ({SPEED})." if share else ""
    if share is None:
        share = assumptions.utilisation[precision]
        source = (
            f"Assumed where no speed was measured: {share:.0%} of the peak in {precision}, and "
            f"{1000 * assumptions.step_seconds:g} ms for a step at the least (config/costs.yaml)."
        )
    rate = share * getattr(assumptions.gpu(gpu), precision)
    work = work_of(run, cost.facts, cost.size)
    hours = gpu_hours(run, work, gpus, rate, assumptions.step_seconds)
    return hours, source, hours > gpu_hours(run, work, gpus, rate, 0.0)


def _choice(cost: PlannedCost, assumptions: CostAssumptions, gpu: str, gpus: int) -> EngineChoice:
    """What training takes where the run leaves it open."""
    copies = 2 if cost.run.execution.precision == "bf16" else 4
    return chosen_engine(cost.size.weights, assumptions.gpu(gpu).memory_gib * 2**30, gpus, copies=copies)


def _engine(choice: EngineChoice) -> str:
    if choice.offload == "none":
        return choice.engine
    return f"{choice.engine}, offload {choice.offload} ({choice.host / 2**30:,.1f} GiB on the host)"


def _paper_cost(row: PlannedRow) -> str:
    """GPU-hours that the paper states for a row's published numbers."""
    if row.row.published is None or not PAPER_COST.is_file():
        return NONE
    wanted = row.row.published
    with PAPER_COST.open(encoding="utf-8", newline="") as file:
        found = [line for line in csv.DictReader(file) if all(line.get(key) == value for key, value in wanted.items())]
    negatives = str(row.runs[0].training.negatives.count)
    found = [line for line in found if line["negatives"] == negatives]
    if len(found) != 1:
        return NONE
    gpus, days = int(found[0]["gpus"]), float(found[0]["days"])
    return f"{gpus * days * 24:,.0f} {found[0]['gpu']} hours ({gpus} for {days:g} days)"


def _power(block: PlannedBlock, costs: Mapping[str, PlannedCost], effect: float) -> str:
    """What a paired test of R@10 over the block's users finds, at a recall of 5 % as in the paper."""
    users, mean = costs[block.rows[0].runs[0].id].facts.users, 0.05
    other = min(1.0, mean * (1 + effect))
    deviation = deviation_of_difference(spread_over_users(mean), spread_over_users(other), CORRELATION)
    tests = max(1, len(block.rows) - 1)
    power = power_of_paired_test(other - mean, deviation, users, tests=tests)
    least = detectable_effect(deviation, users, tests=tests) / mean
    return (
        f"Over {users:,} users a difference of {effect:.1%} in R@10 (around {mean:.0%}, correlation {CORRELATION}) is "
        f"found with probability {power:.2f}; the least that is found four times in five is {least:.1%} "
        f"({tests} test{'s' * (tests > 1)}).\n"
    )
