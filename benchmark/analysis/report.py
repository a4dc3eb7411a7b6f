"""One HTML file that shows all results of a preset, works offline and asks nothing of the network.

Tables, charts and facts come from the modules beside this one; report.html.jinja says where they stand, report.css how
they look, and report.js sorts tables. The same results give the same bytes: there is no date in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmark.analysis import figures, report_charts, report_cost, report_groups, report_records, report_scale, views
from benchmark.analysis.report_charts import Chart
from benchmark.analysis.report_inputs import ReportTable, is_of_ranks, read_table, saved_tables
from benchmark.analysis.tables import BlockResult
from benchmark.analysis.views import View, signed
from benchmark.errors import UserError
from benchmark.files import write_text

if TYPE_CHECKING:
    from benchmark.experiments import Configuration

HERE = Path(__file__).parent
LINKED = ("leaderboard.html", "leaderboard.csv", "claims.html")  # pages beside the report


@dataclass(frozen=True)
class BlockPage:
    """charts: effects, ranks and training; users: gains and breakdowns; both in two columns."""

    name: str
    title: str
    summary: str
    published: View | None
    charts: tuple[list[Chart], list[Chart]]
    users: tuple[list[Chart], list[Chart]]
    cost: View
    cost_chart: Chart | None


@dataclass(frozen=True)
class TablePage:
    name: str
    title: str
    view: View
    scale: Chart | None
    blocks: list[BlockPage]
    files: list[str]


@dataclass(frozen=True)
class OtherPage:
    """A table that is not computed from ranks, as its own Markdown file shows it."""

    name: str
    title: str
    text: Markup


@dataclass(frozen=True)
class Picture:
    """A figure file beside the report, as a data address. alternative: what it says to those who do not see it."""

    title: str
    alternative: str
    address: str


def make_report(folder: Path, preset: str, configuration: Configuration, data: Path, out: Path) -> list[str]:
    """Write the report of the tables in folder to out, and return their names; UserError where there is none.

    data: the folder of the prepared data sets, for their cards.
    """
    names = saved_tables(folder)
    if not names:
        raise UserError(f"{folder} holds no table to report on; make one first, such as `snakemake table7`")
    tables = [read_table(folder, name, configuration, preset) for name in names if is_of_ranks(folder, name)]
    write_text(out, render(tables, folder, preset, configuration, data, out.parent))
    return names


def render(
    tables: Sequence[ReportTable], folder: Path, preset: str, configuration: Configuration, data: Path, beside: Path
) -> str:
    """The page as text. beside: the folder it will lie in, for links to the files there."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"sort_key": sort_key, "svg": _svg}
    script = (HERE / "report.js").read_text(encoding="utf-8")
    runs, software = report_records.provenance(tables)
    named = report_records.all_runs(tables)
    deviations = folder / "deviations.md"
    facts = report_records.data_facts(tables, data, configuration)
    sizes = {one.split: one.card.training_interactions for one in facts if one.card is not None}
    return environment.get_template("report.html.jinja").render(
        preset=preset,
        description=configuration.preset(preset).description,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        light=_colours(figures.INK, figures.FAINT, figures.PAPER, figures.COLOURS),
        dark=_colours(figures.INK_DARK, figures.FAINT_DARK, figures.PAPER_DARK, figures.COLOURS_DARK),
        tables=[_table_page(table, folder, beside, sizes) for table in tables],
        others=[_other_page(folder, name) for name in saved_tables(folder) if not is_of_ranks(folder, name)],
        claims=report_records.claims(folder / "claims.csv"),
        pictures=[_picture(path) for path in sorted(folder.glob("*.svg"))],
        data=facts,
        deviations=Markup(_markdown(deviations.read_text(encoding="utf-8"), below=2)) if deviations.is_file() else None,
        methods=report_records.methods(tables, configuration),
        runs=runs,
        software=software,
        commits=sorted({report_records.short(run.run.git_revision) or "unknown" for run in named}),
        single_seed=any(
            row.deviation is None for table in tables for block in table.result.blocks for row in block.rows
        ),
        links=[name for name in LINKED if (folder / name).is_file() and beside == folder],
        version=metadata.version("hllm-bench"),
    )


def sort_key(text: str) -> str:
    """The number that a cell sorts by: of "18.56 ± 0.20", "−36.58 %", "332K", "<0.001"; empty where there is none."""
    if text == "reference":
        return "0"
    if text == "single seed":
        return "1"
    found = re.match(rf"<?([+{views.MINUS}-]?)([\d,]+(?:\.\d+)?)([KMB]?)(?![\w.-])", text)
    if not found:
        return ""
    size = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[found[3]]
    return repr((-1 if found[1] in ("-", views.MINUS) else 1) * float(found[2].replace(",", "")) * size)


def _svg(drawing: figures.Drawing) -> Markup:
    return Markup(figures.inline_svg(drawing))


def _colours(ink: str, faint: str, paper: str, series: Sequence[str]) -> Markup:
    named = {"ink": ink, "faint": faint, "paper": paper} | {f"series-{i}": c for i, c in enumerate(series, 1)}
    return Markup("; ".join(f"--{name}: {colour}" for name, colour in named.items()))


def _table_page(table: ReportTable, folder: Path, beside: Path, sizes: Mapping[str, int]) -> TablePage:
    result = table.result
    name = result.spec.name
    files = [
        f"{name}{end}" for end in (".csv", "_pairs.csv", ".md", ".tex", ".html") if (folder / f"{name}{end}").is_file()
    ]
    blocks = [_block_page(table, block, f"{name}-{number}") for number, block in enumerate(result.blocks, 1)]
    return TablePage(
        name, result.spec.title, views.methods_view(result), report_scale.scale(table, sizes), blocks,
        files if beside == folder else [],
    )  # fmt: skip


def _other_page(folder: Path, name: str) -> OtherPage:
    path = folder / f"{name}.md"
    if not path.is_file():
        raise UserError(f"{path} is missing; make the table again")
    heading, _, rest = path.read_text(encoding="utf-8").partition("\n")
    return OtherPage(name, heading.removeprefix("## "), Markup(_markdown(rest, below=1)))


def _block_page(table: ReportTable, block: BlockResult, name: str) -> BlockPage:
    costs, cost_chart = report_cost.cost(table, block, f"{name}-cost")
    kinds: tuple[report_groups.Kind, ...] = ("frequency", "history")
    effects = report_charts.effects(table, block, f"{name}-effects")
    ranks = report_charts.ranks(table, block, f"{name}-ranks")
    groups = [report_groups.breakdown(table, block, f"{name}-{kind}", kind) for kind in kinds]
    return BlockPage(
        name=name,
        title=block.block.title,
        summary=summary(block, len(table.result.spec.metrics)),
        published=report_cost.against_published(table, block, name),
        charts=_columns([effects, ranks, *report_charts.training(table, block, name)]),
        users=_columns([*report_groups.winners(table, block, f"{name}-winners"), *groups]),
        cost=costs,
        cost_chart=cost_chart,
    )


def _columns(charts: Sequence[Chart | None]) -> tuple[list[Chart], list[Chart]]:
    """Two columns of about the same height: each chart goes to the one that is shorter so far."""
    columns: tuple[list[Chart], list[Chart]] = ([], [])
    heights = [0.0, 0.0]
    for chart in charts:
        if chart is not None:
            shorter = 0 if heights[0] <= heights[1] else 1
            columns[shorter].append(chart)
            heights[shorter] += chart.drawing.figure.get_figheight() + 1.4  # inches: caption and text
    return columns


def summary(block: BlockResult, metrics: int) -> str:
    """A sentence on what the block found, and how sure it is."""
    compared = [(row, row.comparison) for row in block.rows if row.comparison is not None]
    users = f"{block.first_run.users:,} users"
    if not compared:
        return f"{block.rows[0].row.label} alone, {users}."
    row, pair = max(compared, key=lambda one: one[1].improvement)
    low, high = signed(100 * pair.improvement_low, 1), signed(100 * pair.improvement_high, 1)
    interval = f"95 % interval {low} to {high} %"
    if not np.isfinite([pair.improvement_low, pair.improvement_high]).all():  # few users, some metric is 0 without them
        interval = "too few users for an interval"
    count = f"Of the {len(compared)} methods" if len(compared) > 1 else "Of one method"
    seeds = {len(row.row.runs) for row in block.rows}
    return (
        f"{count} compared with {block.block.reference} over {users}, {row.row.label} "
        f"{'gains most' if pair.improvement > 0 else 'loses least'}: {signed(100 * pair.improvement, 1)} % in the mean "
        f"of {metrics} metrics ({interval}), "
        + (
            "single seed."
            if seeds == {1}
            else f"{min(seeds)} seeds."
            if len(seeds) == 1
            else f"{min(seeds)} seeds or more."
        )
    )


def _picture(path: Path) -> Picture:
    """A figure that another step wrote, with the title and description that its file holds."""
    content = path.read_bytes()
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is no SVG file ({error}); make the figure again") from error
    title, told = (root.findtext(f"{{http://www.w3.org/2000/svg}}{tag}") or "" for tag in ("title", "desc"))
    address = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return Picture(title or path.stem, told or title or path.stem, address)


def _markdown(text: str, below: int) -> str:
    """HTML of Markdown: HTML in it is shown as text, and its headings are so many levels deeper."""
    deeper = re.sub(r"^(#{1,3}) ", rf"{'#' * below}\1 ", text, flags=re.MULTILINE)
    rendered = str(MarkdownIt("commonmark", {"html": False}).enable("table").render(deeper))
    return re.sub(r"<th(?=[ >])", '<th scope="col"', rendered)
