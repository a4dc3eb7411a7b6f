"""The command line: one verb a workflow rule, and the verbs that people use."""

from __future__ import annotations

import sys

import typer

from benchmark.commands import (
    clicks,
    comparison,
    data,
    doctor,
    evidence,
    recommend,
    released,
    report,
    results,
    runs,
    speed,
)
from benchmark.commands.shared import log
from benchmark.errors import STOPPED, StoppedError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for verb in (
    data.prepare,
    data.tokenize,
    runs.resolve,
    runs.train,
    runs.embed,
    runs.rank,
    clicks.clicks,
    results.table,
    comparison.compare,
    comparison.leaderboard,
    comparison.submit,
    recommend.recommend,
    evidence.claims,
    evidence.reference,
    speed.speed,
    released.import_released,
    doctor.doctor,
    report.report,
):
    app.command()(verb)


def main() -> None:
    """Run a verb; a mistake of the user ends with one sentence and status 1, a request to stop with one and 75."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        log.error("error: %s", error) if log.handlers else print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except StoppedError as stopped:
        log.warning("%s", stopped)
        sys.exit(STOPPED)
