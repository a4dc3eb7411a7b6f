"""Figures in one style, as PNG and SVG files whose bytes depend on what they show alone, and as SVG inside a page.

Series differ in colour, marker and dash. Six colours that people with any kind of colour vision tell apart, also where
they are simulated (Machado et al., 2009), each with a contrast of at least 3 to 1 against the background; after six
series dashes and the markers' filling change. A page shows the same figure in its own colours (style sheet variables),
so that it is readable in dark mode too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.files import write_atomically, write_text

INK, FAINT, PAPER = "#1f2328", "#d3d7dd", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#00523c", "#d0609f", "#6e4a00", "#20208c")  # on PAPER
INK_DARK, FAINT_DARK, PAPER_DARK = "#e8eaed", "#3d434c", "#17191e"
COLOURS_DARK = ("#56b4e9", "#f0803c", "#3fe08a", "#ecd6f5", "#ffc233", "#8079e6")  # the same series, on PAPER_DARK
_MARKERS = ("o", "s", "^", "D", "v", "P")
_FILLS = ("full", "none", "left", "top")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold", "text.parse_math": False,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6, "lines.linewidth": 1.6,
    "lines.markersize": 4.5, "legend.frameon": False, "figure.facecolor": PAPER, "axes.facecolor": "none",
    "savefig.facecolor": PAPER, "savefig.dpi": 200, "figure.dpi": 100, "figure.constrained_layout.use": True,
    "svg.fonttype": "none", "svg.hashsalt": "hllm-bench",
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure and what it says to those who do not see it. name: of its files and of its parts in a page.

    title: what is shown, with units. description: the text alternative, that is, what a reader would take from it.
    """

    name: str
    title: str
    description: str
    figure: Figure


def draw(
    name: str,
    title: str,
    description: str,
    plot: Callable[[list[Axes]], object],
    *,
    width: float = 5.6,
    height: float = 3.4,
    rows: int = 1,
    columns: int = 1,
    **subplots: Any,
) -> Drawing:
    """Call plot(its rows * columns axes) in the style.

    width, height: in inches; what is to be read on a phone is at most 4.8 wide.

    subplots: further arguments of Figure.subplots, such as sharex.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        plot(list(figure.subplots(rows, columns, squeeze=False, **subplots).flat))
    return Drawing(name, title, description, figure)


def series(number: int) -> dict[str, Any]:
    """How Axes.plot shows the number-th series; the first 24 all differ, by their marks as well as by their lines."""
    turn, kind = divmod(number, len(COLOURS))
    dash = (kind + turn) % len(_DASHES)
    mark = {"marker": _MARKERS[kind], "fillstyle": _FILLS[turn % len(_FILLS)], "markerfacecoloralt": "none"}
    return {"color": COLOURS[kind], "linestyle": _DASHES[dash], **mark}


def write_figure(drawing: Drawing, folder: Path) -> tuple[Path, Path]:
    """Write folder/<name>.png and .svg, atomically; the same figure gives the same bytes. Returns the two paths."""
    png = folder / f"{drawing.name}.png"
    said = {"Title": drawing.title, "Description": drawing.description, "Software": None}
    with matplotlib.rc_context(_STYLE):
        write_atomically(png, lambda path: drawing.figure.savefig(path, format="png", metadata=said))
    return png, write_svg(drawing, folder)


def write_svg(drawing: Drawing, folder: Path) -> Path:
    """Write folder/<name>.svg alone: text, whose changes git shows."""
    path = folder / f"{drawing.name}.svg"
    write_text(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + _svg(drawing))
    return path


def inline_svg(drawing: Drawing) -> str:
    """The figure as an element of an HTML page, on the page's background and in its font.

    The page's style sheet gives the colours: --ink, --faint, --paper and --series-1 to --series-6.
    """
    text = _svg(drawing)
    names = {INK: "ink", FAINT: "faint", PAPER: "paper"} | {c: f"series-{i}" for i, c in enumerate(COLOURS, 1)}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("'DejaVu Sans'", "inherit")


def _svg(drawing: Drawing) -> str:
    """An svg element with its title and description; ids, which a page shares, start with the drawing's name."""
    file = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{drawing.name}-", text)
    rule = r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>"  # it would hold in the whole page
    heading, body = re.sub(rule, "", text, flags=re.DOTALL).split(">", 1)
    name = drawing.name
    named = f'<title id="{name}-title">{escape(drawing.title)}</title>'
    told = f'<desc id="{name}-desc">{escape(drawing.description)}</desc>'
    labels = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    return f'{heading} style="stroke-linejoin: round" {labels}>\n {named}\n {told}{body}'
