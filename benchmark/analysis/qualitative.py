"""One user's history and recommendations with titles, for a person to look at."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.analysis.views import Cell, Line, Section, View
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.evaluation.recommendation import Recommended

SHOWN = 15  # events of a history, the newest ones


@dataclass(frozen=True)
class Titles:
    """What people call the items: title, and their other short fields. field: the data set's field of titles."""

    field: str
    titles: tuple[str, ...]
    others: tuple[str, ...]

    def find(self, title: str) -> int | None:
        """The item with this title, "Title" or "Title (other field)"; None if there is none.

        UserError where several have it.
        """
        wanted = title.strip().casefold()
        full = [i for i in range(len(self.titles)) if self.full(i).casefold() == wanted]
        found = full or [i for i, one in enumerate(self.titles) if one.casefold() == wanted]
        if len(found) > 1:
            named = "; ".join(self.full(i) for i in found[:5])
            raise UserError(f"{len(found)} items are titled {title!r}: {named}; name one of them so")
        return found[0] if found else None

    def full(self, item: int) -> str:
        """Title (year, genres) or the like."""
        return f"{self.titles[item]} ({self.others[item]})" if self.others[item] else self.titles[item]

    def near(self, title: str) -> list[str]:
        """Titles that are spelled almost so."""
        lower = {one.casefold(): one for one in self.titles}
        return [lower[one] for one in difflib.get_close_matches(title.casefold(), lower, n=3)]


def titles_of(dataset: Dataset) -> Titles:
    """Titles of all items, or their ids where the data set has no texts."""
    ids, fields = dataset.item_ids(), dataset.card.text_fields
    if not fields:
        return Titles("", tuple(map(str, ids)), ("",) * len(ids))
    field = "title" if "title" in fields else fields[0]
    texts = dataset.item_texts()
    titles = tuple(text.get(field) or str(name) for name, text in zip(ids, texts, strict=True))
    short = [name for name in fields if name not in (field, "description")]
    others = tuple(", ".join(text[name] for name in short if text.get(name))[:60] for text in texts)
    return Titles(field, titles, others)


def recommendation_view(
    title: str, titles: Titles, history: Sequence[str], found: Recommended, target: int | None, notes: Sequence[str]
) -> View:
    """history: titles, oldest first. The held-out item is marked where it stands among the best."""
    skipped = len(history) - SHOWN
    events = [Line((Cell(str(number + 1)), Cell(one), Cell(""))) for number, one in enumerate(history)][-SHOWN:]
    if skipped > 0:
        events.insert(0, Line((Cell("..."), Cell(f"({skipped} earlier ones)"), Cell(""))))
    best = [
        Line(
            (
                Cell(str(place)),
                Cell(titles.full(int(item)) + (" <- held out" if item == target else "")),
                Cell(f"{score:.3f}"),
            )
        )
        for place, (item, score) in enumerate(zip(found.items, found.scores, strict=True), start=1)
    ]
    sections = [Section("History, oldest first", tuple(events)), Section("Recommended, best first", tuple(best))]
    if target is not None and found.rank is not None:
        held = Line((Cell(f"{found.rank:g}"), Cell(titles.full(target)), Cell("")))
        sections.insert(1, Section("Held out: what the user chose next, at this place", (held,)))
    return View("recommendation", title, ("Place", "Item", "Score"), tuple(sections), tuple(notes), text_columns=2)
