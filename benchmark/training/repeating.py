"""Why a step is done again: what it wanted was not there, in one process of a job at least."""

from __future__ import annotations

from typing import Literal

Chunked = Literal["items", "histories"]

_LONGEST_REASON = 200  # characters


class MemoryExceededError(Exception):
    """Some process has not had the memory for a phase of a step; own: this one."""

    def __init__(self, what: Chunked, own: bool) -> None:
        self.what, self.own = what, own


class CompileFailedError(Exception):
    """torch.compile has failed in some process; own: what it said in this one."""

    def __init__(self, own: Exception | None) -> None:
        said = str(own).partition("Set TORCHDYNAMO_VERBOSE")[0] if own else "in another process"
        self.reason = " ".join(said.split())[:_LONGEST_REASON]
