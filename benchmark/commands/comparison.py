"""Verbs that hold results against others: comparison, leaderboard, submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmark.commands.shared import DataRoot, Preset, log_to
from benchmark.errors import UserError

Layout = Annotated[str | None, typer.Option(help="a file of config/formats, or a YAML file of your own")]
UnitOption = Annotated[str | None, typer.Option(help="fraction or percent, instead of what the file's format says")]
Where = Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="only rows with this name or detail")]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="a result CSV, a run's folder, a folder of runs, any results")],
    b: Annotated[Path, typer.Argument(metavar="B", help="what A is held against, such as results/published/*.csv")],
    reference: Annotated[str | None, typer.Option(help="also compare the gains over this method")] = None,
    same: Annotated[list[str], typer.Option(metavar="A=B", help="a method that B calls otherwise")] = [],  # noqa: B006
    where_a: Where = [],  # noqa: B006
    where_b: Where = [],  # noqa: B006
    format_a: Layout = None,
    format_b: Layout = None,
    unit_a: UnitOption = None,
    unit_b: UnitOption = None,
    noise: Annotated[
        float, typer.Option(min=0, help="relative difference in percent that authors have themselves")
    ] = 0.4,
    out: Annotated[Path, typer.Option(help="files to write, without .csv, .md, .html")] = Path("results/compare"),
) -> None:
    """Does a number hold? Compare results with others, and say of each number whether it is reproduced.

    Exit status: 0 if every number is reproduced, 3 if one deviates, 4 if none does but some cannot be compared.
    """
    from benchmark.analysis.compare import Comparer
    from benchmark.analysis.compare_gains import compare_gains
    from benchmark.analysis.compare_matching import match_sources
    from benchmark.analysis.compare_sources import RunFolders, read_source
    from benchmark.analysis.compare_views import exit_status, write_comparison

    log_to(None, "compare")
    runs, config = RunFolders(), Path("config")
    sources = [
        read_source(path, runs, config, layout=layout, unit=_unit(unit), where=_pairs(where, "--where"))
        for path, layout, unit, where in ((a, format_a, unit_a, where_a), (b, format_b, unit_b, where_b))
    ]
    matching = match_sources(sources[0], sources[1], _pairs(same, "--same"), config)
    comparer = Comparer(matching.matches, runs, noise / 100)
    results = comparer.results()
    gains = compare_gains(matching.matches, reference, comparer, noise / 100) if reference else []
    print(write_comparison(matching, results, gains, reference or "", out, noise / 100))
    raise typer.Exit(exit_status([*results, *gains]))


def leaderboard(
    preset: Preset = "laptop",
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Rank the methods of a preset's finished and submitted runs, a board a data set and split, and print them."""
    from benchmark.analysis.leaderboard import make_leaderboard

    log_to(None, "leaderboard")
    print(make_leaderboard(results / preset))


def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    preset: Preset = "laptop",
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
    data: DataRoot = Path("data"),
) -> None:
    """Check a run's folder (form, origin, split, values); if all holds, put it on the preset's leaderboard."""
    from benchmark.analysis.leaderboard import make_leaderboard
    from benchmark.analysis.submission import add_submission, check_submission

    log_to(None, "submit")
    checked = check_submission(run, data)
    for sign, sentences in (("holds", checked.passed), ("not checked", checked.unchecked), ("fails", checked.failed)):
        for sentence in sentences:
            print(f"{sign}: {sentence}")
    if checked.failed:
        raise UserError(f"{run} is not taken: {len(checked.failed)} check(s) fail")
    print(f"taken: {add_submission(run, checked.run_id, results / preset)}\n")
    print(make_leaderboard(results / preset))


def _unit(text: str | None) -> Literal["fraction", "percent"] | None:
    if text not in (None, "fraction", "percent"):
        raise UserError(f"unit {text!r} is neither fraction nor percent")
    return "fraction" if text == "fraction" else "percent" if text else None


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, found, value = text.partition("=")
        if not (key and found and value):
            raise UserError(f"{option} {text!r} is not of the form NAME=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs
