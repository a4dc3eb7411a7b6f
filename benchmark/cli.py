"""The command line: one verb a workflow rule, and the verbs that people use."""

from __future__ import annotations

import os
import sys

import typer

from benchmark.commands import (
    clicks,
    comparison,
    data,
    doctor,
    evidence,
    plan,
    recommend,
    released,
    report,
    results,
    runs,
    speed,
)
from benchmark.commands.shared import log
from benchmark.errors import STOPPED, OneProcessError, StoppedError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for verb in (
    data.download,
    data.prepare,
    data.datasets,
    data.text_statistics,
    data.tokenize,
    data.images,
    runs.resolve,
    runs.train,
    runs.embed,
    runs.rank,
    clicks.clicks,
    results.table,
    results.breakdown,
    results.scale,
    comparison.compare,
    comparison.leaderboard,
    comparison.submit,
    recommend.recommend,
    evidence.claims,
    evidence.keep,
    evidence.reference,
    speed.speed,
    released.import_released,
    plan.plan,
    plan.deviations,
    doctor.doctor,
    report.report,
):
    app.command()(verb)


def main() -> None:
    """Run a verb; a mistake of the user ends with one sentence and status 1, a request to stop with one and 75."""
    first = os.environ.get("RANK", "0") == "0"  # of a job's processes, which all meet the same mistakes
    try:
        app(standalone_mode=True)
    except UserError as error:
        if first or isinstance(error, OneProcessError):
            log.error("error: %s", error) if log.handlers else print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except StoppedError as stopped:
        if first:
            log.warning("%s", stopped)
        sys.exit(STOPPED)
