"""Two sources compared as the verb does."""

from pathlib import Path

from benchmark.analysis.compare import Comparer
from benchmark.analysis.compare_matching import match_sources
from benchmark.analysis.compare_sources import RunFolders, read_source

CONFIG = Path(__file__).parents[2] / "config"


def compared(first, second, same=None, noise=0.004, **where):
    """The results of comparing two paths; where_a and where_b as in the command line."""
    runs = RunFolders()
    sources = [
        read_source(path, runs, CONFIG, where=where.get(side))
        for path, side in ((first, "where_a"), (second, "where_b"))
    ]
    matching = match_sources(*sources, same or {}, CONFIG)
    return matching, Comparer(matching.matches, runs, noise).results()
