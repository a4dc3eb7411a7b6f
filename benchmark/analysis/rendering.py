"""Tables as Markdown, LaTeX (booktabs), a self-contained HTML page, and plain text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tabulate import tabulate

from benchmark.analysis.views import MINUS, NONE, Cell, Line, View

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", MINUS: "$-$", "±": r"$\pm$",
    NONE: "--", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
}  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .5rem 0; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; font-weight: normal; }
th.text, td.text { text-align: left; }
thead th { border-top: 2px solid; border-bottom: 1px solid; font-weight: bold; }
tbody { border-bottom: 1px solid; }
tbody.block > tr:first-child > th { text-align: left; font-style: italic; }
tr.quoted { font-style: italic; }
tr.quoted th { padding-left: 1.6rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.notes { font-size: .9rem; max-width: 50rem; }
@media print { .scroll { overflow: visible; } body { max-width: none; } }
""".strip()


def markdown(views: Sequence[View]) -> str:
    """Pipe tables; a section's title is a line of its own."""
    parts = []
    for view in views:
        lines = [f"## {view.title}"]
        for section in view.sections:
            rule = [":--" if i < view.text_columns else "--:" for i in range(len(view.columns))]
            rows = [view.columns, rule, *([_markdown_cell(c, line) for c in line.cells] for line in section.lines)]
            lines += ["", f"**{_markdown_text(section.title)}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
        notes = [*view.notes, "**Bold**: best; <u>underlined</u>: second best."] if view.emphasised else view.notes
        parts.append("\n".join([*lines, "", *(f"- {note}" for note in notes if note)]))
    return "\n\n".join(parts) + "\n"


def _markdown_text(text: str) -> str:
    for sign in "\\|*_<`[":
        text = text.replace(sign, f"\\{sign}")
    return text


def _markdown_cell(cell: Cell, line: Line) -> str:
    text = _markdown_text(cell.text)
    if cell.emphasis == "best":
        text = f"**{text}**"
    elif cell.emphasis == "second":
        text = f"<u>{text}</u>"
    return (f"*{text}*" if line.quoted and text != NONE else text) + cell.mark


def latex(views: Sequence[View]) -> str:
    r"""Floats for a paper that has \usepackage{booktabs}."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex_table(view) for view in views)


def _latex_table(view: View) -> str:
    width = len(view.columns)
    spec = "l" * view.text_columns + "r" * (width - view.text_columns)
    notes = [*view.notes, "Bold: best; underlined: second best."] if view.emphasised else view.notes
    lines = [
        r"\begin{table*}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"  \caption{{{_latex_text(view.title)}. {_latex_text(' '.join(note for note in notes if note))}}}",
        rf"  \label{{tab:{view.name}}}",
        rf"  \begin{{tabular}}{{{spec}}}",
        r"    \toprule",
        f"    {' & '.join(map(_latex_text, view.columns))} \\\\",
    ]
    for section in view.sections:
        title = rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_latex_text(section.title)}}}}}"
        lines += [r"    \midrule", rf"    {title} \\"]
        lines += [f"    {' & '.join(_latex_cell(cell, line) for cell in line.cells)} \\\\" for line in section.lines]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table*}", ""])


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _latex_cell(cell: Cell, line: Line) -> str:
    text = _latex_text(cell.text)
    if cell.emphasis:
        text = rf"\textbf{{{text}}}" if cell.emphasis == "best" else rf"\underline{{{text}}}"
    return (rf"\textit{{{text}}}" if line.quoted else text) + _latex_text(cell.mark)


def html(views: Sequence[View]) -> str:
    """One page without scripts or outside files; follows the reader's light or dark mode."""
    title = escape(views[0].title)
    body = "\n".join(_html_table(view) for view in views)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html_table(view: View) -> str:
    name = escape(view.name)
    columns = zip(view.columns, _kinds(view), strict=True)
    head = "".join(f'<th scope="col"{kind}>{escape(column)}</th>' for column, kind in columns)
    lines = [
        f'<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0">',
        f'<table>\n<caption id="{name}">{escape(view.title)}</caption>',
        f"<thead><tr>{head}</tr></thead>",
    ]
    for section in view.sections:
        lines += [
            '<tbody class="block">',
            f'<tr><th scope="rowgroup" colspan="{len(view.columns)}">{escape(section.title)}</th></tr>',
            *(_html_line(line, view) for line in section.lines),
            "</tbody>",
        ]
    notes = [escape(note) for note in view.notes if note]
    if view.emphasised:
        notes.append("<strong>Bold</strong>: best; <u>underlined</u>: second best.")
    items = "\n".join(f"<li>{note}</li>" for note in notes)
    return "\n".join([*lines, "</table>\n</div>", f'<ul class="notes">\n{items}\n</ul>'])


def _html_line(line: Line, view: View) -> str:
    cells = []
    for index, (cell, kind) in enumerate(zip(line.cells, _kinds(view), strict=True)):
        text = escape(cell.text)
        if cell.emphasis == "best":
            text = f'<strong>{text}</strong><span class="hidden"> best</span>'
        elif cell.emphasis == "second":
            text = f'<u>{text}</u><span class="hidden"> second best</span>'
        mark = f"<sup>{escape(cell.mark)}</sup>" if cell.mark else ""
        cells.append(f'<th scope="row"{kind}>{text}</th>' if index == 0 else f"<td{kind}>{text}{mark}</td>")
    start = '<tr class="quoted">' if line.quoted else "<tr>"
    return f"{start}{''.join(cells)}</tr>"


def _kinds(view: View) -> list[str]:
    return [' class="text"' if index < view.text_columns else "" for index in range(len(view.columns))]


def text(views: Sequence[View]) -> str:
    """For a terminal: marks stand before the number, so that the digits line up."""
    parts = []
    for view in views:
        aligned = ["left" if index < view.text_columns else "right" for index in range(len(view.columns))]
        parts.append(view.title)
        for section in view.sections:
            rows = [[_plain_cell(cell, i == 0 and line.quoted) for i, cell in enumerate(line.cells)]
                    for line in section.lines]  # fmt: skip
            headers = [column.replace(" (", "\n(") for column in view.columns]
            table = tabulate(rows, headers=headers, disable_numparse=True, colalign=aligned, tablefmt="simple")
            parts.append(f"{section.title}\n{table}")
        notes = [*view.notes, "*: best; _: second best."] if view.emphasised else view.notes
        parts.append("\n".join(note for note in notes if note))
    return "\n\n".join(parts)


def _plain_cell(cell: Cell, indented: bool) -> str:
    sign = {"": "", "best": "*", "second": "_"}[cell.emphasis]
    return f"{'> ' if indented else ''}{cell.mark}{sign}{cell.text}"
