"""What a check finds, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and, unless it is as it should be, what to mend."""

    state: State
    subject: str
    told: str
    mend: str = ""

    def line(self) -> str:
        return f"{self.state:<8} {self.subject:<10} {self.told}{f': {self.mend}' if self.mend else ''}"


def ok(subject: str, told: str) -> Finding:
    return Finding("ok", subject, told)


def warning(subject: str, told: str, mend: str) -> Finding:
    return Finding("warning", subject, told, mend)


def problem(subject: str, told: str, mend: str) -> Finding:
    return Finding("problem", subject, told, mend)


def examined(checks: Iterable[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of every check; one that fails itself is a problem, and the others go on."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a check asks drivers, file systems and networks, which fail in their own ways
            name = getattr(check, "func", check).__name__
            told = " ".join(str(error).split())[:300] or type(error).__name__
            yield problem(name, f"could not be examined ({type(error).__name__})", told)


def summary(findings: list[Finding]) -> str:
    problems, warnings = (sum(f.state == state for f in findings) for state in ("problem", "warning"))
    if not problems and not warnings:
        return "nothing to mend"
    return f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"
