"""The state that a stopped training continues from: written by all processes together, read by any number of them.

    state/step-000000120/
        state.json              progress, identity of run and split, and the sizes of the other files
        part-0000.safetensors   process 0's fragments of the learned parameters and of AdamW's moments

A fragment is a flat stretch of one parameter with the place where it starts, and says nothing of who held it, so one
process reads what eight have written, and the other way round. Where every process holds the whole model, the first
one writes all of it. Frozen weights are not written: the run's settings name them. Random numbers need no state: they
follow from seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmark.errors import OneProcessError, UserError
from benchmark.processes import Processes
from benchmark.training.checkpoint import apart, write_tensors

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


@dataclass(frozen=True)
class Fragment:
    """A stretch of a learned parameter, flat, that this process answers for: elements start, start + 1, ...

    weight: (n,) float32. moments: AdamW's, by name, (n,) each; empty before its first step. steps: that it has taken.
    """

    name: str
    start: int
    weight: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)
    steps: float = 0.0


class StoredState:
    """A complete state in its folder, open for reading."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        """Raises OSError, ValueError or KeyError for a state that is damaged."""
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
        self.notes: dict[str, Any] = content["notes"]
        self._steps: dict[str, float] = {}
        self._places: dict[str, list[tuple[int, int, Any]]] = {}
        for name, size in content["parts"].items():
            path = folder / name
            if path.stat().st_size != size:
                raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {size}")
            try:
                part = files.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{name} is no safetensors file") from error
            written = json.loads(part.metadata()["fragments"])
            for name_of_parameter, (start, steps) in written.items():
                self._steps[name_of_parameter] = steps
                length = part.get_slice(f"weight/{name_of_parameter}").get_shape()[0]
                self._places.setdefault(name_of_parameter, []).append((start, start + length, part))

    def names(self) -> set[str]:
        return set(self._places)

    def steps(self, name: str) -> float:
        """That AdamW has taken of a parameter; 0 for one that has not been updated."""
        return self._steps[name]

    def weight(self, name: str, length: int) -> Tensor:
        """(length,) a whole parameter, flat."""
        return self._read("weight", name, 0, length)

    def moment(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """(length,) elements of one of a parameter's MOMENTS."""
        return self._read(kind, name, start, start + length)

    def _read(self, kind: str, name: str, start: int, end: int) -> Tensor:
        pieces = []
        for first, last, part in sorted(self._places[name], key=lambda place: place[0]):
            low, high = max(start, first), min(end, last)
            if low < high:
                pieces.append(part.get_slice(f"{kind}/{name}")[low - first : high - first])
        read = torch.cat(pieces)
        if len(read) != end - start:
            raise UserError(f"the saved state has {len(read)} elements of {name} instead of {end - start}; delete it")
        return read


def learned_parameters(model: nn.Module, objective: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by a name that is theirs in every engine."""
    parts = {"model": model, "objective": objective}
    named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    return {name: p for name, p in named.items() if p.requires_grad}


@torch.no_grad()
def take_learned(model: nn.Module, objective: nn.Module, stored: StoredState) -> None:
    """Take over the weights of a stopped training."""
    for name, parameter in learned_parameters(model, objective).items():
        parameter.copy_(stored.weight(name, parameter.numel()).view_as(parameter))


class States:
    """The states of a run's folder, the newest `keep` of them. Every method is for all processes together."""

    def __init__(self, folder: Path, processes: Processes, keep: int = 2) -> None:
        self.folder, self.processes, self.keep = folder / "state", processes, keep

    def save(self, step: int, notes: dict[str, Any], fragments: Iterable[Fragment]) -> None:
        """Write a state, then remove those that are too many. A full disk is a UserError in all processes, and leaves
        the states before it."""
        place, temporary = self.folder / f"step-{step:09d}", self.folder / f".step-{step:09d}.part"
        problem = self._try(lambda: _emptied(temporary)) if self.processes.first else None
        self._agree(problem, place)
        self._agree(
            self._try(lambda: _write_part(temporary / f"part-{self.processes.rank:04d}.safetensors", fragments)), place
        )
        if self.processes.first:
            problem = self._try(lambda: _complete(temporary, place, notes))
        self._agree(problem, place)
        if self.processes.first:
            for old in self._steps()[self.keep :]:
                shutil.rmtree(self._place(old), ignore_errors=True)

    def newest(self, warn: Callable[[str], None], files: ExitStack) -> StoredState | None:
        """The newest state that is whole, or None; a damaged one is named through warn and passed over."""
        chosen = -1
        if self.processes.first:
            for step in self._steps():
                try:
                    with ExitStack() as once:
                        StoredState(self._place(step), once)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    warn(f"{self._place(step)} is damaged ({error}) and is passed over")
                    continue
                chosen = step
                break
        chosen = self.processes.most([chosen])[0]
        return StoredState(self._place(chosen), files) if chosen >= 0 else None

    def remove(self) -> None:
        """The run is finished."""
        if self.processes.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[int]:
        """Newest first."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    @staticmethod
    def _try(work: Callable[[], None]) -> str | None:
        try:
            work()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _agree(self, problem: str | None, place: Path) -> None:
        """Wait for all processes; if one of them has a problem, none goes on."""
        if self.processes.any(problem is not None):
            kind = UserError if problem is None else OneProcessError
            reason = problem or "another process has failed to write its part"
            raise kind(f"{place} could not be written: {reason}; free space or mend the folder, and start again")


def _emptied(folder: Path) -> None:
    for leftover in folder.parent.glob(".step-*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    folder.mkdir(parents=True)


def _write_part(path: Path, fragments: Iterable[Fragment]) -> None:
    tensors: dict[str, Tensor] = {}
    written: dict[str, tuple[int, float]] = {}
    for fragment in fragments:
        written[fragment.name] = (fragment.start, fragment.steps)
        tensors[f"weight/{fragment.name}"] = fragment.weight
        for kind, moment in fragment.moments.items():
            tensors[f"{kind}/{fragment.name}"] = moment
    if tensors:
        write_tensors(path, apart(tensors), {"fragments": json.dumps(written)})
        _flush(path)


def _complete(temporary: Path, place: Path, notes: dict[str, Any]) -> None:
    parts = {path.name: path.stat().st_size for path in _parts(temporary)}
    description = temporary / "state.json"
    description.write_text(json.dumps({"format": FORMAT, "parts": parts, "notes": notes}), encoding="utf-8")
    _flush(description)
    if place.exists():  # damaged: a whole one would have been continued from
        shutil.rmtree(place)
    temporary.rename(place)
    _flush(place.parent)


def _parts(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("part-*.safetensors"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
