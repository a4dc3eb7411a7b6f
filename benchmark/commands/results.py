"""Verbs on results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmark.commands.shared import OverridesFile, Preset, Seeds, configuration, log_to, parse_seeds
from benchmark.errors import UserError


def table(
    name: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Compute a table from the ranks of its runs, write it as CSV, Markdown, LaTeX and HTML, and print it."""
    from benchmark.analysis.click_tables import is_click_table, make_click_table
    from benchmark.analysis.tables import make_table

    log_to(None, name)
    plan = configuration(overrides).plan(name, preset, parse_seeds(seeds))
    make = make_click_table if is_click_table(plan.file.metrics) else make_table
    print(make(plan, results / preset))


def breakdown(
    name: Annotated[str, typer.Argument(help="a table of config/tables")],
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Break a table down by how often the target was trained on: cold, tail, middle, head."""
    from benchmark.analysis.breakdown import breakdown as of_table
    from benchmark.files import write_text

    csv, text = of_table(configuration(overrides).plan(name, preset, parse_seeds(seeds)), results / preset)
    write_text(results / preset / "breakdown" / f"{name}.csv", csv)
    write_text(results / preset / "breakdown" / f"{name}.md", text)
    print(text)


def scale(
    name: Annotated[str, typer.Argument(help="a table whose rows differ in training.user_share")] = "figure3",
    preset: Preset = "laptop",
    seeds: Seeds = None,
    overrides: OverridesFile = None,
    results: Annotated[Path, typer.Option(help="folder that holds the preset's results")] = Path("results"),
) -> None:
    """Draw results against the number of users trained on, and say how many a method needs to reach another's best."""
    from benchmark.analysis.data_scale import data_scale
    from benchmark.analysis.figures import write_figure
    from benchmark.files import write_text

    drawing, text = data_scale(configuration(overrides).plan(name, preset, parse_seeds(seeds)), results / preset)
    write_figure(drawing, results / preset)
    write_text(results / preset / f"{name}_data_needed.csv", text)
    print(drawing.description)


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
    noise: Annotated[float, typer.Option(help="relative difference in percent that authors have themselves")] = 0.4,
    out: Annotated[Path, typer.Option(help="files to write, without .csv, .md, .html")] = Path("results/comparison"),
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
